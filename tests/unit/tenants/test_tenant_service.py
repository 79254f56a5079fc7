"""Tenants: added by an operator, enrolled by a one-time link, suspended and resumed; closed to operators."""

import threading

import pytest
import sqlalchemy as sa

from fakes.core import operator_caller
from fakes.identity import PASSWORD, IdentityRoom
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.errors import (
    ConflictError,
    ForbiddenError,
    ModelkeepError,
    NotFoundError,
    UnprocessableError,
)
from modelkeep_platform.identity import secrets
from modelkeep_platform.identity.links import KEEP_S, UsedLinkError
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.identity import issuer_users, links, memberships, tenants
from modelkeep_platform.tenants.operators import tenant_ref

OPERATOR = operator_caller()


def count(room: IdentityRoom, table: sa.Table) -> int:
    with room.database.platform(read_only=True) as tx:
        return len(tx.all(sa.select(table)))


def test_a_new_tenant_has_keys_a_policy_and_a_link(room: IdentityRoom) -> None:
    epoch = room.epoch.current()
    made = room.tenants.create(OPERATOR, "acme", "  Acme Health  ")
    tenant = made.tenant
    assert (tenant.slug, tenant.name, tenant.state) == ("acme", "Acme Health", "active")
    assert tenant.created_at == room.clock.now_s()
    assert len(tenant.id) == 36
    assert room.policies.installed == [tenant.id]
    assert (tenant.id, "audit") in room.sealer.keys
    assert made.enrolment.token.startswith("enr_")
    assert made.enrolment.url == f"https://keep.test/issuer/enrol?token={made.enrolment.token}"
    assert made.enrolment.expires_at == room.clock.now_s() + KEEP_S
    assert room.epoch.current() == epoch + 1
    assert room.registry.by_id(tenant.id) == room.registry.by_slug("acme") == tenant
    assert (room.registry.id_of("acme"), room.registry.slug_of(tenant.id)) == (tenant.id, "acme")
    assert (room.registry.by_slug("nobody"), room.registry.id_of("nobody")) == (None, None)


def test_what_operators_do_is_recorded_with_the_tenant(room: IdentityRoom) -> None:
    tenant, _ = room.tenant()
    room.tenants.suspend(OPERATOR, "acme")
    room.tenants.resume(OPERATOR, "acme")
    room.tenants.new_enrolment_link(OPERATOR, "acme")
    assert [event.action for event in room.recorder.events] == [
        Action.TENANT_CREATE,
        Action.TENANT_SUSPEND,
        Action.TENANT_RESUME,
        Action.TENANT_ENROL,
    ]
    for event in room.recorder.events:
        # The recorder puts an entry into the platform's log, too: the actor is of there.
        assert (event.tenant, event.actor, event.ref) == (tenant.id, OPERATOR, tenant_ref(tenant.id))
        assert event.facts == {"tenant": tenant.id, "slug": "acme"}


@pytest.mark.parametrize("slug", ["", "Acme", "acme health", "-acme", "acme-", "a" * 41, "platform", "acme~x", "../a"])
def test_illegal_slugs_are_refused(room: IdentityRoom, slug: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        room.tenants.create(OPERATOR, slug, "Acme")
    assert caught.value.error_code == "invalid_name"
    assert count(room, tenants) == 0


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "Ac\nme", "Ac\x1b[31mme"])
def test_illegal_names_are_refused(room: IdentityRoom, name: str) -> None:
    with pytest.raises(UnprocessableError):
        room.tenants.create(OPERATOR, "acme", name)
    assert count(room, tenants) == 0


def test_a_slug_is_never_used_twice_even_of_a_suspended_tenant(room: IdentityRoom) -> None:
    room.tenant()
    room.tenants.suspend(OPERATOR, "acme")
    with pytest.raises(ConflictError) as caught:
        room.tenants.create(OPERATOR, "acme", "Another")
    assert caught.value.error_code == "slug_taken"
    assert (count(room, tenants), count(room, links)) == (1, 1)


def test_a_tenant_is_made_whole_or_not_at_all(room: IdentityRoom) -> None:
    room.policies.broken = True
    with pytest.raises(RuntimeError):
        room.tenants.create(OPERATOR, "acme", "Acme")
    assert (count(room, tenants), count(room, links), room.recorder.events) == (0, 0, [])
    room.policies.broken = False
    room.tenants.create(OPERATOR, "acme", "Acme")


def test_policy_is_asked_first(room: IdentityRoom) -> None:
    room.tenant()
    room.authorizer.rule = lambda *_: False
    for refused in (
        lambda: room.tenants.create(OPERATOR, "Not Legal", ""),
        lambda: room.tenants.suspend(OPERATOR, "acme"),
        lambda: room.tenants.resume(OPERATOR, "acme"),
        lambda: room.tenants.new_enrolment_link(OPERATOR, "acme"),
        lambda: room.tenants.list(OPERATOR, PageRequest()),
    ):
        with pytest.raises(ForbiddenError):
            refused()
    assert room.registry.by_slug("acme") is not None
    assert count(room, links) == 1


@pytest.mark.parametrize("work", ["suspend", "resume", "new_enrolment_link"])
def test_an_unknown_tenant_is_not_found(room: IdentityRoom, work: str) -> None:
    room.tenant()
    for slug in ("nobody", "", "platform"):
        with pytest.raises(NotFoundError) as caught:
            getattr(room.tenants, work)(OPERATOR, slug)
        assert caught.value.message == "there is no such object, or you may not see it"


def test_tenants_are_listed_in_pages(room: IdentityRoom) -> None:
    for slug in ("cyd", "ada", "ben"):
        room.tenant(slug)
    first = room.tenants.list(OPERATOR, PageRequest(limit=2))
    assert [tenant.slug for tenant in first.items] == ["ada", "ben"]
    rest = room.tenants.list(OPERATOR, PageRequest(limit=2, cursor=first.next_cursor))
    assert ([tenant.slug for tenant in rest.items], rest.next_cursor) == (["cyd"], None)


def test_suspending_and_resuming_answer_with_the_state_and_move_the_epoch(room: IdentityRoom) -> None:
    room.tenant()
    epoch = room.epoch.current()
    assert room.tenants.suspend(OPERATOR, "acme").state == "suspended"
    assert room.tenants.suspend(OPERATOR, "acme").state == "suspended"
    assert room.tenants.resume(OPERATOR, "acme").state == "active"
    assert room.epoch.current() == epoch + 3


# --- enrolment ---------------------------------------------------------------------------------------


def test_the_first_to_use_the_link_is_the_administrator(room: IdentityRoom) -> None:
    tenant, token = room.tenant()
    enrolled = room.tenants.enrol(token, "ada", PASSWORD)
    assert (enrolled.tenant, enrolled.name, enrolled.roles) == (tenant, "ada", ("tenant-admin",))
    event = room.recorder.events[-1]
    assert (event.tenant, event.action, event.personal) == (tenant.id, "member:enrol", {"member": "ada"})
    assert room.tenant_caller(room.log_in().access_token).principal == enrolled.principal
    with room.database.platform(read_only=True) as tx:
        stored = repr([dict(row) for row in tx.all(sa.select(issuer_users))])
    assert "$argon2id$" in stored
    assert PASSWORD not in stored


def refused(room: IdentityRoom, token: str, username: str = "eve", password: str = PASSWORD) -> ModelkeepError:
    before = (count(room, memberships), count(room, issuer_users), room.epoch.current(), len(room.recorder.events))
    with pytest.raises(ModelkeepError) as caught:
        room.tenants.enrol(token, username, password)
    after = (count(room, memberships), count(room, issuer_users), room.epoch.current(), len(room.recorder.events))
    assert after == before
    return caught.value


def test_a_used_late_or_unknown_link_is_refused_in_the_same_words(room: IdentityRoom) -> None:
    _, used = room.tenant("acme")
    room.tenants.enrol(used, "ada", PASSWORD)
    _, late = room.tenant("globex")
    _, suspended = room.tenant("initech")
    room.tenants.suspend(OPERATOR, "initech")
    messages = {refused(room, token).message for token in (used, "enr_unknown", "", suspended)}
    room.clock.advance(KEEP_S)
    error = refused(room, late)
    assert messages == {error.message} == {"this link was used, is over, or never was; ask for a new one"}
    assert (type(error), error.error_code) == (UsedLinkError, "link_invalid")


def test_a_link_works_until_its_last_second(room: IdentityRoom) -> None:
    _, token = room.tenant()
    room.clock.advance(KEEP_S - 1)
    room.tenants.enrol(token, "ada", PASSWORD)


def test_a_suspended_tenants_link_works_once_it_is_resumed(room: IdentityRoom) -> None:
    _, token = room.tenant()
    room.tenants.suspend(OPERATOR, "acme")
    refused(room, token)
    room.tenants.resume(OPERATOR, "acme")
    room.tenants.enrol(token, "ada", PASSWORD)


@pytest.mark.parametrize(
    ("username", "password", "code"),
    [("Ada", PASSWORD, "invalid_name"), ("ada", "short", "weak_password"), ("", PASSWORD, "invalid_name")],
    ids=["name", "password", "no name"],
)
def test_a_refused_name_or_password_leaves_the_link_usable(
    room: IdentityRoom, username: str, password: str, code: str
) -> None:
    _, token = room.tenant()
    assert refused(room, token, username, password).error_code == code
    room.tenants.enrol(token, "ada", PASSWORD)


def test_an_invitation_is_for_the_invited_name(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    assert refused(room, invited.invitation.token, "eve").message == "this invitation is for `ben`"
    room.tenants.enrol(invited.invitation.token, "ben", PASSWORD)
    assert refused(room, invited.invitation.token, "ben").error_code == "link_invalid"


def test_of_many_uses_at_once_one_enrols(room: IdentityRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    _, token = room.tenant()
    monkeypatch.setattr("modelkeep_platform.tenants.service.hash_password", lambda _: "$argon2id$fake")
    outcomes: list[str] = []

    def enrol(number: int) -> None:
        try:
            outcomes.append(room.tenants.enrol(token, f"user-{number}", PASSWORD).name)
        except UsedLinkError:
            outcomes.append("refused")

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 7
    assert (count(room, memberships), count(room, issuer_users)) == (1, 1)


def test_a_junk_link_costs_no_password_hash(room: IdentityRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> str:
        raise AssertionError("a password was hashed")

    monkeypatch.setattr("modelkeep_platform.tenants.service.hash_password", fail)
    assert refused(room, "enr_junk").error_code == "link_invalid"
    assert secrets.hash_password(PASSWORD)


# --- operators stay outside --------------------------------------------------------------------------


def test_a_new_link_ends_the_lost_one(room: IdentityRoom) -> None:
    _, lost = room.tenant()
    again = room.tenants.new_enrolment_link(OPERATOR, "acme")
    assert refused(room, lost).error_code == "link_invalid"
    room.tenants.enrol(again.token, "ada", PASSWORD)


def test_an_operator_cannot_make_itself_administrator_of_an_enrolled_tenant(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    before = count(room, links)
    with pytest.raises(ConflictError) as caught:
        room.tenants.new_enrolment_link(OPERATOR, "acme")
    assert caught.value.error_code == "already_enrolled"
    assert count(room, links) == before
    assert room.recorder.events[-1].action == "member:enrol"
    assert room.tenant_caller(room.log_in().access_token).tenant == admin.tenant


def test_an_enrolment_link_kept_back_is_worthless_once_there_is_an_administrator(room: IdentityRoom) -> None:
    tenant, _ = room.tenant()
    with room.database.platform() as tx:
        kept_back = room.links.make_in(tx, tenant.id, subject=None, username=None)
        # Two live links cannot come from the service; a row restored from a backup could be one.
        tx.execute(sa.update(links).values(used_at=None))
    room.tenants.enrol(kept_back.token, "ada", PASSWORD)
    with room.database.platform() as tx:
        tx.execute(sa.update(links).values(used_at=None))
    assert refused(room, kept_back.token).error_code == "link_invalid"
