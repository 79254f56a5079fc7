"""One installation in one process: the ground, the rooms over it and the edge, started and stopped in order."""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.app.edge import Edge
from modelkeep_platform.app.ground import Ground
from modelkeep_platform.app.rooms import Rooms
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.identity.issuer import new_operator
from modelkeep_platform.identity.secrets import new_secret
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.uploads.orphans import Orphans

_log = logging.getLogger(__name__)
OPERATOR: Final = "operator"
_EXPIRY_S: Final = 600.0
_HALF_WRITTEN_S: Final = 3600
_TIDY_S: Final = 10.0


class Platform:
    """The composition root: every part is built here or in the three files it calls, and nowhere else.

    Args:
        data: the data folder.
        settings: what the installation is set to.
        dropped_lines: how many lines of the server's own log were dropped, for the metrics.

    Raises:
        ConflictError: the database is of another version.
        RootKeyError: the root key cannot be used.
    """

    def __init__(self, *, data: Path, settings: Settings, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        self.ground = Ground(data=data, settings=settings)
        self.rooms = Rooms(self.ground, data=data, settings=settings)
        self.edge = Edge(self.ground, self.rooms, settings=settings, dropped_lines=dropped_lines)
        self._blobs = LocalBlobs(data / "blobs")
        self._orphans = Orphans(database=self.ground.database, blobs=self._blobs)
        self._stop = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Start what runs beside requests: epoch, log, integrator, job dispatcher, expiry."""
        self.ground.start()
        self.edge.requests.start()
        self.rooms.dispatcher.start()
        self._housekeeper.start()

    def close(self) -> None:
        """Stop everything, what others depend on last."""
        self._stop.set()
        if self._housekeeper.is_alive():
            self._housekeeper.join(timeout=_TIDY_S)
        with ExitStack() as last_first:
            for part in (self.ground, self.edge.requests, self.rooms.dispatcher):
                last_first.callback(part.close)

    def create_operator(self) -> tuple[str, str]:
        """Make the operator's client; return its id and secret, which is kept as a hash only."""
        secret = new_secret("mko")
        with self.ground.database.platform() as tx:
            now = self.ground.clock.now_s()
            new_operator(tx, self.rooms.memberships, client_id=OPERATOR, secret=secret, now=now)
        return OPERATOR, secret

    def _keep_house(self) -> None:
        # At once, too: the server before this one may have died halfway through a deletion.
        while not self._stop.is_set():
            for duty in (
                self.rooms.upload_endings.expire,
                self.rooms.job_endings.clear_leftovers,
                self._orphans.clear,
                self._clear_half_written,
                self.ground.authorizer.record_counts,
            ):
                try:
                    duty()
                except (ModelkeepError, SQLAlchemyError):
                    _log.exception("what is over could not be cleared away; it is tried again")
            self._stop.wait(_EXPIRY_S)

    def _clear_half_written(self) -> None:
        self._blobs.clear_half_written(before_s=self.ground.clock.now_s() - _HALF_WRITTEN_S)
