"""What decisions are made from: kept for one epoch, bounded, and never better than what is stored."""

import pytest
import sqlalchemy as sa

from fakes.access import BY, DATASET, MODEL, AccessRoom
from fakes.core import ACME, GLOBEX, tenant_caller
from modelkeep_platform.access.engine import Verdict, question
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions

PERMIT = '@id("all") permit (principal, action, resource);'
ASKED = question(tenant_caller(), Action.MODEL_READ, MODEL, {}, granted=frozenset())


def test_the_default_policy_says_nothing(room: AccessRoom) -> None:
    active = room.store.active_policy(ACME, epoch=1)
    assert (active.version, active.policies, active.broken) == (1, None, None)
    assert active.opinion(ASKED).verdict is Verdict.SILENT


def test_a_policy_is_read_once_an_epoch(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.put_policy(ACME, PERMIT)
    first = room.store.active_policy(ACME, epoch=7)
    monkeypatch.setattr(room.database, "tenant", None)
    assert room.store.active_policy(ACME, epoch=7) is first
    assert first.opinion(ASKED).policies == ("all",)
    with pytest.raises(TypeError):
        room.store.active_policy(ACME, epoch=8)


def test_policies_of_tenants_are_kept_apart(room: AccessRoom) -> None:
    room.put_policy(GLOBEX, PERMIT)
    assert room.store.active_policy(ACME, epoch=7).version == 1
    assert room.store.active_policy(GLOBEX, epoch=7).version == 2


def test_a_text_that_is_not_what_was_published_denies(room: AccessRoom) -> None:
    room.put_policy(ACME, PERMIT, sha256="0" * 64)
    opinion = room.store.active_policy(ACME, epoch=7).opinion(ASKED)
    assert (opinion.verdict, opinion.error) == (
        Verdict.FORBID,
        "the stored policy text is not what was published",
    )


def test_a_text_that_does_not_parse_denies(room: AccessRoom) -> None:
    room.put_policy(ACME, "permit (")
    opinion = room.store.active_policy(ACME, epoch=7).opinion(ASKED)
    assert (opinion.verdict, opinion.error) == (Verdict.FORBID, "the stored policy text does not parse")


@pytest.mark.parametrize("table", [policy_versions, active_policies], ids=["text", "pointer"])
def test_a_version_that_is_gone_denies(room: AccessRoom, table: sa.Table) -> None:
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.delete(table))
    opinion = room.store.active_policy(ACME, epoch=7).opinion(ASKED)
    assert (opinion.verdict, opinion.error) == (Verdict.FORBID, "the tenant's active policy version is missing")


def test_grants_are_of_one_object_kind_and_grantee(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:read"], expires_at=50)

    def of(ref: ResourceRef, grantee: str = GLOBEX) -> int:
        return len(room.store.grants_of(ref, grantee, now_s=10, epoch=7))  # type: ignore[arg-type]

    assert of(MODEL) == 1
    assert of(ResourceRef(owner=ACME, kind=Kind.DATASET, object_id=MODEL.object_id)) == 0
    assert of(ResourceRef(owner=GLOBEX, kind=Kind.MODEL, object_id=MODEL.object_id)) == 0
    assert of(ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId("mdl_other"))) == 0
    assert of(MODEL, ACME) == 0
    assert of(DATASET) == 0


def test_grants_end_on_time_although_they_are_kept(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:read"], expires_at=50)
    assert [len(room.store.grants_of(MODEL, GLOBEX, now_s=now, epoch=7)) for now in (49, 50, 51, 10)] == [1, 0, 0, 1]


def test_grants_are_read_once_an_epoch_and_their_absence_every_time(room: AccessRoom) -> None:
    assert room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=7) == []
    room.put_grant(MODEL, GLOBEX, ["model:read"])
    assert len(room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=7)) == 1
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.delete(grants))
    assert len(room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=7)) == 1
    assert room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=8) == []


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "{",
        "null",
        "7",
        '"model:read"',
        '{"model:read": 1}',
        "[]",
        '["model:delete", "policy:publish"]',
        "[[1], {}]",
    ],
)
def test_a_damaged_row_gives_nothing(room: AccessRoom, stored: str) -> None:
    room.put_grant(MODEL, GLOBEX, stored)
    assert room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=7) == []


def test_a_row_gives_only_what_can_be_granted(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:read", "model:delete", "model:*"])
    (grant,) = room.store.grants_of(MODEL, GLOBEX, now_s=1, epoch=7)
    assert grant.actions == {Action.MODEL_READ}
