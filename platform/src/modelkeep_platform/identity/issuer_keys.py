"""The operator replaces the embedded issuer's signing key.

The key is kept outside the transaction that records it: intent, then the key, then the outcome together with the
epoch that makes every server process read the keys anew (architecture rule 5).
"""

from dataclasses import replace

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ports import Authorizer, EpochSource, Recorder
from modelkeep_platform.core.refs import PLATFORM_REF
from modelkeep_platform.identity.issuer import EmbeddedIssuer
from modelkeep_platform.storage.database import Database


class IssuerKeys:
    """Rotates the signing key.

    Args:
        database: where the log is.
        issuer: whose key it is.
        authorizer: decides `issuer:rotate`.
        recorder: writes what was done.
        epoch: moved, so that every process reads the keys anew.
    """

    def __init__(
        self,
        *,
        database: Database,
        issuer: EmbeddedIssuer,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch

    def rotate(self, caller: Caller) -> None:
        """Sign with a new key from now on; tokens of the one before stay good until they are over.

        Raises:
            ForbiddenError: the caller is no operator.
        """
        decision = self._authorizer.require(caller, Action.ISSUER_ROTATE, PLATFORM_REF)
        event = Event(
            tenant=caller.tenant,
            action=decision.action,
            outcome=Outcome.INTENT,
            actor=caller,
            ref=PLATFORM_REF,
            decision=decision,
        )
        with self._database.platform() as tx:
            self._recorder.record(tx, event)
        self._issuer.rotate_key()
        with self._database.platform() as tx:
            self._recorder.record(tx, replace(event, outcome=Outcome.DONE))
            tx.bump_epoch()
        self._epoch.refresh()
