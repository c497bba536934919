"""Records of the service besides versions: improve jobs, flags, the image log."""
