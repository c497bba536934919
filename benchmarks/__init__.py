"""Measures speed and swaps: things run in turn in one run, so that their ratios mean something."""
