"""Key material that cannot be printed, formatted, compared by accident or pickled."""

import hmac
from typing import NoReturn, final


@final
class SecretBytes:
    """Secret bytes; call `reveal` at the one place that needs them.

    `repr`, `str` and `format` show only the length; pickling raises; equality is constant time.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the secret itself."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # secrets are never dictionary keys

    def __repr__(self) -> str:
        return f"SecretBytes(<{len(self._value)} bytes>)"

    def __reduce__(self) -> NoReturn:
        message = "secret bytes cannot be pickled"
        raise TypeError(message)
