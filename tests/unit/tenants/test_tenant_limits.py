"""An operator sets what a tenant may have; its people read it, with what is used; both logs have what was set."""

from collections.abc import Mapping

import msgspec
import pytest

from fakes.core import operator_caller, tenant_caller
from fakes.identity import IdentityRoom
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, TenantCaller
from modelkeep_platform.core.errors import ForbiddenError, NotFoundError, UnprocessableError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import LIMITS, MAX_LIMIT, TenantLimits
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.http.wire import people as wire
from modelkeep_platform.limits.store import LimitStore
from modelkeep_platform.tenants.limits import TenantLimitService

OPERATOR = operator_caller()


@pytest.fixture
def acme(room: IdentityRoom) -> TenantId:
    return room.tenants.create(OPERATOR, "acme", "Acme").tenant.id


@pytest.fixture
def limits(room: IdentityRoom, acme: TenantId) -> TenantLimitService:
    room.recorder.events.clear()
    store = LimitStore(database=room.database, defaults=TenantLimits(), epoch=room.epoch)
    return TenantLimitService(
        database=room.database,
        registry=room.registry,
        store=store,
        usage={"members": lambda tx: room.memberships.count(tx, PrincipalKind.USER), "storage_mib": lambda _tx: 12},
        authorizer=room.authorizer,
        recorder=room.recorder,
        epoch=room.epoch,
        clock=room.clock,
    )


def someone(tenant: TenantId) -> TenantCaller:
    return tenant_caller(tenant)


def test_both_see_every_limit_and_what_is_used(limits: TenantLimitService, acme: TenantId) -> None:
    seen = limits.show(OPERATOR, "acme")
    assert limits.show_own(someone(acme)) == seen
    assert (seen.id, seen.slug, seen.name, seen.state) == (acme, "acme", "Acme", "active")
    assert list(seen.limits) == list(LIMITS)
    shown = {name: (one.value, one.default, one.own, one.used) for name, one in seen.limits.items()}
    assert shown["members"] == (1000, 1000, False, 0)
    assert shown["storage_mib"] == (204800, 204800, False, 12)
    assert shown["requests_per_minute"] == (60000, 60000, False, None)


def test_what_is_set_is_shown_and_below_what_is_used_takes_nothing_away(
    limits: TenantLimitService, room: IdentityRoom, acme: TenantId
) -> None:
    changed = limits.change(OPERATOR, "acme", {"members": 9, "storage_mib": 3})
    assert changed == limits.show_own(someone(acme))
    assert changed.limits["members"].value == 9
    one = changed.limits["storage_mib"]
    assert (one.value, one.default, one.own, one.used) == (3, 204800, True, 12)
    assert limits.change(OPERATOR, "acme", {"storage_mib": None}).limits["storage_mib"].own is False
    assert limits.show(OPERATOR, "acme").limits["members"].own is True
    assert room.epoch.refreshed >= 2


def test_a_change_moves_the_epoch_and_is_in_the_tenants_log(
    limits: TenantLimitService, room: IdentityRoom, acme: TenantId
) -> None:
    before = room.database.epoch()
    limits.change(OPERATOR, "acme", {"members": 9, "open_uploads": None})
    assert room.database.epoch() == before + 1
    (event,) = room.recorder.events
    assert (event.tenant, event.action, event.actor) == (acme, Action.TENANT_LIMIT, OPERATOR)
    assert event.ref is not None
    assert (event.ref.kind, str(event.ref.object_id)) == (Kind.TENANT, acme)
    assert event.facts == {"tenant": acme, "slug": "acme", "members": 9, "open_uploads": "default"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "name a limit to set; known are requests_per_minute, "),
        ({"memberz": 1}, "`memberz` is not a limit; known are requests_per_minute, "),
        ({"memberz": None}, "`memberz` is not a limit"),
        ({"members": -1}, f"`members` is between 0 and {MAX_LIMIT}"),
        ({"members": MAX_LIMIT + 1}, f"`members` is between 0 and {MAX_LIMIT}"),
        ({"serving_workers": 2}, "`serving_workers` is between 0 and 1"),
        ({"requests_per_minute": 0}, f"`requests_per_minute` is between 1 and {MAX_LIMIT}; to stop a tenant, suspend"),
        ({"members": 3, "refusals_per_minute": 0}, "`refusals_per_minute` is between 1 and"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    limits: TenantLimitService, room: IdentityRoom, changes: Mapping[str, int | None], says: str
) -> None:
    before = limits.show(OPERATOR, "acme"), room.database.epoch()
    with pytest.raises(UnprocessableError) as caught:
        limits.change(OPERATOR, "acme", changes)
    assert caught.value.error_code == "invalid_limit"
    assert caught.value.message.startswith(says)
    assert (limits.show(OPERATOR, "acme"), room.database.epoch()) == before
    assert room.recorder.events == []


def test_an_unknown_tenant_is_not_found(limits: TenantLimitService) -> None:
    with pytest.raises(NotFoundError):
        limits.show(OPERATOR, "never")
    with pytest.raises(NotFoundError):
        limits.change(OPERATOR, "never", {"members": 1})


def test_who_may_not_is_refused(limits: TenantLimitService, room: IdentityRoom, acme: TenantId) -> None:
    room.authorizer.rule = lambda _caller, _action, _ref: False
    with pytest.raises(ForbiddenError):
        limits.show(OPERATOR, "acme")
    with pytest.raises(ForbiddenError):
        limits.change(OPERATOR, "acme", {"members": 1})
    with pytest.raises(ForbiddenError):
        limits.show_own(someone(acme))


def test_the_wire_names_every_limit_and_no_other() -> None:
    assert wire.LimitChanges.__struct_fields__ == tuple(LIMITS)
    assert msgspec.to_builtins(wire.LimitChanges(members=3, storage_mib=None)) == {"members": 3, "storage_mib": None}
