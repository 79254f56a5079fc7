"""What was made under an epoch, in memory, until the epoch moves.

The caches of callers, decisions and versions are one of these each. An entry is found only with the epoch it was put
under, so nothing is used after a change that moves the epoch. What ends by the clock is its reader's to compare.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class EpochCache(Generic[Key, Value]):
    """A bounded map that forgets what was used longest ago, and everything of another epoch.

    Args:
        size: how many entries are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, tuple[int, Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, *, epoch: int) -> Value | None:
        """Return what was put under `key` in this epoch, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[0] != epoch:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def put(self, key: Key, value: Value, *, epoch: int) -> None:
        """Keep `value` for `epoch`, which must have been read before what the value was made from."""
        with self._lock:
            self._entries[key] = (epoch, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
