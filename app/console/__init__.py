"""Pages for people: the console and a version's report."""
