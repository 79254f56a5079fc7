"""The integrator: the one holder of a lease that gives entries their index and signs checkpoints.

Each round takes the entries without an index in order of arrival, extends the tree, signs the new
checkpoint and commits all of it in one transaction: there is never a checkpoint of what is not stored.

Before it signs, it checks that the stored tree is the one that the newest checkpoint commits to, that this checkpoint
is signed by the platform's own key, and that the log is no shorter and no other than what this process signed last.
So whoever can write the database gets no signature over a changed log; the entries wait, and the fault is logged. Not
noticed here, but by whoever keeps an earlier checkpoint: a log that was rolled back while no server ran.
"""

import logging
import threading
from contextlib import suppress
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.audit.checkpoint import Checkpoint, sign, verify
from modelkeep_platform.audit.entries import leaf_data
from modelkeep_platform.audit.merkle import leaf_hash, node_hash
from modelkeep_platform.audit.tree import Nodes, tree_root
from modelkeep_platform.core.errors import IntegrityError, ModelkeepError
from modelkeep_platform.core.ports import Clock, Entropy, Signer
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_entries, audit_lease, audit_nodes
from modelkeep_platform.storage.transactions import PlatformTransaction

INTERVAL_S: Final = 0.5
LEASE_S: Final = 10
GROUP: Final = 5_000

_log = logging.getLogger(__name__)


class Integrator:
    """Integrates entries while it holds the lease.

    Args:
        database: holds entries and tree.
        signer: the platform's checkpoint key.
        origin: the log's name, the first line of each checkpoint.
        clock: times the lease.
        entropy: names this holder.
    """

    def __init__(self, *, database: Database, signer: Signer, origin: str, clock: Clock, entropy: Entropy) -> None:
        self._database = database
        self._signer = signer
        self._origin = origin
        self._clock = clock
        self._holder = entropy.random_bytes(16).hex()
        self._signed: Checkpoint | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-integrator", daemon=True)

    def start(self) -> None:
        """Begin integrating every half second."""
        self._thread.start()

    def close(self) -> None:
        """Integrate what is left, stop, and let go of the lease."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def integrate_now(self) -> int:
        """Integrate every entry there is; return the tree's size. Another holder's lease leaves it unchanged.

        Raises:
            IntegrityError: the stored tree is not what was signed; nothing is signed.
        """
        while True:
            with self._database.platform(read_only=True) as tx:
                size = Nodes(tx).size()
                if not self._anything_to_do(tx):
                    return size
            with self._database.platform() as tx:
                size = Nodes(tx).size()
                if not self._hold_lease(tx):
                    return size
                added, signed = self._integrate_group(tx, size)
            self._signed = signed or self._signed  # after the commit: what was rolled back was never published
            if added < GROUP:
                return size + added

    def _anything_to_do(self, tx: PlatformTransaction) -> bool:
        """Return whether this holder has to write; most looks find nothing, and then nobody waits for it."""
        now, lease = self._clock.now_s(), tx.first(sa.select(audit_lease))
        if lease is None or lease["until"] < now:
            return True
        if lease["holder"] != self._holder:
            return False
        waiting = sa.select(audit_entries.c.seq).where(audit_entries.c.log_index.is_(None)).limit(1)
        renewable = lease["until"] <= now + LEASE_S // 2
        return renewable or tx.first(waiting) is not None or self._newest(tx) is None

    def _hold_lease(self, tx: PlatformTransaction) -> bool:
        now = self._clock.now_s()
        claimed = tx.execute(
            sa.update(audit_lease)
            .where(sa.or_(audit_lease.c.holder == self._holder, audit_lease.c.until < now))
            .values(holder=self._holder, until=now + LEASE_S)
        )
        if claimed.rowcount:
            return True
        if tx.first(sa.select(audit_lease)) is not None:
            return False
        tx.execute(sa.insert(audit_lease).values(id=1, holder=self._holder, until=now + LEASE_S))
        return True

    def _integrate_group(self, tx: PlatformTransaction, size: int) -> tuple[int, Checkpoint | None]:
        pending = (
            sa.select(audit_entries.c.seq, audit_entries.c.salt, audit_entries.c.body)
            .where(audit_entries.c.log_index.is_(None))
            .order_by(audit_entries.c.seq)
            .limit(GROUP)
        )
        rows = tx.all(pending)
        newest = self._newest(tx)
        if not rows and newest is not None:
            return 0, None
        self._check(tx, newest)
        if not rows:
            return 0, self._sign(tx, 0)
        tx.execute(
            sa.update(audit_entries)
            .where(audit_entries.c.seq == sa.bindparam("at"))
            .values(log_index=sa.bindparam("n")),
            [{"at": row["seq"], "n": size + offset} for offset, row in enumerate(rows)],
        )
        leaves = [leaf_hash(leaf_data(row["salt"], row["body"])) for row in rows]
        tx.execute(sa.insert(audit_nodes), _new_nodes(Nodes(tx), size, leaves))
        return len(rows), self._sign(tx, size + len(rows))

    def _newest(self, tx: PlatformTransaction) -> str | None:
        row = tx.first(sa.select(audit_checkpoints.c.note).order_by(audit_checkpoints.c.size.desc()).limit(1))
        return None if row is None else str(row["note"])

    def _check(self, tx: PlatformTransaction, note: str | None) -> None:
        """Raise unless the stored tree is the one last signed, and extends what this process signed."""
        nodes, mine = Nodes(tx), self._signed
        size = 0
        if note is not None:
            newest = verify(note, origin=self._origin, public_key=self._signer.public_key())
            size = newest.size
            if size != nodes.size() or tree_root(nodes, size) != newest.root:
                raise _changed()
        if mine is not None and (size < mine.size or tree_root(nodes, mine.size) != mine.root):
            raise _changed()

    def _sign(self, tx: PlatformTransaction, size: int) -> Checkpoint:
        checkpoint = Checkpoint(origin=self._origin, size=size, root=tree_root(Nodes(tx), size))
        note = sign(checkpoint, self._signer)
        tx.execute(
            sa.insert(audit_checkpoints).values(
                size=size, root=checkpoint.root, note=note, created_at=self._clock.now_s()
            )
        )
        return checkpoint

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(INTERVAL_S)
            try:
                self.integrate_now()
            except (SQLAlchemyError, ModelkeepError):
                _log.exception("the audit log could not be integrated; it is tried again")
        # Whoever is started next need not wait until it is over, nor until a clock that was set back has caught up.
        with suppress(SQLAlchemyError, ModelkeepError), self._database.platform() as tx:
            tx.execute(sa.update(audit_lease).where(audit_lease.c.holder == self._holder).values(until=0))


def _changed() -> IntegrityError:
    return IntegrityError(
        "the stored audit log is not the one that was signed last; nothing is signed until it is restored",
        code="log_changed",
    )


def _new_nodes(nodes: Nodes, size: int, leaves: list[bytes]) -> list[dict[str, object]]:
    """Return the rows of every subtree that `leaves`, appended at `size`, complete."""
    level, position, hashes = 0, size, leaves
    rows: list[dict[str, object]] = []
    while hashes:
        rows += [{"level": level, "position": position + at, "hash": value} for at, value in enumerate(hashes)]
        if position & 1:
            hashes = [nodes.hash(level, position - 1), *hashes]
            position -= 1
        pairs = len(hashes) // 2
        hashes = [node_hash(hashes[2 * at], hashes[2 * at + 1]) for at in range(pairs)]
        level, position = level + 1, position // 2
    return rows
