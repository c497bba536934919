"""Drawings, words and photographs that models are trained on."""
