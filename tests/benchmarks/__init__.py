"""Timings; `make bench` runs them, no test does."""
