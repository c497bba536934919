"""VILA-U: a Llama that reads and draws residual codes, four a step by a depth transformer (arXiv 2409.04429)."""
