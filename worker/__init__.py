"""Background jobs under RQ: joins engine, safety and codebook. Knows nothing of HTTP."""
