"""`safecb verify`: whether a model computes here what its publisher's code computes, and draws, judges and serves."""
