"""The stored tree: hashes of complete subtrees, from which roots and proofs take O(log n) reads."""

import sqlalchemy as sa

from modelkeep_platform.audit.merkle import consistency_path, inclusion_path, range_root
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_nodes
from modelkeep_platform.storage.transactions import PlatformTransaction


class Nodes:
    """Reads the stored hashes within one transaction."""

    def __init__(self, tx: PlatformTransaction) -> None:
        self._tx = tx

    def size(self) -> int:
        """Return the number of leaves that the newest checkpoint commits to."""
        row = self._tx.first(sa.select(sa.func.max(audit_checkpoints.c.size).label("size")))
        return 0 if row is None or row["size"] is None else int(row["size"])

    def hash(self, level: int, position: int) -> bytes:
        """Return the hash of one complete subtree.

        Raises:
            IntegrityError: it is not there: the log was damaged.
        """
        row = self._tx.first(
            sa.select(audit_nodes.c.hash).where(audit_nodes.c.level == level, audit_nodes.c.position == position)
        )
        if row is None:
            raise IntegrityError("the audit log's tree has a hole; restore it from a backup", code="audit_damaged")
        return bytes(row["hash"])


def tree_root(nodes: Nodes, size: int) -> bytes:
    """Return the root over the first `size` leaves."""
    return range_root(0, size, nodes.hash)


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """Return the path that shows leaf `index` in the tree of `size` leaves."""
    return inclusion_path(index, size, nodes.hash)


def consistency_proof(nodes: Nodes, old: int, new: int) -> list[bytes]:
    """Return the proof that the tree of `new` leaves extends that of `old`."""
    return consistency_path(old, new, nodes.hash)
