"""Prometheus metrics of one server: what it counts as it goes, and what is read from its parts at each scrape."""
