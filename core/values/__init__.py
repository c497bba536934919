"""Values of settings: readers of their text, and the syntax of a Redis URL."""
