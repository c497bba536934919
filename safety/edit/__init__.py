"""Edits of a codebook: Harmful Space, pixel table, image head, router, tuning."""
