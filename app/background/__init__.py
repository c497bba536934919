"""Threads and tasks beside the requests: store watcher, live traffic, housekeeping."""
