"""What decisions are made from: kept for one epoch, bounded, and never better than what is stored."""

import time
from concurrent.futures import ThreadPoolExecutor

import cedarpy
import pytest
import sqlalchemy as sa

from fakes.access import BY, DATASET, MODEL, AccessRoom
from fakes.core import ACME, GLOBEX, tenant_caller
from modelkeep_platform.access import store
from modelkeep_platform.access.engine import Verdict, question
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions

INITECH = TenantId("tnt_initech")
PERMIT = '@id("all") permit (principal, action, resource);'
ASKED = question(tenant_caller(), Action.MODEL_READ, MODEL, {}, granted=frozenset())


def test_the_default_policy_says_nothing(room: AccessRoom) -> None:
    active = room.store.active_policy(ACME, epoch=1)
    assert (active.version, active.opinions, active.broken) == (1, None, None)
    assert active.opinion(ASKED).verdict is Verdict.SILENT


def test_a_policy_is_read_once_an_epoch(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.put_policy(ACME, PERMIT)
    first = room.store.active_policy(ACME, epoch=7)
    monkeypatch.setattr(room.database, "tenant", None)
    assert room.store.active_policy(ACME, epoch=7) is first
    assert first.opinion(ASKED).policies == ("all",)
    with pytest.raises(TypeError):
        room.store.active_policy(ACME, epoch=8)


def test_a_text_is_compiled_once_whatever_the_epoch_and_once_for_each_tenant(room: AccessRoom) -> None:
    room.put_policy(ACME, PERMIT)
    room.put_policy(GLOBEX, PERMIT)
    first = room.store.active_policy(ACME, epoch=7)
    assert first.opinions is not None
    assert room.store.active_policy(ACME, epoch=8).opinions is first.opinions
    assert room.store.active_policy(GLOBEX, epoch=8).opinions is not first.opinions


def test_a_tenant_keeps_one_text_and_takes_no_other_tenants_place(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_COMPILED", 2)
    room.put_policy(GLOBEX, PERMIT)
    globex = room.store.active_policy(GLOBEX, epoch=1).opinions
    for epoch in range(2, 6):
        room.put_policy(ACME, PERMIT.replace("all", f"all-{epoch}"))
        assert room.store.active_policy(ACME, epoch=epoch).opinion(ASKED).policies == (f"all-{epoch}",)
    assert room.store.active_policy(GLOBEX, epoch=6).opinions is globex
    assert len(room.store._texts._known) == 2
    with room.database.tenant(INITECH, by=BY) as tx:
        tx.insert(active_policies, version=0)
    room.put_policy(INITECH, PERMIT)
    assert room.store.active_policy(INITECH, epoch=6).opinions is not None
    assert room.store._texts._known.keys() == {ACME, INITECH}, "of two that are kept, the one compiled first goes"


def test_a_text_that_many_ask_for_at_once_is_compiled_once(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.put_policy(ACME, PERMIT)
    made: list[cedarpy.PolicySet] = []

    def slowly(policies: cedarpy.PolicySet, *, kept: int) -> Opinions:
        made.append(policies)
        time.sleep(0.05)
        return Opinions(policies, kept=kept)

    monkeypatch.setattr(store, "Opinions", slowly)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda epoch: room.store.active_policy(ACME, epoch=epoch), range(8)))
    assert len(made) == 1
    assert {id(one.opinions) for one in found} == {id(found[0].opinions)}


def test_another_text_has_opinions_of_its_own(room: AccessRoom) -> None:
    room.put_policy(ACME, PERMIT)
    assert room.store.active_policy(ACME, epoch=7).opinion(ASKED).verdict is Verdict.PERMIT
    room.put_policy(ACME, PERMIT.replace("permit", "forbid"))
    assert room.store.active_policy(ACME, epoch=8).opinion(ASKED).verdict is Verdict.FORBID


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
