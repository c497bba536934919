"""Weights of a checkpoint before they are loaded: their name, their files, their hash and the memory that they take."""
