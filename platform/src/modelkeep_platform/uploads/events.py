"""What the log says of an upload: an intent when it begins and, when it ends, one entry more, of whatever outcome.

Both are of the action that makes the object, and name the object and the upload: so they are matched.
"""

from collections.abc import Mapping
from typing import Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.events import Event, Facts, Outcome
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.uploads.rows import Upload

_MAKES: Final[Mapping[Kind, Action]] = {Kind.MODEL: Action.MODEL_CREATE, Kind.DATASET: Action.DATASET_CREATE}


def upload_event(upload: Upload, outcome: Outcome, *, by: TenantCaller | None, facts: Facts | None = None) -> Event:
    """Return the event of an upload's beginning or end.

    Args:
        upload: the upload.
        outcome: `intent` at its beginning; anything else ends it.
        by: who did it; None for the platform.
        facts: what else is to be said.
    """
    named: dict[str, str | int | bool] = {"upload": upload.id}
    if upload.kind is Kind.MODEL:
        named["version"] = upload.version
    return Event(
        tenant=upload.owner,
        action=_MAKES[upload.kind],
        outcome=outcome,
        actor=by,
        ref=ResourceRef(owner=upload.owner, kind=upload.kind, object_id=upload.object_id),
        facts={**named, **(facts or {})},
    )
