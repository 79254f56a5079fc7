"""Keeps what an installation of this version is made of: ``python tests/vectors/earlier/keep.py``.

Run it with the sources of the version that is to be kept, before the next migration is written; what is kept already
is left alone. See README.md beside it.
"""

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from services.house import GRAPH, PRIVATE, ROWS, SCHEMA, WEIGHTS, Installation, ServerThread, job, join

HERE: Final = Path(__file__).resolve().parent


def use(made: Installation) -> dict[str, Any]:
    """Use a fresh installation as a tenant does; return what was true of it at the end, and who may ask for it."""
    server = ServerThread(made)
    try:
        acme = join(made, "acme")
        app = acme.clients["developer"]
        app.models.upload("model", graph=GRAPH, weights=WEIGHTS)
        app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
        done = app.jobs.wait(app.jobs.create(job()).id)
        budget, log = app.budgets.get("rows"), acme.admin.audit.verify()
        return {
            "url": made.url,
            "operator_secret": made.operator_secret,
            "developer": acme.secrets["developer"],
            "auditor": acme.secrets["auditor"],
            "job": done.id,
            "predicted": {name: app.predict(name, [[1.0, 1.0]]) for name in ("model", "trained")},
            "epsilon": budget.epsilon,
            "epsilon_spent": budget.epsilon_spent,
            "log_size": log.size,
        }
    finally:
        server.close()


def main() -> None:
    """Make an installation, use it, and keep it under its revision."""
    with tempfile.TemporaryDirectory() as folder:
        made = Installation(Path(folder)).init()
        true = use(made)
        with closing(sqlite3.connect(made.data / "platform.db")) as connection:
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            dump = "\n".join(connection.iterdump())
        kept = HERE / revision
        kept.mkdir()
        shutil.copytree(made.data / "blobs", kept / "blobs")
        shutil.copy(made.folder / "root.key", kept / "root.key")
        settings = (made.data / "settings.toml").read_text(encoding="utf-8")
        (kept / "settings.toml").write_text(settings.replace(folder, "/etc/modelkeep"), encoding="utf-8")
    (kept / "platform.sql").write_text(f"{dump}\n", encoding="utf-8")
    (kept / "true.json").write_text(f"{json.dumps(true, indent=1)}\n", encoding="utf-8")
    print(f"kept {kept.relative_to(HERE.parents[2])}")


if __name__ == "__main__":
    main()
