"""Asks as fast as servers answer, and checks that what passes is one tenant's rate."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from services.house import Installation

PER_SECOND = 20
SECONDS = 6.0
_BURST_S = 5.0
"""By then a burst of three seconds' requests is used up, and so is what each server holds in advance."""


def check_rate(made: Installation, tenant: str, asking: Sequence[httpx.Client]) -> None:
    """Check that all of `asking`, callers of one tenant, get its rate together within 10 %, when the burst is gone."""
    with made.operator() as operator:
        operator.tenants.set_limits(tenant, {"requests_per_minute": 60 * PER_SECOND})
        try:
            with ThreadPoolExecutor(len(asking)) as pool:
                began = time.monotonic() + _BURST_S
                passed = sum(pool.map(lambda http: _passes(http, began, began + SECONDS), asking))
        finally:
            operator.tenants.set_limits(tenant, {"requests_per_minute": None})
    assert 0.9 * PER_SECOND * SECONDS <= passed <= 1.1 * PER_SECOND * SECONDS


def _passes(http: httpx.Client, began: float, end: float) -> int:
    passed = 0
    while time.monotonic() < end:
        answered = http.get("/v1/whoami").status_code == 200
        passed += answered and began <= time.monotonic() < end
    return passed
