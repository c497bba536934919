"""Sources of the prompts of a run: taxonomy, languages, templates, prompt files, test suites."""
