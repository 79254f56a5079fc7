"""The JSON of datasets, budgets and jobs."""

from typing import Any

from modelkeep_platform.http.wire.fields import Answer, Body, Count, Digest, Text, Word
from modelkeep_platform.http.wire.models import Upload


class NewDataset(Body):
    """Describes a dataset to be uploaded; docs/reference/datasets.md explains each field."""

    name: Word
    format: Word
    schema: dict[str, Any]
    privacy: dict[str, Any]
    size_bytes: Count
    sha256: Digest
    description: Text = ""


class DatasetCreated(Answer):
    """Where the dataset's bytes go."""

    dataset_id: str
    name: str
    upload: Upload


class Dataset(Answer):
    """A dataset; of a private one the number of rows is never shown, only the declared one."""

    id: str
    name: str
    description: str
    format: str
    schema: dict[str, Any]
    privacy: dict[str, Any]
    state: str
    created_at: int


class Charge(Answer):
    """What one job spent."""

    job_id: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    state: str
    at: int


class Budget(Answer):
    """A dataset's privacy budget."""

    dataset: str
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: list[Charge]


class JobSpec(Body):
    """Declares a training run; docs/reference/jobs.md explains each field."""

    dataset: Word
    into: Word
    model: dict[str, Any]
    loss: Word
    optimizer: dict[str, Any]
    steps: Count
    sample_rate: float
    privacy: dict[str, Any] | None = None
    microbatch: Count | None = None
    checkpoint_every: Count | None = None


class Plan(Answer):
    """What a job would cost and whether it fits."""

    private: bool
    steps: int
    sample_rate: float
    noise_multiplier: float | None
    clip_norm: float | None
    epsilon: float | None
    delta: float | None
    n_public: int | None
    fits: bool
    largest_epsilon: float | None
    epsilon_spent_before: float | None
    epsilon_spent_after: float | None
    accountant: str | None
    rdp_epsilon: float | None


class Progress(Answer):
    """How far a job is."""

    step: int
    steps: int
    epsilon_charged: float | None


class JobError(Answer):
    """Why a job failed, without data."""

    code: str
    message: str


class JobResult(Answer):
    """The version a job made."""

    model: str
    version: int


class Job(Answer):
    """A training run."""

    id: str
    name: str
    state: str
    dataset: str
    into: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: Progress
    error: JobError | None
    result: JobResult | None
    created_by: str


class JobLine(Answer):
    """One line of a job's log."""

    at: int
    text: str
