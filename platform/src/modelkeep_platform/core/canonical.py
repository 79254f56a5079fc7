"""Canonical bytes: each field as a big-endian 32-bit length, then its UTF-8 or raw bytes.

Injective: two different sequences of fields never give the same bytes. Contexts of sealed files,
plans and signed statements are built with it.
"""

from typing import Final

_MAX_FIELD_BYTES: Final = 2**32 - 1


def canonical_bytes(*fields: str | bytes | int) -> bytes:
    """Encode `fields` injectively; an integer is encoded as its decimal text.

    Args:
        fields: text, raw bytes or non-negative integers.

    Raises:
        ValueError: a field is longer than 2**32 - 1 bytes, or an integer is negative.
    """
    parts: list[bytes] = []
    for field in fields:
        if isinstance(field, int):
            if field < 0:
                message = "canonical integers are not negative"
                raise ValueError(message)
            raw = str(int(field)).encode("ascii")
        else:
            raw = field.encode("utf-8") if isinstance(field, str) else field
        if len(raw) > _MAX_FIELD_BYTES:
            message = "a canonical field holds at most 2**32 - 1 bytes"
            raise ValueError(message)
        parts += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(parts)
