"""Logs and request ids, and the machine's clock and entropy behind their ports."""
