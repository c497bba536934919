"""Judges of images: the model itself, small classifiers, plugins by name, the referee."""
