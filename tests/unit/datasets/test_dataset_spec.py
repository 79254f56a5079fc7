"""What a declaration may say, and which refusal each other one gets."""

import copy
from typing import Any

import pytest

from modelkeep_platform.datasets.spec import InvalidDatasetError, parse, to_builtins

TABLE: dict[str, Any] = {
    "name": "cells",
    "format": "csv",
    "schema": {
        "columns": [
            {"name": "size", "type": "float", "min": 0.0, "max": 10.0},
            {"name": "count", "type": "int", "min": -4, "max": 4},
            {"name": "kind", "type": "category", "categories": ["a", "b", "c"]},
            {"name": "label", "type": "category", "categories": ["no", "yes"]},
        ],
        "target": "label",
    },
    "privacy": {"visibility": "private", "unit": "row", "n_public": 100, "budget": {"epsilon": 2.5, "delta": 1e-5}},
}
IMAGES: dict[str, Any] = {
    "name": "digits",
    "format": "arrays",
    "schema": {"images": {"shape": [1, 2, 2], "min": 0, "max": 16}, "classes": ["0", "1"]},
    "privacy": {"visibility": "public", "reason": "a published benchmark"},
}


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return `base` with the field at the dotted `path` set, or removed when `value` is ``...``."""
    document = copy.deepcopy(base)
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return document


def test_a_declaration_survives_its_own_json() -> None:
    for document in (TABLE, IMAGES):
        spec = parse(document)
        assert parse(to_builtins(spec)) == spec


def test_features_target_and_scaling_follow_the_declared_bounds() -> None:
    spec = parse(TABLE)
    assert [column.name for column in spec.features()] == ["size", "count", "kind"]
    assert (spec.class_count(), spec.feature_shape(), spec.private) == (2, (3,), True)
    scale, shift = spec.scaling()
    assert scale == [0.2, 0.25, 1.0]
    assert shift == [-1.0, 0.0, -1.0]


def test_images_are_scaled_by_one_factor() -> None:
    spec = parse(IMAGES)
    assert spec.scaling() == ([0.125], [-1.0])
    assert (spec.class_count(), spec.feature_shape(), spec.private) == (2, (1, 2, 2), False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("surprise", 1, id="unknown field"),
        pytest.param("format", "parquet", id="unknown format"),
        pytest.param("format", "pickle", id="pickle is no format"),
        pytest.param("schema.columns", [], id="no columns"),
        pytest.param("schema.columns.0.name", "count", id="a name twice"),
        pytest.param("schema.columns.0.type", "object", id="unknown type"),
        pytest.param("schema.columns.0.min", ..., id="no lower bound"),
        pytest.param("schema.columns.0.min", 10.0, id="bounds equal"),
        pytest.param("schema.columns.0.min", 11.0, id="bounds reversed"),
        pytest.param("schema.columns.0.min", 10.0 - 1e-12, id="bounds a hair apart"),
        pytest.param("schema.columns.0.max", float("inf"), id="infinite bound"),
        pytest.param("schema.columns.0.max", float("nan"), id="bound not a number"),
        pytest.param("schema.columns.0.max", 1e300, id="huge bound"),
        pytest.param("schema.columns.0.max", "10", id="bound as text"),
        pytest.param("schema.columns.0.categories", ["a", "b"], id="number with categories"),
        pytest.param("schema.columns.1.max", 4.5, id="bound of an int not whole"),
        pytest.param("schema.columns.2.categories", ["a"], id="one category"),
        pytest.param("schema.columns.2.categories", ["a", "a"], id="a category twice"),
        pytest.param("schema.columns.2.min", 0, id="category with a bound"),
        pytest.param("schema.target", "nothing", id="target is no column"),
        pytest.param("schema.classes", ["a", "b"], id="classes without images"),
        pytest.param("privacy.visibility", "secret", id="unknown visibility"),
        pytest.param("privacy.unit", "patient", id="unknown unit"),
        pytest.param("privacy.n_public", 0, id="nobody"),
        pytest.param("privacy.n_public", ..., id="size not declared"),
        pytest.param("privacy.budget", ..., id="no budget"),
        pytest.param("privacy.reason", "because", id="private with a reason"),
        pytest.param("privacy.budget.epsilon", 0.0, id="epsilon zero"),
        pytest.param("privacy.budget.epsilon", -1.0, id="epsilon negative"),
        pytest.param("privacy.budget.epsilon", float("nan"), id="epsilon not a number"),
        pytest.param("privacy.budget.epsilon", 20.1, id="epsilon huge"),
        pytest.param("privacy.budget.epsilon", 5e-324, id="epsilon subnormal"),
        pytest.param("privacy.budget.delta", 0.0, id="delta zero"),
        pytest.param("privacy.budget.delta", 1.0, id="delta one"),
        pytest.param("privacy.budget.delta", 1e-3, id="delta too large"),
        pytest.param("privacy.budget.delta", float("nan"), id="delta not a number"),
    ],
)
def test_a_table_is_refused(path: str, value: object) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        parse(changed(TABLE, path, value))
    assert caught.value.error_code == "invalid_dataset"


def test_delta_is_below_one_over_the_declared_size() -> None:
    assert parse(changed(TABLE, "privacy.n_public", 99_999)).private
    with pytest.raises(InvalidDatasetError, match="n_public"):
        parse(changed(TABLE, "privacy.n_public", 100_001))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("format", "csv", id="images as csv"),
        pytest.param("schema.images.shape", [2, 2], id="two dimensions"),
        pytest.param("schema.images.shape", [1, 0, 2], id="empty dimension"),
        pytest.param("schema.images.shape", [1, 1 << 20, 2], id="huge dimension"),
        pytest.param("schema.classes", ["0", "0"], id="a class twice"),
        pytest.param("schema.classes", [], id="no classes"),
        pytest.param("schema.target", "0", id="images with a target"),
        pytest.param("privacy.reason", ..., id="public without a reason"),
        pytest.param("privacy.reason", "   ", id="an empty reason"),
        pytest.param("privacy.n_public", 5, id="public with a size"),
    ],
)
def test_images_are_refused(path: str, value: object) -> None:
    with pytest.raises(InvalidDatasetError) as caught:
        parse(changed(IMAGES, path, value))
    assert caught.value.error_code == "invalid_dataset"
