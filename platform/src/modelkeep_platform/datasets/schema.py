"""What a dataset declares of its rows: columns or images, their bounds, and the target.

Bounds are public by declaration: they scale features, so they must not be computed from the rows. Pure.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec

from modelkeep_platform.core.errors import UnprocessableError

MAX_COLUMNS: Final = 4096
MAX_CATEGORIES: Final = 4096
MAX_IMAGE_VALUES: Final = 1 << 20
_MAX_NAME: Final = 128
_MAX_BOUND: Final = 1e15
_MIN_RELATIVE_RANGE: Final = 1e-9
_IMAGE_RANK: Final = 3
INPUTS: Final = "inputs"
"""A target of this name (or none) means that a model is trained towards its own inputs."""


class InvalidDatasetError(UnprocessableError):
    """The declaration is refused; the message names the field."""

    code = "invalid_dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Args:
        name: as in the file's header.
        type: ``float``, ``int`` or ``category``.
        low: the least value a cell may have; 0 for categories.
        high: the greatest; for categories the last one's number.
        categories: the words a cell may hold, numbered from 0; empty for numbers.
    """

    name: str
    type: Literal["float", "int", "category"]
    low: float
    high: float
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """Columns in their order; `target` is one of them, or None."""

    columns: tuple[Column, ...]
    target: Column | None

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model gets, in order."""
        return tuple(column for column in self.columns if column is not self.target)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one row's features."""
        return (len(self.features),)

    @property
    def classes(self) -> int | None:
        """How many classes the target has; None when it is a number or missing."""
        if self.target is None or self.target.type != "category":
            return None
        return len(self.target.categories)

    def bounds(self) -> tuple[list[float], list[float]]:
        """Return the lower and the upper bound of each feature."""
        return [column.low for column in self.features], [column.high for column in self.features]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSchema:
    """Images ``[C, H, W]`` whose values lie between two bounds, and their classes, if they have any."""

    shape: tuple[int, ...]
    low: float
    high: float
    labels: tuple[str, ...]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one row's features."""
        return self.shape

    @property
    def classes(self) -> int | None:
        """How many classes there are, if any."""
        return len(self.labels) or None

    def bounds(self) -> tuple[list[float], list[float]]:
        """Return the one lower and the one upper bound."""
        return [self.low], [self.high]


Schema: TypeAlias = TableSchema | ImageSchema


class _Column(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    type: Literal["float", "int", "category"]
    min: float | None = None
    max: float | None = None
    categories: list[str] | None = None


class _Table(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    columns: list[_Column]
    target: str | None = None


class _ImageValues(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    shape: list[int]
    min: float
    max: float


class _Images(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    images: _ImageValues
    classes: list[str] = msgspec.field(default_factory=list)


def parse_schema(value: object) -> Schema:
    """Check a declared schema.

    Args:
        value: what JSON gave: ``{"columns": [...], "target": ...}`` or ``{"images": {...}, "classes": [...]}``.

    Raises:
        InvalidDatasetError: it is neither, or a name, type or bound cannot be.
    """
    if isinstance(value, dict) and "images" in value:
        return _images(converted(value, _Images, "schema"))
    return _table(converted(value, _Table, "schema"))


def converted(value: object, wanted: type[Any], what: str) -> Any:  # noqa: ANN401 -- an instance of `wanted`
    """Return `value` as the struct `wanted`; raises InvalidDatasetError naming the place."""
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as exc:
        reason = str(exc)
        raise InvalidDatasetError(f"the `{what}` is refused: {reason[:1].lower()}{reason[1:300]}") from exc


def schema_json(schema: Schema) -> dict[str, Any]:
    """Return the schema as JSON has it."""
    if isinstance(schema, ImageSchema):
        images = {"shape": list(schema.shape), "min": schema.low, "max": schema.high}
        return {"images": images, "classes": list(schema.labels)}
    return {
        "columns": [_column_json(column) for column in schema.columns],
        "target": None if schema.target is None else schema.target.name,
    }


def _column_json(column: Column) -> dict[str, Any]:
    if column.type == "category":
        return {"name": column.name, "type": column.type, "categories": list(column.categories)}
    return {"name": column.name, "type": column.type, "min": column.low, "max": column.high}


def _table(raw: Any) -> TableSchema:  # noqa: ANN401 -- a checked struct
    if not 1 <= len(raw.columns) <= MAX_COLUMNS:
        raise InvalidDatasetError(f"`columns` has 1 to {MAX_COLUMNS} columns")
    columns = tuple(_column(column) for column in raw.columns)
    names = [column.name for column in columns]
    if len(set(names)) != len(names):
        raise InvalidDatasetError("two `columns` have the same name")
    target = next((column for column in columns if column.name == raw.target), None)
    if target is None and raw.target not in (None, INPUTS):
        raise InvalidDatasetError(f"the `target` `{raw.target[:80]}` is not one of the columns")
    schema = TableSchema(columns=columns, target=target)
    if not schema.features:
        raise InvalidDatasetError("the schema has no column besides its `target`; declare at least one feature")
    return schema


def _column(raw: Any) -> Column:  # noqa: ANN401 -- a checked struct
    name = _word(raw.name, "a column")
    if raw.type == "category":
        if raw.min is not None or raw.max is not None:
            raise InvalidDatasetError(f"column `{name}` is a category and has no `min` and `max`")
        categories = _words(raw.categories or [], f"the categories of `{name}`", low=1)
        return Column(name=name, type="category", low=0.0, high=float(len(categories) - 1), categories=categories)
    if raw.categories is not None:
        raise InvalidDatasetError(f"column `{name}` is not a category; leave `categories` out")
    if raw.min is None or raw.max is None:
        raise InvalidDatasetError(f"column `{name}` needs `min` and `max`, from public knowledge and not from the rows")
    low, high = _bounds(raw.min, raw.max, f"column `{name}`")
    if raw.type == "int" and not (low.is_integer() and high.is_integer()):
        raise InvalidDatasetError(f"`min` and `max` of column `{name}` are whole numbers, as its type is `int`")
    return Column(name=name, type=raw.type, low=low, high=high)


def _images(raw: Any) -> ImageSchema:  # noqa: ANN401 -- a checked struct
    shape = tuple(raw.images.shape)
    if len(shape) != _IMAGE_RANK or min(shape) < 1 or math.prod(shape) > MAX_IMAGE_VALUES:
        raise InvalidDatasetError(f"the `shape` of images is [channels, height, width], at most {MAX_IMAGE_VALUES}")
    low, high = _bounds(raw.images.min, raw.images.max, "`images`")
    return ImageSchema(shape=shape, low=low, high=high, labels=_words(raw.classes, "`classes`", low=0))


def _bounds(low: float, high: float, what: str) -> tuple[float, float]:
    largest = max(abs(low), abs(high))
    if not (math.isfinite(largest) and largest <= _MAX_BOUND):
        raise InvalidDatasetError(f"`min` and `max` of {what} are numbers of at most {_MAX_BOUND:g}")
    # Nearer together than this, float32 could not tell them apart once they are scaled.
    if not high - low > _MIN_RELATIVE_RANGE * largest:
        raise InvalidDatasetError(f"`min` of {what} is below its `max`, and not by a hair")
    return float(low), float(high)


def _words(words: list[str], what: str, *, low: int) -> tuple[str, ...]:
    if not low <= len(words) <= MAX_CATEGORIES or len(set(words)) != len(words):
        raise InvalidDatasetError(f"{what} are {low} to {MAX_CATEGORIES} different words")
    return tuple(_word(word, what) for word in words)


def _word(word: str, what: str) -> str:
    if not 1 <= len(word) <= _MAX_NAME or not word.isprintable():
        raise InvalidDatasetError(f"the name of {what} is 1 to {_MAX_NAME} printable characters")
    return word
