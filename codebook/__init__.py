"""Codebooks: the immutable value, the store of versions on disk, and the live codebooks of a server.

Knows tensors and bytes on disk. Knows nothing of models, harm, HTTP or Redis.
"""
