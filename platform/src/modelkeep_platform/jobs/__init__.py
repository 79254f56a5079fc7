"""A durable queue with leases and fencing numbers; knows not what the work is."""
