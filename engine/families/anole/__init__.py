"""Anole: Chameleon with its image words unmasked, and the decoder of its VQGAN (arXiv 2407.06135)."""
