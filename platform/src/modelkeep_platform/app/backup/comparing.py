"""What a restored ledger has lost: the restored log against the newest checkpoint that is held elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.backup.files import RESTORED
from modelkeep_platform.app.ground import Ground
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.audit.checkpoint import Checkpoint, verify
from modelkeep_platform.audit.tree import Nodes, tree_root
from modelkeep_platform.core.errors import ConflictError, IntegrityError
from modelkeep_platform.core.events import Event, Facts, Outcome
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refs import PLATFORM_REF
from modelkeep_platform.privacy.epochs import LedgerEpoch, current_epoch, end_freeze
from modelkeep_platform.storage.tables.audit import audit_checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Whether the frozen budgets were freed (else they are exhausted), how many, and the ledger epoch they are in."""

    freed: bool
    budgets: int
    epoch: LedgerEpoch


def compare(data: Path, *, checkpoint: Path | None) -> Compared:
    """Compare a restored log with the newest checkpoint that is held elsewhere; free its budgets or end them.

    Args:
        data: the restored data folder.
        checkpoint: the signed note; None when nobody holds one.

    With a checkpoint that the restored log contains, nothing is known to be lost, and budgets are freed. With a larger
    one, or none, what was spent after the backup cannot be known: every frozen budget counts as exhausted.

    Raises:
        ConflictError: nothing was restored here, or it was compared already.
        IntegrityError: the checkpoint is not this log's, or the log does not contain it.
    """
    data = data.resolve()
    settings = settings_file.load(data)
    if not (data / RESTORED).exists():
        raise ConflictError("no budget waits for a comparison in this folder", code="nothing_restored")
    restored_size = int(json.loads((data / RESTORED).read_bytes())["size"])
    ground = Ground(data=data, settings=settings)
    try:
        held = None if checkpoint is None else _verified(ground, settings, checkpoint)
        compared = _settle(ground, held, restored_size=restored_size)
    finally:
        ground.close()
    (data / RESTORED).unlink()
    return compared


def _verified(ground: Ground, settings: Settings, checkpoint: Path) -> Checkpoint:
    note = checkpoint.read_text(encoding="utf-8")
    return verify(note, origin=settings.log_origin, public_key=ground.signer.public_key())


def _settle(ground: Ground, held: Checkpoint | None, *, restored_size: int) -> Compared:
    freed = held is not None and held.size <= restored_size
    with ground.database.platform() as tx:
        if held is not None and freed and tree_root(Nodes(tx), held.size) != held.root:
            raise IntegrityError("the restored log does not contain this checkpoint", code="log_changed")
        budgets, epoch = end_freeze(tx, freed=freed), current_epoch(tx)
        size = -1 if held is None else held.size
        facts: Facts = {"freed": freed, "budgets": budgets, "checkpoint_size": size, **epoch.facts()}
        action = "platform:compare-budgets"
        event = Event(tenant=PLATFORM, action=action, outcome=Outcome.DONE, ref=PLATFORM_REF, facts=facts)
        ground.log.record(tx, event)
        tx.bump_epoch()
    return Compared(freed=freed, budgets=budgets, epoch=epoch)


def newest_checkpoint(data: Path) -> str:
    """Return the newest signed checkpoint, to be kept elsewhere.

    Raises:
        IntegrityError: the log has none yet.
    """
    database = open_database(data.resolve())
    try:
        with database.platform(read_only=True) as tx:
            row = tx.first(sa.select(audit_checkpoints.c.note).order_by(audit_checkpoints.c.size.desc()).limit(1))
    finally:
        database.close()
    if row is None:
        raise IntegrityError("the log has no checkpoint yet; start the server once", code="log_empty")
    return str(row["note"])
