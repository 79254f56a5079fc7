"""What the service says of plans and jobs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job would cost and whether it fits; `rdp_epsilon` is information, not what is enforced."""

    private: bool
    steps: int
    sample_rate: float
    noise_multiplier: float | None = None
    clip_norm: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    n_public: int | None = None
    fits: bool = True
    largest_epsilon: float | None = None
    epsilon_spent_before: float | None = None
    epsilon_spent_after: float | None = None
    accountant: str | None = None
    rdp_epsilon: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is; ε is that of the steps charged so far."""

    step: int
    steps: int
    epsilon_charged: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """Why a job failed, without data."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The version a job made."""

    model: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A training job as it stands."""

    id: str
    name: str
    state: str
    dataset: str
    into: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: Progress
    error: JobFailure | None
    result: JobResult | None
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a job's log."""

    at: int
    text: str
