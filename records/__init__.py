"""Records of the service besides versions: improve jobs, flags, the log of drawn images."""
