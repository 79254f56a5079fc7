"""Values, errors, limits and ports that every other package shares; no I/O and no framework."""
