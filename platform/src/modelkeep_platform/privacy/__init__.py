"""Differential privacy: accounting, the budget ledger, sampling and noise, and the private training step."""
