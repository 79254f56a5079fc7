"""Several callers at the same instant, on threads; and whether what came of it is what some order would have given."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import permutations
from threading import Barrier
from typing import TypeVar

Model = TypeVar("Model")
Operation = TypeVar("Operation")


def together(perform: Callable[[Operation], str], operations: Sequence[Operation]) -> list[str]:
    """Perform every operation at once; return what each came to."""
    start = Barrier(len(operations))

    def begin(operation: Operation) -> str:
        start.wait()
        return perform(operation)

    with ThreadPoolExecutor(len(operations)) as pool:
        return list(pool.map(begin, operations))


def in_some_order(
    model: Model, apply: Callable[[Model, Operation], str], operations: Sequence[Operation], outcomes: Sequence[str]
) -> list[Model]:
    """Return the models after each order in which the operations, one after the other, come to these outcomes."""
    found = []
    for order in permutations(range(len(operations))):
        after = deepcopy(model)
        if all(apply(after, operations[at]) == outcomes[at] for at in order):
            found.append(after)
    return found
