"""Codebooks: the frozen value, the on-disk store of versions, and the one mutable cell of a server.

Knows tensors and bytes on disk. Knows nothing of models, harm, HTTP or Redis.
"""
