"""The lock file: what is in it, how it is built, checked and compared, and which models are outdated."""
