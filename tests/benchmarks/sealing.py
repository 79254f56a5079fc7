"""The sealed format against AES-256-GCM of the same library over the same bytes, in one call and one buffer."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.harness import Figure, interleave
from modelkeep_platform.core.sealing import Suite
from modelkeep_platform.keys.sealed import open_sealed, seal

TITLE = "Sealing"
MIB = 2**20


def measure(folder: Path) -> list[Figure]:
    """Measure a part of an upload (8 MiB) and an audit entry's few bytes."""
    figures: list[Figure] = []
    for size, suite, what, times in ((8 * MIB, Suite.LARGE, "8 MiB", 4), (200, Suite.SMALL, "200 bytes", 2000)):
        figures += _of(size, suite, what, times)
    return figures


def _of(size: int, suite: Suite, what: str, times: int) -> list[Figure]:
    key, context, plain = os.urandom(32), b"modelkeep benchmark", os.urandom(size)
    raw, nonce = AESGCM(key), os.urandom(12)
    sealed, encrypted = seal(key, context, plain, suite=suite), raw.encrypt(nonce, plain, context)

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        def side() -> float:
            began = time.perf_counter()
            for _ in range(times):
                work()
            return size * times / (time.perf_counter() - began) / MIB

        return side

    pairs = {
        "seal": (lambda: seal(key, context, plain, suite=suite), lambda: raw.encrypt(os.urandom(12), plain, context)),
        "open": (lambda: open_sealed(key, context, sealed), lambda: raw.decrypt(nonce, encrypted, context)),
    }
    found = []
    for name, (ours, theirs) in pairs.items():
        mine, bare = interleave(rate(ours), rate(theirs))
        found.append(
            Figure(
                name=f"{name} {what}",
                unit="MiB/s",
                ours=mine,
                against="AES-256-GCM alone",
                theirs=bare,
                more_is_better=True,
            )
        )
    return found
