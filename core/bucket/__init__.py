"""Objects in an S3-compatible bucket: creation with one winner, logs of numbered objects, and a test of the server."""
