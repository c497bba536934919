"""Places of a codebook store: a folder of one machine, or a bucket that several machines share."""
