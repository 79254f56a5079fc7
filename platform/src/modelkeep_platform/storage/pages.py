"""Cursors: an opaque, URL-safe text that says where the next page begins."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import DEFAULT_PAGE, MAX_PAGE

Item = TypeVar("Item")
Shown_co = TypeVar("Shown_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Shown_co]):
    """One page of a list and the cursor of the next, if there is one."""

    items: Sequence[Shown_co]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """How many items, after which cursor."""

    limit: int = DEFAULT_PAGE
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            message = f"`limit` is between 1 and {MAX_PAGE}"
            raise MalformedError(message, code="invalid_page")

    def after(self) -> str:
        """Return the sort key the page begins after; the empty text for the first page.

        Raises:
            MalformedError: the cursor was not given out by this platform.
        """
        if self.cursor is None:
            return ""
        try:
            key = base64.urlsafe_b64decode(self.cursor.encode("ascii")).decode("utf-8")
        except (UnicodeError, binascii.Error) as exc:
            raise not_ours() from exc
        # The decoder passes over what is no base64; only the one spelling that was given out is taken back.
        if not key or _cursor(key) != self.cursor:
            raise not_ours()
        return key


def page_of(items: Sequence[Item], request: PageRequest, keys: Sequence[str]) -> Page[Item]:
    """Cut a page from `items`, of which the query asked for one more than the limit.

    Args:
        items: at most `request.limit + 1`, in order.
        request: what was asked.
        keys: each item's sort key.
    """
    if len(items) <= request.limit:
        return Page(items=items, next_cursor=None)
    last = keys[request.limit - 1]
    return Page(items=items[: request.limit], next_cursor=_cursor(last))


def _cursor(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode("ascii")


def not_ours() -> MalformedError:
    """Return the refusal of a cursor whose key is none of the list's."""
    return MalformedError("the cursor is not one that this platform gave out", code="invalid_page")
