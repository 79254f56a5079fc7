"""What the registry of datasets says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.datasets.schema import Schema
from modelkeep_platform.datasets.spec import Format, Private, Public
from modelkeep_platform.privacy.budgets import ChargeView
from modelkeep_platform.uploads.service import Upload

PENDING = "pending"
READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset's declaration; how many rows it has is not known here.

    Args:
        id: its object id.
        name: its name in its owner's tenant.
        description: the owner's words.
        format: how its bytes are laid out.
        schema: as JSON has it.
        privacy: as JSON has it.
        state: ``pending`` or ``ready``.
        created_at: seconds since the epoch.
        owner: the owner's slug.
    """

    id: ObjectId
    name: str
    description: str
    format: str
    schema: Mapping[str, Any]
    privacy: Mapping[str, Any]
    state: str
    created_at: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """A dataset that waits for its bytes."""

    dataset_id: ObjectId
    name: str
    upload: Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """What training needs to know of a dataset.

    Args:
        ref: the dataset.
        name: as the caller named it, ``owner~name`` for a foreign one.
        format: how its bytes are laid out.
        schema: its columns or images.
        privacy: its budget, or why it is public.
        size_bytes: the length of the payload; internal, never shown.
    """

    ref: ResourceRef
    name: str
    format: Format
    schema: Schema
    privacy: Private | Public
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A dataset's budget, under its name."""

    dataset: str
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: tuple[ChargeView, ...]
