"""Runners, one a file: where a job's worker is started."""
