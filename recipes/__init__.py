"""The recipe of the embedded model, its second judge and its referee. Reproducible; not needed to serve.

Reads the openly licensed artwork from a folder of npm packages; writes checkpoints/embedded.
"""
