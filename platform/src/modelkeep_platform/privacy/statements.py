"""What the ledger asks of its tables, prepared once.

INVARIANT: `MOVE_BUDGET` and `MOVE_RESERVATION` change a row only while its version is still the one that was read.
"""

from typing import Final

import sqlalchemy as sa

from modelkeep_platform.privacy.budgets import ReservationState
from modelkeep_platform.storage.prepared import PreparedSelect, PreparedUpdate
from modelkeep_platform.storage.tables.privacy import privacy_budgets, privacy_charges, privacy_reservations

BUDGET: Final = PreparedSelect(privacy_budgets, where=(privacy_budgets.c.dataset_id == sa.bindparam("dataset_id"),))
MOVE_BUDGET: Final = PreparedUpdate(
    privacy_budgets,
    "charged",
    "reserved",
    "version",
    where=(
        privacy_budgets.c.dataset_id == sa.bindparam("of_dataset"),
        privacy_budgets.c.version == sa.bindparam("read_version"),
    ),
)
RESERVATION: Final = PreparedSelect(
    privacy_reservations, where=(privacy_reservations.c.reservation_id == sa.bindparam("reservation_id"),)
)
RESERVATIONS_OF_JOB: Final = PreparedSelect(
    privacy_reservations,
    where=(privacy_reservations.c.job_id == sa.bindparam("job_id"),),
    order_by=(privacy_reservations.c.attempt.desc(),),
)
CHARGES_SHOWN: Final = 1_000
NEWEST_CHARGES: Final = PreparedSelect(
    privacy_reservations,
    where=(
        privacy_reservations.c.dataset_id == sa.bindparam("dataset_id"),
        # Not what ended before its first step: it holds nothing and took nothing, and costs nothing to make.
        sa.or_(privacy_reservations.c.charged_steps > 0, privacy_reservations.c.state == ReservationState.OPEN),
    ),
    order_by=(privacy_reservations.c.created_at.desc(), privacy_reservations.c.reservation_id.desc()),
    limit=CHARGES_SHOWN,
)
"""What holds some of a dataset's budget, or took some."""
MOVE_RESERVATION: Final = PreparedUpdate(
    privacy_reservations,
    "charged_steps",
    "state",
    "fence",
    "version",
    "updated_at",
    where=(
        privacy_reservations.c.reservation_id == sa.bindparam("of_reservation"),
        privacy_reservations.c.version == sa.bindparam("read_version"),
    ),
)
SEGMENT: Final = PreparedSelect(
    privacy_charges,
    privacy_charges.c.steps,
    where=(
        privacy_charges.c.reservation_id == sa.bindparam("reservation_id"),
        privacy_charges.c.fence == sa.bindparam("fence"),
        privacy_charges.c.segment == sa.bindparam("segment"),
    ),
)
LAST_SEGMENT: Final = PreparedSelect(
    privacy_charges,
    sa.func.max(privacy_charges.c.segment).label("segment"),
    where=(
        privacy_charges.c.reservation_id == sa.bindparam("reservation_id"),
        privacy_charges.c.fence == sa.bindparam("fence"),
    ),
)
