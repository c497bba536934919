"""Draws, decodes and judges for the loop: the model runner, tasks, the result cache, progress."""
