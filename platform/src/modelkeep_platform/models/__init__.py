"""Models: code-free graphs, immutable versions and aliases."""
