"""Where the prompts of a run come from: taxonomy, languages, templates, prompt files, test suites."""
