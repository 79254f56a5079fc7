"""Revisions, oldest first; a published one never changes."""
