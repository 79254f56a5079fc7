"""What a job declares. Never code: a graph or a model's name, a loss, an optimizer, how many steps, which privacy."""

from typing import Annotated, Any, Literal

import msgspec

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.ids import check_name

MAX_STEPS = 1_000_000


class Optimizer(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The optimizer; `gd` takes every record in each step, `momentum` is SGD with momentum."""

    name: Literal["gd", "sgd", "momentum", "adam"]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    betas: (
        Annotated[list[Annotated[float, msgspec.Meta(ge=0, lt=1)]], msgspec.Meta(min_length=2, max_length=2)] | None
    ) = None
    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None


class JobPrivacy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The ε the job may cost, and the norm each record's gradient is clipped to."""

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=100)]
    clip_norm: Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class JobModel(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A graph, freshly initialised; or a model of the tenant to go on from, with its weights."""

    graph: dict[str, Any] | None = None
    name: str | None = None
    version: int | str | None = None


class JobSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole declaration; `docs/reference/jobs.md` explains each field."""

    dataset: str
    into: str
    model: JobModel
    loss: Literal["cross_entropy", "mse"]
    optimizer: Optimizer
    steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_STEPS)]
    sample_rate: Annotated[float, msgspec.Meta(gt=0, le=1)]
    privacy: JobPrivacy | None = None
    microbatch: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    checkpoint_every: Annotated[int, msgspec.Meta(ge=1, le=MAX_STEPS)] | None = None


class InvalidJobError(UnprocessableError):
    """The declaration cannot be; the message says which part."""

    code = "invalid_job"


def parse(value: object) -> JobSpec:
    """Check a declaration.

    Raises:
        InvalidJobError: a field is missing, unknown, out of bounds, or contradicts another.
    """
    try:
        spec = msgspec.convert(value, JobSpec)
    except msgspec.ValidationError as exc:
        text = str(exc)
        raise InvalidJobError(f"the declaration of the job: {text[:1].lower()}{text[1:]}") from exc
    check_name(spec.into, what="model")
    if (spec.model.graph is None) == (spec.model.name is None):
        raise InvalidJobError("`model` has a `graph`, or the `name` (and `version`) of a model to go on from")
    if spec.optimizer.name == "gd" and spec.sample_rate != 1.0:
        raise InvalidJobError("`gd` takes every record in each step: its `sample_rate` is 1")
    if (spec.optimizer.momentum is not None) != (spec.optimizer.name == "momentum"):
        raise InvalidJobError("`momentum` is given with the optimizer `momentum`, and with no other")
    if spec.optimizer.name != "adam" and (spec.optimizer.betas is not None or spec.optimizer.eps is not None):
        raise InvalidJobError("`betas` and `eps` are given with the optimizer `adam` alone")
    return spec
