"""The endpoints of `/v1`, one file a resource; each translates and calls, nothing else."""
