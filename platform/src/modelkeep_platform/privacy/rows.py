"""Rows of the ledger's tables, to and from values; vectors of whole numbers and their sums."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.budgets import ChargeView, Reservation, ReservationState
from modelkeep_platform.privacy.grid import MICRO, UNITS, Vector
from modelkeep_platform.privacy.plan import MechanismPlan

_PLANS: Final = 256
_MICRO_UNITS: Final = UNITS // MICRO
_VECTOR: Final = msgspec.json.Decoder(Vector)
_PLAN: Final = msgspec.json.Decoder(MechanismPlan)


def dump_vector(vector: Vector) -> str:
    """Write a vector for its column."""
    return msgspec.json.encode(vector).decode("ascii")


def load_vector(text: str) -> Vector:
    """Read what `dump_vector` wrote."""
    return _VECTOR.decode(text)


def dump_plan(plan: MechanismPlan) -> str:
    """Write a plan for its column; floats keep every bit."""
    return msgspec.json.encode(plan).decode()


@lru_cache(maxsize=_PLANS)
def _load_plan(text: str) -> MechanismPlan:
    # A reservation's plan is read with each of its moves, and never changes.
    return _PLAN.decode(text)


def plus(left: Vector, right: Vector) -> Vector:
    """Add order by order."""
    return tuple([a + b for a, b in zip(left, right, strict=True)])


def times(vector: Vector, count: int) -> Vector:
    """Multiply each order by `count`."""
    return tuple([unit * count for unit in vector])


def shown(units: int) -> float:
    """Return units as an epsilon, rounded up to a millionth."""
    return -(-units // _MICRO_UNITS) / MICRO


def reservation_of_row(row: Mapping[Any, Any]) -> Reservation:
    """Read a row of `privacy_reservations`."""
    return Reservation(
        id=ObjectId(row["reservation_id"]),
        dataset_id=ObjectId(row["dataset_id"]),
        job_id=ObjectId(row["job_id"]),
        plan=_load_plan(row["plan"]),
        steps=row["steps"],
        charged_steps=row["charged_steps"],
        state=ReservationState(row["state"]),
        fence=row["fence"],
        epoch=row["epoch"],
    )


def charge_view(row: Mapping[Any, Any]) -> ChargeView:
    """Show a row of `privacy_reservations` as a line of the budget."""
    found = reservation_of_row(row)
    return ChargeView(
        job_id=found.job_id,
        noise_multiplier=found.plan.noise_multiplier,
        sample_rate=found.plan.sample_rate,
        steps=found.charged_steps,
        reserved_steps=found.steps - found.charged_steps if found.state is ReservationState.OPEN else 0,
        state=found.state,
        at=row["updated_at"],
    )
