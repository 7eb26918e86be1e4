"""ollamaops: the desired-state engine for Ollama."""
