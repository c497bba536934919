"""Liquid: Gemma with words for the codes of Chameleon's VQGAN, which lies in a folder of its own (arXiv 2412.04332)."""
