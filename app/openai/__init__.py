"""OpenAI's Images API: its names, shapes, streams and errors, over the same drawing as POST /generate."""
