"""Jobs on disk and in a bucket: their records, their events, and the signs that an attempt lives."""
