"""Turns what services return into what the wire says."""

from typing import TypeVar

import msgspec

from modelkeep_platform.http.wire.fields import Answer, ListOf
from modelkeep_platform.storage.pages import Page

Wire = TypeVar("Wire", bound=Answer)


def show(value: object, wire: type[Wire]) -> Wire:
    """Copy the attributes that `wire` names from `value`; sets come sorted."""
    return msgspec.convert(msgspec.to_builtins(value, order="deterministic"), wire)


def show_page(page: Page[object], wire: type[Wire]) -> ListOf[Wire]:
    """Copy a page, item by item."""
    return ListOf(items=[show(item, wire) for item in page.items], next_cursor=page.next_cursor)
