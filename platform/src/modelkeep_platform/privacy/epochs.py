"""The ledger's epochs: a restore begins a new one, and nothing that was reserved before moves again.

A restored ledger may be older than what was spent. What it holds as reserved may have run, here or on a machine that
is still up. So a restore moves every budget to a new epoch, frozen. A reservation keeps the epoch it was made in, and
the ledger moves one only while that is its budget's: whoever comes back with it is refused, whatever lease it has.

The number of an epoch only grows in one history. Two restores of one backup come to the same number; the random id
tells them apart, in the log and for whoever compares.
"""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.events import Facts
from modelkeep_platform.core.ids import new_object_id
from modelkeep_platform.core.ports import Clock, Entropy
from modelkeep_platform.privacy.budgets import Freeze
from modelkeep_platform.storage.tables.privacy import ledger_epochs, privacy_budgets
from modelkeep_platform.storage.transactions import PlatformTransaction

RESTORED: Final = "restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEpoch:
    """One epoch.

    Args:
        number: 1 for the installation's first; only grows.
        id: random, never the same twice.
        began_at: in seconds since 1970.
        reason: ``installed`` or ``restored``.
    """

    number: int
    id: str
    began_at: int
    reason: str

    def facts(self) -> Facts:
        """Return what the log is told of it."""
        return {"ledger_epoch": self.number, "ledger_epoch_id": self.id}


def current_epoch(tx: PlatformTransaction) -> LedgerEpoch:
    """Return the epoch the ledger is in.

    Raises:
        IntegrityError: code ``ledger_epoch_missing``: the database says of none.
    """
    (row,) = tx.all(sa.select(ledger_epochs).where(ledger_epochs.c.number == tx.ledger_epoch()))
    return LedgerEpoch(number=row["number"], id=row["id"], began_at=row["began_at"], reason=row["reason"])


def begin_restored_epoch(tx: PlatformTransaction, *, clock: Clock, entropy: Entropy) -> tuple[LedgerEpoch, int]:
    """Begin an epoch, move every budget to it and freeze it; return the epoch and how many budgets were frozen by it.

    Args:
        tx: the transaction in which the restored database becomes usable.
        clock: dates the epoch.
        entropy: makes its id.
    """
    begun = LedgerEpoch(
        number=tx.ledger_epoch() + 1,
        id=new_object_id(entropy, "led"),
        began_at=clock.now_s(),
        reason=RESTORED,
    )
    tx.execute(
        sa.insert(ledger_epochs).values(number=begun.number, id=begun.id, began_at=begun.began_at, reason=begun.reason)
    )
    # INVARIANT: the version moves too, so that no move decided on the earlier row takes effect.
    tx.execute(sa.update(privacy_budgets).values(epoch=begun.number, version=privacy_budgets.c.version + 1))
    return begun, _freeze(tx, Freeze.NONE, Freeze.RESTORED)


def end_freeze(tx: PlatformTransaction, *, freed: bool) -> int:
    """Free the budgets that a restore froze, or declare them exhausted; return how many there were."""
    return _freeze(tx, Freeze.RESTORED, Freeze.NONE if freed else Freeze.EXHAUSTED)


def _freeze(tx: PlatformTransaction, before: Freeze, after: Freeze) -> int:
    moved = sa.update(privacy_budgets).where(privacy_budgets.c.frozen == before)
    return tx.execute(moved.values(frozen=after, version=privacy_budgets.c.version + 1)).rowcount
