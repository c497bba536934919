"""Policies in files: rows of CSV or JSON lines, and a policy written out."""
