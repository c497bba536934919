"""Measurements of improve jobs."""
