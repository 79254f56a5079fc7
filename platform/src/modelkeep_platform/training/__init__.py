"""Jobs that train: declared, planned, reserved, run in a worker, charged segment by segment."""
