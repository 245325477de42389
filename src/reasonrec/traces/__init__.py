"""History and chains -> prompts -> thoughts."""
