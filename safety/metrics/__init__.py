"""Measures: rates with intervals, the degenerate-image detector, results on a set of prompts."""
