"""Evaluation of any codebooks on any prompts: assessment, ablation, pages and pictures."""
