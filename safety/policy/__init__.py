"""Policies: the prompts of a run in groups and disjoint splits; prompt files; attacks."""
