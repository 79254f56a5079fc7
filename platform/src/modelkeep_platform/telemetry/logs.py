"""Logs: one line an event on standard error, with time, level and logger; never inputs, tokens or secrets."""

import logging
import sys
import time


def configure(*, level: int = logging.INFO) -> None:
    """Send the platform's logs to standard error, in UTC."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger("modelkeep_platform")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level)
