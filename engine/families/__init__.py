"""One folder a model family: model classes stand by name nowhere else."""
