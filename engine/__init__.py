"""A unified multimodal model at work: families, sampling, batching.

Knows codebooks as values. Knows nothing of harm policy, HTTP, Redis or where codebooks are stored.
"""
