"""How the demo shows its steps: titles, lines, checks, and the closing table with times."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


class Stage:
    """Collects what was shown."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float, list[str]]] = []
        self._shown: list[str] = []
        self._started = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show one step and time it."""
        console.print(f"\n[bold]{len(self._steps) + 1}. {title}[/bold]")
        self._shown = []
        started = time.monotonic()
        yield
        self._steps.append((title, time.monotonic() - started, self._shown))

    def say(self, text: str) -> None:
        """Print one line of the story."""
        console.print(f"   {text}")

    def check(self, what: str, holds: object) -> None:
        """Stop the demo with an error unless `holds`.

        Raises:
            SystemExit: it does not hold.
        """
        if not holds:
            console.print(f"   [red]✗ {what}[/red]")
            raise SystemExit(f"the demo stops: {what} does not hold")
        console.print(f"   [green]✓[/green] {what}")
        self._shown.append(what)

    def refused(self, what: str, call: Callable[[], object], error: type[Exception]) -> Exception:
        """Check that `call` raises `error`; return what was raised."""
        try:
            call()
        except error as exc:
            self.check(f"{what}: refused", holds=True)
            self.say(f"  “{exc}”")
            return exc
        self.check(f"{what}: refused", holds=False)
        raise AssertionError

    def table(self) -> None:
        """Print what was shown and how long each step took."""
        table = Table(title="What was shown")
        table.add_column("step")
        table.add_column("checks", justify="right")
        table.add_column("seconds", justify="right")
        for title, seconds, shown in self._steps:
            table.add_row(title, str(len(shown)), f"{seconds:.1f}")
        table.add_section()
        checks = sum(len(shown) for _, _, shown in self._steps)
        table.add_row("all of it", str(checks), f"{time.monotonic() - self._started:.1f}")
        console.print()
        console.print(table)
