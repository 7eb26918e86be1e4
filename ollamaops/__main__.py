"""`python -m ollamaops`."""

from ollamaops.cli.main import main

main()
