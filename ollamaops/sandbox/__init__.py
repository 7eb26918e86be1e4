"""A pretend Ollama server: its own store, every endpoint, any recorded version. `Sandbox` runs it in a thread."""
