"""The HTTP service. Uses core, records, codebook and engine; enqueues jobs by dotted name."""
