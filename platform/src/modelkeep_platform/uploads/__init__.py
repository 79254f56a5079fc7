"""Resumable uploads and sealed artifacts: parts that are sealed as they arrive, and a sealed manifest."""
