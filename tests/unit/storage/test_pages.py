"""Pages and cursors."""

import pytest

from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import DEFAULT_PAGE, MAX_PAGE
from modelkeep_platform.storage.pages import PageRequest, page_of


def test_a_first_page_begins_before_everything() -> None:
    request = PageRequest()
    assert (request.limit, request.after()) == (DEFAULT_PAGE, "")


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_limit_out_of_bounds_is_refused(limit: int) -> None:
    with pytest.raises(MalformedError) as caught:
        PageRequest(limit=limit)
    assert caught.value.error_code == "invalid_page"


@pytest.mark.parametrize("limit", [1, MAX_PAGE])
def test_the_bounds_themselves_are_accepted(limit: int) -> None:
    assert PageRequest(limit=limit).limit == limit


@pytest.mark.parametrize("cursor", ["ä", "a", "AAA", "/w==", "_w==", "====", "YQ==!", "YR=="])
def test_a_cursor_of_others_is_refused(cursor: str) -> None:
    with pytest.raises(MalformedError) as caught:
        PageRequest(cursor=cursor).after()
    assert caught.value.error_code == "invalid_page"


def test_pages_chain_until_the_last() -> None:
    names = ["a", "b", "ü", "z"]
    seen: list[str] = []
    request = PageRequest(limit=2)
    for _ in range(3):
        rest = [name for name in names if name > request.after()][: request.limit + 1]
        page = page_of(rest, request, rest)
        seen += page.items
        if page.next_cursor is None:
            break
        request = PageRequest(limit=2, cursor=page.next_cursor)
    assert seen == names


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_page_that_holds_everything_has_no_next(count: int) -> None:
    items = ["a", "b"][:count]
    page = page_of(items, PageRequest(limit=2), items)
    assert (list(page.items), page.next_cursor) == (items, None)
