"""What every body and answer is made of."""

from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec

Item = TypeVar("Item")

# What bodies may hold at most. Services check the rest (and say it better): these bounds keep from the database what no
# service could mean, and stand in the OpenAPI document.
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Change: TypeAlias = Count | msgspec.UnsetType | None
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Digest: TypeAlias = Annotated[str, msgspec.Meta(max_length=128)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=2000)]
Secret: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
Words: TypeAlias = Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=64)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body; unknown fields are refused."""


class Answer(msgspec.Struct, kw_only=True):
    """An answer."""


class ListOf(Answer, Generic[Item]):
    """One page of a list; `next_cursor` is null on the last."""

    items: list[Item]
    next_cursor: str | None
