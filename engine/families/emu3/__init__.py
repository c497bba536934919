"""Emu3: a Llama-like language model over words and image codes, and a VQ model with spatial norms (2409.18869)."""
