"""What is there: everything that only looks at hosts, registries and weights."""
