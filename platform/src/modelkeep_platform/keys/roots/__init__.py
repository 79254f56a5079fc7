"""Root key providers, one a file."""
