"""One folder a model family: the only place where a model class stands by name."""
