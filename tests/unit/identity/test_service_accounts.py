"""Service accounts: a secret shown once and kept as a hash, rotated and deleted with effect at once."""

import hashlib

import pytest
import sqlalchemy as sa

from fakes.identity import IdentityRoom, code_of
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.errors import ConflictError, ForbiddenError, NotFoundError, UnprocessableError
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.identity import issuer_clients, memberships

DEVELOPER = frozenset({Role.DEVELOPER})


def test_an_account_is_made_with_a_secret_that_is_kept_as_a_hash(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.accounts.create(admin, "app", frozenset({Role.DEVELOPER, Role.ANALYST}))
    account = made.service_account
    assert (account.name, account.roles, account.client_id) == ("app", ("analyst", "developer"), account.id)
    assert account.id.startswith("svc_")
    assert made.client_secret.startswith("mks_")
    with room.database.platform(read_only=True) as tx:
        row = tx.first(sa.select(issuer_clients))
    assert row is not None
    assert row["secret_hash"] == hashlib.sha256(made.client_secret.encode()).hexdigest()
    (listed,) = room.accounts.list(admin, PageRequest()).items
    assert listed == account
    assert room.tenant_caller(room.app_token(made)).principal == account.id


def test_each_change_is_recorded_and_moves_the_epoch(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    epoch, seen = room.epoch.current(), len(room.recorder.events)
    made = room.account(admin)
    room.accounts.rotate(admin, made.service_account.id)
    room.accounts.delete(admin, made.service_account.id)
    assert room.epoch.current() == epoch + 3
    events = room.recorder.events[seen:]
    assert [event.action for event in events] == [
        Action.SERVICE_ACCOUNT_CREATE,
        Action.SERVICE_ACCOUNT_ROTATE,
        Action.SERVICE_ACCOUNT_DELETE,
    ]
    assert all(event.facts == {"name": "app", "roles": "developer"} for event in events)
    assert made.client_secret not in repr(events)


def test_rotation_gives_a_new_secret_and_ends_the_old(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    again = room.accounts.rotate(admin, made.service_account.id)
    assert again.service_account == made.service_account
    assert again.client_secret != made.client_secret
    assert code_of(lambda: room.app_token(made)) == "invalid_client"
    assert room.tenant_caller(room.app_token(again)).name == "app"


def test_void_tokens_only_ever_moves_forward(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    account = room.account(admin).service_account.id
    now, seen = room.clock.now_s(), []
    for at in (now, now, now - 50, now + 10):
        with room.database.platform() as tx:
            room.memberships.void_tokens(tx.as_tenant(admin.tenant), account, at)
            row = tx.first(sa.select(memberships.c.not_before).where(memberships.c.subject == account))
            assert row is not None
            seen.append(row["not_before"] - now)
    assert seen == [0, 1, 2, 10]


def test_a_deleted_account_logs_nobody_in_and_frees_its_name(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    room.accounts.delete(admin, made.service_account.id)
    assert code_of(lambda: room.app_token(made)) == "invalid_client"
    assert room.accounts.list(admin, PageRequest()).items == []
    assert room.account(admin).service_account.id != made.service_account.id


@pytest.mark.parametrize(
    ("name", "roles", "code"),
    [
        ("App", DEVELOPER, "invalid_name"),
        ("", DEVELOPER, "invalid_name"),
        ("app", frozenset[Role](), "invalid_role"),
        ("app", frozenset({Role.TENANT_ADMIN}), "invalid_role"),
        ("app", frozenset({Role.TENANT_ADMIN, Role.ANALYST}), "invalid_role"),
    ],
    ids=["capital", "empty", "no role", "administrator", "administrator too"],
)
def test_what_cannot_be_an_account_is_refused(room: IdentityRoom, name: str, roles: frozenset[Role], code: str) -> None:
    admin, _ = room.enrolled()
    with pytest.raises(UnprocessableError) as caught:
        room.accounts.create(admin, name, roles)
    assert caught.value.error_code == code
    assert room.accounts.list(admin, PageRequest()).items == []


def test_a_taken_name_is_refused_within_a_tenant_only(room: IdentityRoom) -> None:
    admin, _ = room.enrolled("acme", "ada")
    other, _ = room.enrolled("globex", "gus")
    room.account(admin)
    room.account(other)
    with pytest.raises(ConflictError) as caught:
        room.account(admin)
    assert caught.value.error_code == "name_taken"
    with room.database.platform(read_only=True) as tx:
        assert len(tx.all(sa.select(issuer_clients))) == 2


def test_policy_is_asked_first(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    room.authorizer.rule = lambda *_: False
    for refused in (
        lambda: room.accounts.create(admin, "Not Legal", frozenset()),
        lambda: room.accounts.rotate(admin, made.service_account.id),
        lambda: room.accounts.delete(admin, made.service_account.id),
        lambda: room.accounts.list(admin, PageRequest()),
    ):
        with pytest.raises(ForbiddenError):
            refused()
    room.authorizer.rule = lambda *_: True
    assert room.tenant_caller(room.app_token(made)).name == "app"


def test_policies_see_the_accounts_name(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    account = room.account(admin, "app").service_account
    room.accounts.rotate(admin, account.id)
    room.accounts.delete(admin, account.id)
    assert room.authorizer.names[-3:] == [
        (Action.SERVICE_ACCOUNT_CREATE, "app"),
        (Action.SERVICE_ACCOUNT_ROTATE, "app"),
        (Action.SERVICE_ACCOUNT_DELETE, "app"),
    ]


def test_another_tenants_account_a_member_and_nothing_are_the_same_nothing(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled("acme", "ada")
    other, _ = room.enrolled("globex", "gus")
    foreign = room.account(other)
    refusals = set()
    for account_id in (foreign.service_account.id, enrolled.principal, "svc_never", ""):
        for refused in (
            lambda account_id=account_id: room.accounts.rotate(admin, account_id),
            lambda account_id=account_id: room.accounts.delete(admin, account_id),
        ):
            with pytest.raises(NotFoundError) as caught:
                refused()
            refusals.add((caught.value.error_code, caught.value.message, str(caught.value.details)))
    assert len(refusals) == 1
    assert room.tenant_caller(room.app_token(foreign)).tenant == other.tenant
