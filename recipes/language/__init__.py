"""Training of the language model, and of further words for a trained one."""
