"""Measures, prints the table, and writes it to docs/reference/benchmarks.md when every benchmark ran.

python tests/benchmarks          all of them
python tests/benchmarks NAME...  those, printed only
"""

import importlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Figure, progress
from benchmarks.report import as_table, write

NAMES = (
    "imports",
    "decisions",
    "tokens",
    "sealing",
    "ledger",
    "log",
    "jobs",
    "predictions",
    "layers",
    "transfer",
    "others",
)


def main(chosen: list[str]) -> int:
    """Run the chosen benchmarks, or all."""
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        progress(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    figures: list[tuple[str, list[Figure]]] = []
    for name in NAMES:
        if chosen and name not in chosen:
            continue
        began = time.monotonic()
        module = importlib.import_module(f"benchmarks.{name}")
        with tempfile.TemporaryDirectory() as folder:
            found = module.measure(Path(folder))
        figures.append((module.TITLE, found))
        progress(f"{name}: {time.monotonic() - began:.1f} s")
        print(as_table(found), flush=True)
    if not chosen:
        write(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
