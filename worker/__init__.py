"""Background jobs: joins engine, safety and codebook. Runs under RQ; knows nothing of HTTP."""
