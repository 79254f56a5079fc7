"""What is kept of a version: its graph, sealed under the model's key, and the description made from both."""

import json

from modelkeep_platform.core.errors import ConflictError, IntegrityError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Sealer
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.models.graph.format import Graph, parse
from modelkeep_platform.models.values import ModelVersion
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.storage.transactions import Row, System


class Versions:
    """Seals, opens and describes versions; it decides nothing, whoever calls it has.

    Args:
        database: where versions are.
        sealer: seals their graphs.
    """

    def __init__(self, *, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    def seal_graph(self, owner: TenantId, model_id: ObjectId, version: int, graph: Graph) -> bytes:
        """Return `graph` sealed for one version; the model's key must exist."""
        return self._sealer.seal(
            owner,
            model_id,
            graph.to_json(),
            purpose=Purpose.GRAPH,
            version=version,
            name="graph",
            suite=Suite.SMALL,
        )

    def open_graph(self, owner: TenantId, model_id: ObjectId, version: int) -> Graph:
        """Return a version's graph.

        Raises:
            ConflictError: the version was deleted meanwhile.
            IntegrityError: what is stored is not the graph that the version names.
        """
        return self._unseal(self._row(owner, model_id, version, reason="open a graph"), owner)

    def show(self, owner: TenantId, model_id: ObjectId, version: int) -> ModelVersion:
        """Return the description of a version; raises as `open_graph` does."""
        return self.describe(self._row(owner, model_id, version, reason="show a version"), owner)

    def describe(self, row: Row, owner: TenantId) -> ModelVersion:
        """Return the description of the version in `row`; raises IntegrityError as `open_graph` does."""
        with self._database.tenant(owner, by=System(reason="show a version"), read_only=True) as tx:
            model = tx.first(tx.select(models).where(models.c.id == row["model_id"]))
        graph = self._unseal(row, owner)
        return ModelVersion(
            model_id=ObjectId(row["model_id"]),
            name="" if model is None else model["name"],
            version=row["version"],
            state=row["state"],
            graph_sha256=row["graph_sha256"],
            weights_sha256=row["weights_sha256"],
            weights_bytes=row["weights_bytes"],
            inputs=graph.inputs,
            outputs=graph.outputs,
            provenance=json.loads(row["provenance"]),
            created_at=row["created_at"],
            created_by=row["created_by"],
        )

    def _row(self, owner: TenantId, model_id: ObjectId, version: int, *, reason: str) -> Row:
        where = (model_versions.c.model_id == model_id, model_versions.c.version == version)
        with self._database.tenant(owner, by=System(reason=reason), read_only=True) as tx:
            row = tx.first(tx.select(model_versions).where(*where))
        if row is None:
            raise ConflictError("the version was deleted meanwhile", code="deleted")
        return row

    def _unseal(self, row: Row, owner: TenantId) -> Graph:
        opened = self._sealer.open(
            owner,
            ObjectId(row["model_id"]),
            row["graph_sealed"],
            purpose=Purpose.GRAPH,
            version=row["version"],
            name="graph",
            suite=Suite.SMALL,
        )
        graph = parse(opened)
        if graph.sha256() != row["graph_sha256"]:
            raise IntegrityError("a stored graph is not the one its version names", code="graph_mismatch")
        return graph
