"""Opens everything that an installation promises, with the platform's own readers."""

import hashlib
from pathlib import Path

import sqlalchemy as sa

from modelkeep_platform.app import administration
from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.storage.tables.datasets import datasets
from modelkeep_platform.storage.tables.models import model_aliases, model_versions, models
from modelkeep_platform.storage.tables.uploads import uploads


def opened(data: Path) -> set[str]:
    """Open every version and dataset that a platform lists, compare digests, verify its log; return what there is."""
    platform = Platform(data=data, settings=settings_file.load(data))
    found = set()
    try:
        with platform.ground.database.platform(read_only=True) as tx:
            names = {row["id"]: row["name"] for row in tx.all(sa.select(models))}
            versions = tx.all(sa.select(model_versions).where(model_versions.c.state == "ready"))
            aliases = {(row["model_id"], row["version"]) for row in tx.all(sa.select(model_aliases))}
            sets = tx.all(sa.select(datasets).where(datasets.c.state == "ready"))
            declared = {row["id"]: row["sha256"] for row in tx.all(sa.select(uploads))}
        assert aliases <= {(row["model_id"], row["version"]) for row in versions}
        for row in versions:
            place = (TenantId(row["tenant_id"]), ObjectId(row["model_id"]), row["version"])
            weights = b"".join(platform.rooms.models.open_weights(*place))
            assert hashlib.sha256(weights).hexdigest() == row["weights_sha256"]
            platform.rooms.models._versions.open_graph(*place)
            found.add(f"{names[row['model_id']]}/{row['version']}")
        for row in sets:
            rows = b"".join(platform.rooms.datasets.open_rows(TenantId(row["tenant_id"]), ObjectId(row["id"])))
            assert hashlib.sha256(rows).hexdigest() == declared[row["upload_id"]]
            found.add(str(row["name"]))
    finally:
        platform.close()
    administration.verify_log(data)
    return found
