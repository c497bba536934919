"""Policies: where the prompts of a run come from, in groups and disjoint splits; prompt files; attacks."""
