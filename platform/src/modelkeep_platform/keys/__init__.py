"""Root key, tenant keys, data keys and the sealed format; knows nothing of what is sealed."""
