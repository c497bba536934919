"""A unified model of any family, assembled from its parts: it draws, decodes, judges, rewrites."""
