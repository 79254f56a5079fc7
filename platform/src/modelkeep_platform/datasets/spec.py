"""What an owner declares of a dataset: schema with public bounds, and the privacy it is kept under.

Bounds are facts about the domain, not about the rows: whoever computes them from the rows gives them away. N_public is
the size the owner declares; the true number of rows of a private dataset is never shown.
"""

import math
from typing import Annotated, Any, Final, Literal

import msgspec

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.checks import MIN_DELTA, MIN_EPSILON

MAX_COLUMNS: Final = 4096
MAX_CATEGORIES: Final = 10_000
MIN_CATEGORIES: Final = 2
MAX_EPSILON: Final = 20.0
MAX_DELTA: Final = 1e-3
_MAX_BOUND: Final = 1e15
_MIN_RELATIVE_RANGE: Final = 1e-9
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Column(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One column; numbers have public bounds, categories a public list."""

    name: _Text
    type: Literal["float", "int", "category"]
    min: float | None = None
    max: float | None = None
    categories: list[_Text] | None = None

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest number a cell may stand for; categories count from 0."""
        if self.type == "category":
            return 0.0, float(len(self.categories or []) - 1)
        return float(self.min or 0.0), float(self.max or 0.0)


class Images(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Images of one shape, [C, H, W], with public bounds of a pixel."""

    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=4096)]], msgspec.Meta(min_length=3, max_length=3)]
    min: float
    max: float


class Schema(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Either columns with the name of the target, or images with the classes they show."""

    columns: list[Column] | None = None
    target: _Text | None = None
    images: Images | None = None
    classes: list[_Text] | None = None


class Budget(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The most that may ever be lost; write-once."""

    epsilon: float
    delta: float


class Privacy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Private with unit, declared size and budget; or public with the reason why it may be."""

    visibility: Literal["private", "public"]
    unit: Literal["row"] | None = None
    n_public: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    budget: Budget | None = None
    reason: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class DatasetSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole declaration."""

    name: str
    format: Literal["csv", "arrays"]
    schema: Schema
    privacy: Privacy
    description: Annotated[str, msgspec.Meta(max_length=2000)] = ""

    @property
    def private(self) -> bool:
        """Return whether training on it needs a budget."""
        return self.privacy.visibility == "private"

    def features(self) -> list[Column]:
        """Return the columns that are not the target."""
        return [column for column in self.schema.columns or [] if column.name != self.schema.target]

    def target(self) -> Column | None:
        """Return the target column; None when the dataset has none."""
        return next((column for column in self.schema.columns or [] if column.name == self.schema.target), None)

    def class_count(self) -> int | None:
        """Return how many classes the target has; None when it is a number or there is none."""
        if self.schema.images is not None:
            return len(self.schema.classes or [])
        target = self.target()
        return None if target is None or target.categories is None else len(target.categories)

    def feature_shape(self) -> tuple[int, ...]:
        """Return the shape of one record's features."""
        if self.schema.images is not None:
            return tuple(self.schema.images.shape)
        return (len(self.features()),)

    def scaling(self) -> tuple[list[float], list[float]]:
        """Return factors and summands that bring each feature from its public bounds to [-1, 1]."""
        if self.schema.images is not None:
            bounds = [(self.schema.images.min, self.schema.images.max)]
        else:
            bounds = [column.bounds() for column in self.features()]
        scale = [2.0 / (high - low) for low, high in bounds]
        return scale, [-1.0 - low * factor for (low, _), factor in zip(bounds, scale, strict=True)]


class InvalidDatasetError(UnprocessableError):
    """The declaration cannot be; the message says which part."""

    code = "invalid_dataset"


def parse(value: object) -> DatasetSpec:
    """Check a declaration.

    Raises:
        InvalidDatasetError: a field is missing, unknown, of another type, or contradicts another.
    """
    try:
        spec = msgspec.convert(value, DatasetSpec)
    except msgspec.ValidationError as exc:
        text = str(exc)
        raise InvalidDatasetError(f"the declaration of the dataset: {text[:1].lower()}{text[1:]}") from exc
    _check_schema(spec)
    _check_privacy(spec.privacy)
    return spec


def _check_schema(spec: DatasetSpec) -> None:
    schema = spec.schema
    if (schema.columns is None) == (schema.images is None):
        raise InvalidDatasetError("the schema has `columns` or `images`")
    if schema.images is not None:
        _check_images(spec)
        return
    columns = schema.columns or []
    names = [column.name for column in columns]
    if not 1 <= len(columns) <= MAX_COLUMNS or len(set(names)) != len(names):
        raise InvalidDatasetError(f"there are 1 to {MAX_COLUMNS} columns, each with a name of its own")
    if schema.classes is not None:
        raise InvalidDatasetError("`classes` are of images; a column has `categories`")
    if schema.target is not None and schema.target not in names:
        raise InvalidDatasetError(f"the target `{schema.target}` is not a column")
    if not spec.features():
        raise InvalidDatasetError("there is no column beside the target")
    for column in columns:
        _check_column(column)


def _check_images(spec: DatasetSpec) -> None:
    schema = spec.schema
    if spec.format != "arrays" or schema.target is not None or not schema.classes:
        raise InvalidDatasetError("images come as `arrays`, with `classes` and without `target`")
    if len(set(schema.classes)) != len(schema.classes) or len(schema.classes) > MAX_CATEGORIES:
        raise InvalidDatasetError("`classes` are distinct")
    if schema.images is not None:
        _check_bounds("images", schema.images.min, schema.images.max)


def _check_column(column: Column) -> None:
    if column.type == "category":
        found = column.categories or []
        if column.min is not None or column.max is not None or len(set(found)) != len(found):
            raise InvalidDatasetError(f"the column `{column.name}` has distinct `categories` and no bounds")
        if not MIN_CATEGORIES <= len(found) <= MAX_CATEGORIES:
            raise InvalidDatasetError(f"the column `{column.name}` has {MIN_CATEGORIES} to {MAX_CATEGORIES} categories")
        return
    if column.categories is not None or column.min is None or column.max is None:
        raise InvalidDatasetError(f"the column `{column.name}` has public bounds `min` and `max`, and no categories")
    _check_bounds(column.name, column.min, column.max)
    if column.type == "int" and not (column.min.is_integer() and column.max.is_integer()):
        raise InvalidDatasetError(f"the bounds of `{column.name}` are whole numbers, as its type is `int`")


def _check_bounds(name: str, low: float, high: float) -> None:
    largest = max(abs(low), abs(high))
    if not (math.isfinite(low) and math.isfinite(high) and largest <= _MAX_BOUND):
        raise InvalidDatasetError(f"the bounds of `{name}` are numbers of at most {_MAX_BOUND:g}")
    # Nearer together than this, float32 could not tell them apart.
    if not high - low > _MIN_RELATIVE_RANGE * largest:
        raise InvalidDatasetError(f"the bounds of `{name}`: `min` is below `max`, and not by a hair")


def _check_privacy(privacy: Privacy) -> None:
    if privacy.visibility == "public":
        if not (privacy.reason or "").strip():
            raise InvalidDatasetError("a public dataset says in `reason` why it may be trained on without a budget")
        if (privacy.unit, privacy.n_public, privacy.budget) != (None, None, None):
            raise InvalidDatasetError("a public dataset has no unit, size or budget")
        return
    if privacy.unit is None or privacy.n_public is None or privacy.budget is None or privacy.reason is not None:
        raise InvalidDatasetError("a private dataset has `unit`, `n_public` and `budget`, and no `reason`")
    epsilon, delta = privacy.budget.epsilon, privacy.budget.delta
    if not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise InvalidDatasetError(f"the budget's `epsilon` is between {MIN_EPSILON:g} and {MAX_EPSILON:g}")
    # Written so that NaN fails it.
    if not (MIN_DELTA <= delta < MAX_DELTA and delta * privacy.n_public < 1.0):
        raise InvalidDatasetError(
            f"the budget's `delta` is below {MAX_DELTA:g} and below 1 / `n_public`: above it whole records may be "
            "given away"
        )


def to_builtins(spec: DatasetSpec) -> dict[str, Any]:
    """Return the declaration as JSON-ready values, without fields that are not set."""
    plain: dict[str, Any] = _without_none(msgspec.to_builtins(spec))
    return plain


def _without_none(value: Any) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
