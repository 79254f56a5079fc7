"""Measures, prints the table, and writes it to docs/reference/benchmarks.md when every benchmark ran.

python tests/benchmarks          all of them
python tests/benchmarks NAME...  those, printed only
"""

import importlib
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Figure, progress
from benchmarks.place import Place, place
from benchmarks.report import as_table, write

ALONE = ("imports", "decisions", "tokens", "sealing", "ledger", "log", "jobs")
SERVED = ("predictions", "layers", "transfer", "others")
"""These share one running platform."""

NAMES = (*ALONE, *SERVED)


def main(chosen: list[str]) -> int:
    """Run the chosen benchmarks, or all."""
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        progress(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    figures: list[tuple[str, list[Figure]]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running: Place | None = None
        for name in NAMES:
            if chosen and name not in chosen:
                continue
            began = time.monotonic()
            module = importlib.import_module(f"benchmarks.{name}")
            if name in SERVED:
                running = running or stack.enter_context(place(folder / "place"))
                found = module.measure_at(running)
            else:
                (folder / name).mkdir()
                found = module.measure(folder / name)
            figures.append((module.TITLE, found))
            progress(f"{name}: {time.monotonic() - began:.1f} s")
            print(as_table(found), flush=True)
    for title, found in figures:
        for figure in found:
            for floor in figure.missed():
                progress(f"missed: {title}, {figure.name}: {floor}")
    if not chosen:
        write(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
