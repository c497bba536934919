"""Makes a codebook safer by the model's own judgement: pairs, harmful space, update, tuning, gates, acceptance.

Knows harm as categories of prompts and verdicts. Knows nothing of HTTP, Redis, jobs or where versions are stored.
"""
