"""Decode steps in C, where there is a compiler and the bits are those of torch's operators."""
