"""Prediction: one worker process for each tenant, batching while the worker is busy."""
