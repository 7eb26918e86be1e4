"""Values to words: plans, runs and problems as text, JSON, Markdown and HTML, and progress while it happens."""
