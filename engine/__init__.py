"""Runs a unified multimodal model: families, sampling, batching.

Knows codebooks as values. Knows nothing of harm policy, HTTP, Redis or where codebooks are stored.
"""
