"""Members: invited by a one-time link, given roles, removed; never the last administrator."""

import pytest
import sqlalchemy as sa

from fakes.core import GLOBEX, tenant_caller
from fakes.identity import PASSWORD, IdentityRoom, code_of
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role, TenantCaller
from modelkeep_platform.core.errors import (
    ConflictError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    UnprocessableError,
)
from modelkeep_platform.core.refs import Kind, collection
from modelkeep_platform.identity.links import UsedLinkError
from modelkeep_platform.identity.members import Member
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.identity import links

ANALYST, ADMIN = frozenset({Role.ANALYST}), frozenset({Role.TENANT_ADMIN})


def joined(room: IdentityRoom, admin: TenantCaller, name: str, roles: frozenset[Role] = ANALYST) -> Member:
    invited = room.members.invite(admin, name, roles)
    room.tenants.enrol(invited.invitation.token, name, PASSWORD)
    return invited.member


def names(room: IdentityRoom, admin: TenantCaller) -> dict[str, str]:
    return {member.name: member.state for member in room.members.list(admin, PageRequest()).items}


def test_an_invitation_makes_a_member_who_can_log_in(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST, Role.AUDITOR}))
    member = invited.member
    assert (member.name, member.roles, member.state) == ("ben", ("analyst", "auditor"), "invited")
    assert member.id.startswith("usr_")
    assert invited.invitation.url == f"https://keep.test/issuer/enrol?token={invited.invitation.token}"
    assert invited.invitation.expires_at == room.clock.now_s() + 72 * 3600
    assert names(room, admin) == {"ada": "active", "ben": "invited"}
    enrolled = room.tenants.enrol(invited.invitation.token, "ben", PASSWORD)
    assert (enrolled.principal, enrolled.roles) == (member.id, ("analyst", "auditor"))
    assert names(room, admin) == {"ada": "active", "ben": "active"}
    assert room.tenant_caller(room.log_in("acme", "ben").access_token).roles == {Role.ANALYST, Role.AUDITOR}


def test_each_change_is_recorded_and_moves_the_epoch(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    epoch, seen = room.epoch.current(), len(room.recorder.events)
    member = room.members.invite(admin, "ben", ANALYST).member
    room.members.update(admin, member.id, ADMIN)
    room.members.remove(admin, member.id)
    assert room.epoch.current() == epoch + 3
    assert room.epoch.refreshed >= 3
    events = room.recorder.events[seen:]
    assert [event.action for event in events] == [Action.MEMBER_INVITE, Action.MEMBER_UPDATE, Action.MEMBER_REMOVE]
    assert [event.facts for event in events] == [
        {"roles": "analyst"},
        {"roles": "tenant-admin"},
        {"roles": "tenant-admin"},
    ]
    for event in events:
        assert (event.tenant, event.actor, event.personal) == (admin.tenant, admin, {"member": "ben"})
        assert event.ref is not None
        assert event.ref.object_id == member.id


def test_policy_is_asked_first_and_a_refusal_changes_nothing(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    member = joined(room, admin, "ben")
    epoch, before = room.epoch.current(), names(room, admin)
    room.authorizer.rule = lambda *_: False
    with pytest.raises(ForbiddenError):
        room.members.invite(admin, "not a legal name", frozenset())
    with pytest.raises(ForbiddenError):
        room.members.update(admin, member.id, ADMIN)
    with pytest.raises(ForbiddenError):
        room.members.remove(admin, member.id)
    with pytest.raises(ForbiddenError):
        room.members.list(admin, PageRequest())
    assert room.authorizer.asked[-1] == (Action.MEMBER_LIST, collection(admin.tenant, Kind.MEMBER))
    room.authorizer.rule = lambda *_: True
    assert (names(room, admin), room.epoch.current()) == (before, epoch)


def test_policies_see_the_members_name(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    member = joined(room, admin, "ben")
    room.members.update(admin, member.id, ADMIN)
    room.members.remove(admin, member.id)
    asked = [asked for asked in room.authorizer.names if asked[0].startswith("member:")]
    assert asked == [(Action.MEMBER_INVITE, "ben"), (Action.MEMBER_UPDATE, "ben"), (Action.MEMBER_REMOVE, "ben")]


def test_another_tenants_member_an_account_and_nobody_are_the_same_nothing(room: IdentityRoom) -> None:
    admin, _ = room.enrolled("acme", "ada")
    other, others = room.enrolled("globex", "gus")
    account = room.account(admin).service_account.id
    refusals = set()
    for member_id in (others.principal, account, "usr_never", "", "../usr", "usr_\x00"):
        for refused in (
            lambda member_id=member_id: room.members.update(admin, member_id, ANALYST),
            lambda member_id=member_id: room.members.remove(admin, member_id),
        ):
            with pytest.raises(NotFoundError) as caught:
                refused()
            refusals.add((caught.value.error_code, caught.value.message, str(caught.value.details)))
    assert len(refusals) == 1
    assert names(room, other) == {"gus": "active"}


def test_a_list_shows_the_callers_tenant_only_in_pages(room: IdentityRoom) -> None:
    admin, _ = room.enrolled("acme", "ada")
    room.enrolled("globex", "gus")
    for name in ("ben", "cyd"):
        room.members.invite(admin, name, ANALYST)
    room.account(admin, "app")
    first = room.members.list(admin, PageRequest(limit=2))
    assert [member.name for member in first.items] == ["ada", "ben"]
    rest = room.members.list(admin, PageRequest(limit=2, cursor=first.next_cursor))
    assert ([member.name for member in rest.items], rest.next_cursor) == (["cyd"], None)
    with pytest.raises(MalformedError):
        room.members.list(admin, PageRequest(cursor="é"))


@pytest.mark.parametrize("name", ["", "Ben", "ben smith", "-ben", "b" * 65, "bën", "ben\n", "ben~acme", "../ben"])
def test_illegal_names_are_refused(room: IdentityRoom, name: str) -> None:
    admin, _ = room.enrolled()
    with pytest.raises(UnprocessableError) as caught:
        room.members.invite(admin, name, ANALYST)
    assert caught.value.error_code == "invalid_name"


def test_no_role_is_no_member(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    member = joined(room, admin, "ben")
    for refused in (
        lambda: room.members.invite(admin, "cyd", frozenset()),
        lambda: room.members.update(admin, member.id, frozenset()),
    ):
        with pytest.raises(UnprocessableError) as caught:
            refused()
        assert caught.value.error_code == "invalid_role"
    assert names(room, admin) == {"ada": "active", "ben": "active"}


def test_a_taken_name_is_refused_and_leaves_no_link(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    with pytest.raises(ConflictError) as caught:
        room.members.invite(admin, "ada", ANALYST)
    assert caught.value.error_code == "name_taken"
    with room.database.platform(read_only=True) as tx:
        assert not tx.all(sa.select(links).where(links.c.used_at.is_(None)))


def test_the_last_administrator_is_neither_removed_nor_demoted(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled()
    room.members.invite(admin, "invited-only", ADMIN)
    joined(room, admin, "ben")
    epoch = room.epoch.current()
    for refused in (
        lambda: room.members.remove(admin, enrolled.principal),
        lambda: room.members.update(admin, enrolled.principal, ANALYST),
    ):
        with pytest.raises(ConflictError) as caught:
            refused()
        assert caught.value.error_code == "last_administrator"
    assert room.epoch.current() == epoch
    assert room.tenant_caller(room.log_in().access_token).roles == ADMIN
    room.members.update(admin, enrolled.principal, ADMIN | ANALYST)


def test_with_a_second_administrator_the_first_may_go(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled()
    second = joined(room, admin, "ben", ADMIN)
    room.members.update(admin, enrolled.principal, ANALYST)
    with pytest.raises(ConflictError):
        room.members.remove(admin, second.id)
    room.members.remove(admin, enrolled.principal)
    assert names(room, admin) == {"ben": "active"}


def test_a_removed_members_password_and_name_are_free_again(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    first = joined(room, admin, "ben")
    room.members.remove(admin, first.id)
    assert code_of(lambda: room.log_in("acme", "ben")) == "access_denied"
    second = room.members.invite(admin, "ben", ANALYST)
    assert second.member.id != first.id
    room.tenants.enrol(second.invitation.token, "ben", "quite another password")
    room.log_in("acme", "ben", "quite another password")


def test_a_withdrawn_invitation_works_no_more(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", ANALYST)
    room.members.remove(admin, invited.member.id)
    with pytest.raises(UsedLinkError) as caught:
        room.tenants.enrol(invited.invitation.token, "ben", PASSWORD)
    assert caught.value.error_code == "link_invalid"
    assert names(room, admin) == {"ada": "active"}


def test_a_member_and_its_link_are_made_together_or_not_at_all(
    room: IdentityRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, _ = room.enrolled()

    def fail(*_: object) -> None:
        raise RuntimeError("the log cannot be written")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(room.recorder, "record", fail)
        room.members.invite(admin, "ben", ANALYST)
    assert names(room, admin) == {"ada": "active"}
    with room.database.platform(read_only=True) as tx:
        assert not tx.all(sa.select(links).where(links.c.used_at.is_(None)))


def test_a_stranger_sees_nothing(room: IdentityRoom) -> None:
    room.enrolled()
    assert room.members.list(tenant_caller(GLOBEX), PageRequest()).items == []
