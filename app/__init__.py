"""The HTTP service and its command line. Uses codebook and engine; jobs are enqueued by dotted name."""
