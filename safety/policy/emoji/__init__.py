"""The emoji policy: nouns, looks, languages and suites of the embedded model's own world."""
