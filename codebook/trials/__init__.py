"""Trials of a version beside the active one: shadow comparison, and promotion in steps."""
