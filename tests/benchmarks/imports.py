"""How long an application waits for `import modelkeep`, in a fresh interpreter, less what that itself takes."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Figure, Floor, interleave

TITLE = "Importing the SDK"


def measure(folder: Path) -> list[Figure]:
    """Measure the package and the client, against httpx alone."""
    statements = ("pass", "import modelkeep", "from modelkeep import Client, ClientCredentials", "import httpx")
    for statement in statements:
        _took(statement)
    nothing, package, client, httpx = interleave(*(lambda code=code: _took(code) for code in statements), rounds=7)
    base = min(nothing)
    package, client, httpx = ([max(value - base, 1e-4) for value in side] for side in (package, client, httpx))
    return [
        Figure(
            name="`import modelkeep`",
            unit="s",
            ours=package,
            against="`import httpx`",
            theirs=httpx,
            floor=Floor(at_most=0.1),
        ),
        Figure(
            name="`from modelkeep import Client, ClientCredentials`",
            unit="s",
            ours=client,
            against="`import httpx`",
            theirs=httpx,
        ),
    ]


def _took(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began
