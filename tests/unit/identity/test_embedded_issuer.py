"""Logging in: client credentials, device authorization, refresh tokens, keys."""

import base64
import json
import threading

import pytest
import sqlalchemy as sa

from fakes.core import operator_caller
from fakes.identity import ISSUER, PASSWORD, REQUEST, FakeSecretStore, IdentityRoom, code_of
from modelkeep_platform.core.callers import PrincipalKind, Role
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.identity.issuer import ACCESS_S, DEVICE_S, REFRESH_S, OAuthError
from modelkeep_platform.identity.secrets import token_hash
from modelkeep_platform.identity.tokens import InvalidTokenError
from modelkeep_platform.storage.tables.identity import denied_tokens, device_codes, guesses, refresh_tokens

SDK = "modelkeep-sdk"


def payload(token: str) -> dict[str, object]:
    body = token.split(".")[1]
    value: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return value


def rows(room: IdentityRoom, table: sa.Table) -> int:
    with room.database.platform(read_only=True) as tx:
        return len(tx.all(sa.select(table)))


# --- client credentials ------------------------------------------------------------------------------


def test_an_applications_token_has_the_shape_of_keycloaks(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin, "app", Role.ANALYST)
    answer = room.issuer.client_credentials(made.service_account.client_id, made.client_secret, source="s")
    assert (answer.token_type, answer.expires_in, answer.refresh_token) == ("Bearer", 300, None)
    claims = payload(answer.access_token)
    assert str(claims.pop("jti")).startswith("tok_")
    now = room.clock.now_s()
    assert claims == {
        "iss": ISSUER,
        "aud": "modelkeep",
        "sub": made.service_account.id,
        "azp": made.service_account.client_id,
        "typ": "Bearer",
        "organization": {"acme": {"id": admin.tenant}},
        "iat": now,
        "nbf": now,
        "exp": now + 300,
    }
    caller = room.tenant_caller(answer.access_token)
    assert (caller.tenant, caller.name, caller.roles) == (admin.tenant, "app", frozenset({Role.ANALYST}))
    assert caller.principal_kind is PrincipalKind.SERVICE_ACCOUNT


def test_an_operators_token_has_its_own_audience_and_no_organization(room: IdentityRoom) -> None:
    token = room.operator_token()
    claims = payload(token)
    assert claims["aud"] == "modelkeep-operator"
    assert "organization" not in claims
    caller = room.operator(token)
    assert (caller.name, caller.tenant) == ("operator", PLATFORM)


def test_wrong_secret_and_unknown_client_are_refused_alike(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    refusals = []
    for client, secret in ((made.service_account.client_id, "wrong"), ("svc_unknown", made.client_secret), ("", "")):
        with pytest.raises(OAuthError) as caught:
            room.issuer.client_credentials(client, secret, source="s")
        refusals.append((caught.value.error_code, caught.value.message))
    assert refusals == [("invalid_client", "the client id or secret is wrong")] * 3


def test_a_rotated_secret_logs_nobody_in(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    room.accounts.rotate(admin, made.service_account.id)
    assert code_of(lambda: room.app_token(made)) == "invalid_client"


def test_a_suspended_tenants_application_gets_no_token(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    room.tenants.suspend(operator_caller(), "acme")
    assert code_of(lambda: room.app_token(made)) == "invalid_grant"


def test_secrets_are_guessed_ten_times_from_one_source(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    client = made.service_account.client_id
    for _ in range(10):
        assert code_of(lambda: room.issuer.client_credentials(client, "wrong", source="evil")) == "invalid_client"
    with pytest.raises(RateLimitedError) as caught:
        room.issuer.client_credentials(client, made.client_secret, source="evil")
    assert caught.value.retry_after_s == 900
    room.issuer.client_credentials(client, made.client_secret, source="elsewhere")


def test_made_up_clients_do_not_fill_the_table_of_guesses(room: IdentityRoom) -> None:
    for number in range(10):
        code_of(lambda number=number: room.issuer.client_credentials(f"svc_{number}", "x", source="evil"))  # type: ignore[misc]
    assert rows(room, guesses) == 1
    with pytest.raises(RateLimitedError):
        room.issuer.client_credentials("svc_next", "x", source="evil")


# --- device authorization ----------------------------------------------------------------------------


def test_a_person_logs_in_by_device_code(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled()
    begun = room.issuer.authorize_device(SDK, "modelkeep organization:acme", source="s")
    assert (begun.expires_in, begun.interval) == (DEVICE_S, 1)
    assert len(begun.user_code) == 9
    assert begun.user_code[4] == "-"
    assert set(begun.user_code) <= set("BCDFGHJKLMNPQRSTVWXZ-")
    assert code_of(lambda: room.issuer.redeem_device(begun.device_code, SDK)) == "authorization_pending"
    room.issuer.approve_device(f" {begun.user_code.lower()} ", "ada", PASSWORD, source="s")
    answer = room.issuer.redeem_device(begun.device_code, SDK)
    assert answer.refresh_token is not None
    caller = room.tenant_caller(answer.access_token)
    assert (caller.tenant, caller.principal, caller.name) == (admin.tenant, enrolled.principal, "ada")
    assert caller.principal_kind is PrincipalKind.USER


def test_asking_too_often_is_slowed_down(room: IdentityRoom) -> None:
    room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    ask = lambda: room.issuer.redeem_device(begun.device_code, SDK)  # noqa: E731
    assert code_of(ask) == "authorization_pending"
    assert code_of(ask) == "slow_down"
    room.clock.advance(1)
    assert code_of(ask) == "authorization_pending"


def test_a_device_code_works_once(room: IdentityRoom) -> None:
    room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    room.issuer.approve_device(begun.user_code, "ada", PASSWORD, source="s")
    room.issuer.redeem_device(begun.device_code, SDK)
    assert code_of(lambda: room.issuer.redeem_device(begun.device_code, SDK)) == "invalid_grant"


def test_of_many_devices_with_one_code_one_gets_tokens(room: IdentityRoom) -> None:
    room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    room.issuer.approve_device(begun.user_code, "ada", PASSWORD, source="s")
    outcomes: list[str] = []

    def redeem() -> None:
        try:
            room.issuer.redeem_device(begun.device_code, SDK)
            outcomes.append("tokens")
        except OAuthError as exc:
            outcomes.append(exc.error_code)

    threads = [threading.Thread(target=redeem) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["invalid_grant"] * 5 + ["tokens"]
    assert rows(room, refresh_tokens) == 1


def test_a_device_code_ends(room: IdentityRoom) -> None:
    room.enrolled()
    pending = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    approved = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    room.issuer.approve_device(approved.user_code, "ada", PASSWORD, source="s")
    room.clock.advance(DEVICE_S)
    for begun in (pending, approved):
        assert code_of(lambda begun=begun: room.issuer.redeem_device(begun.device_code, SDK)) == "expired_token"  # type: ignore[misc]
    late = lambda: room.issuer.approve_device(pending.user_code, "ada", PASSWORD, source="s")  # noqa: E731
    assert code_of(late) == "access_denied"
    room.clock.advance(DEVICE_S + 1)
    room.issuer.authorize_device(SDK, "organization:acme", source="s")
    assert rows(room, device_codes) == 1


def test_another_client_cannot_redeem_or_begin(room: IdentityRoom) -> None:
    room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    room.issuer.approve_device(begun.user_code, "ada", PASSWORD, source="s")
    assert code_of(lambda: room.issuer.redeem_device(begun.device_code, "evil-app")) == "invalid_grant"
    begin = lambda: room.issuer.authorize_device("evil-app", "organization:acme", source="s")  # noqa: E731
    assert code_of(begin) == "unauthorized_client"


@pytest.mark.parametrize("scope", ["", "modelkeep", "organization", "organization:acme organization:globex"])
def test_a_device_names_exactly_one_tenant(room: IdentityRoom, scope: str) -> None:
    assert code_of(lambda: room.issuer.authorize_device(SDK, scope, source="s")) == "invalid_scope"


def test_an_unknown_tenant_is_not_told_from_a_known_one(room: IdentityRoom) -> None:
    room.enrolled()
    known = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    unknown = room.issuer.authorize_device(SDK, "organization:nobody", source="s")
    assert (unknown.expires_in, unknown.interval) == (known.expires_in, known.interval)
    for begun in (known, unknown):
        refused = lambda begun=begun: room.issuer.redeem_device(begun.device_code, SDK)  # noqa: E731
        assert code_of(refused) == "authorization_pending"
    approve = lambda: room.issuer.approve_device(unknown.user_code, "ada", PASSWORD, source="s")  # noqa: E731
    assert code_of(approve) == "access_denied"


def test_a_person_of_another_tenant_cannot_approve(room: IdentityRoom) -> None:
    room.enrolled("acme", "ada")
    room.enrolled("globex", "gus")
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    assert code_of(lambda: room.issuer.approve_device(begun.user_code, "gus", PASSWORD, source="s")) == "access_denied"


def test_a_flood_of_device_logins_from_one_source_is_refused(room: IdentityRoom) -> None:
    for _ in range(300):
        room.issuer.authorize_device(SDK, "organization:acme", source="evil")
    with pytest.raises(RateLimitedError):
        room.issuer.authorize_device(SDK, "organization:acme", source="evil")
    room.issuer.authorize_device(SDK, "organization:acme", source="elsewhere")
    assert rows(room, device_codes) == 301


def test_codes_and_tokens_are_kept_as_hashes(room: IdentityRoom) -> None:
    room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    room.issuer.approve_device(begun.user_code, "ada", PASSWORD, source="s")
    answer = room.issuer.redeem_device(begun.device_code, SDK)
    with room.database.platform(read_only=True) as tx:
        stored = repr([dict(row) for table in (device_codes, refresh_tokens) for row in tx.all(sa.select(table))])
    assert answer.refresh_token is not None
    assert begun.device_code not in stored
    assert answer.refresh_token not in stored
    assert token_hash(answer.refresh_token) in stored


def test_what_holds_secrets_does_not_show_them(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    begun = room.issuer.authorize_device(SDK, "organization:acme", source="s")
    answer, made = room.log_in(), room.account(admin)
    link = room.members.invite(admin, "ben", frozenset({Role.ANALYST})).invitation
    shown = repr((begun, answer, made, link))
    assert answer.refresh_token is not None
    for secret in (begun.device_code, answer.access_token, answer.refresh_token, made.client_secret, link.token):
        assert secret not in shown


# --- refresh -----------------------------------------------------------------------------------------


def refreshed(room: IdentityRoom, token: str | None) -> str:
    assert token is not None
    successor = room.issuer.refresh(token, SDK).refresh_token
    assert successor is not None
    return successor


def test_a_refresh_token_gives_new_tokens(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    first = room.log_in()
    room.clock.advance(ACCESS_S)
    assert first.refresh_token is not None
    second = room.issuer.refresh(first.refresh_token, SDK)
    assert room.tenant_caller(second.access_token).tenant == admin.tenant
    assert second.refresh_token not in (None, first.refresh_token)


def test_a_replayed_refresh_token_revokes_its_family(room: IdentityRoom) -> None:
    room.enrolled()
    first = room.log_in().refresh_token
    second = refreshed(room, first)
    third = refreshed(room, second)
    other_family = room.log_in().refresh_token
    assert code_of(lambda: refreshed(room, first)) == "invalid_grant"
    for token in (second, third):
        assert code_of(lambda token=token: refreshed(room, token)) == "invalid_grant"  # type: ignore[misc]
    refreshed(room, other_family)


def test_of_many_uses_at_once_one_gets_tokens_and_none_outlives_the_replay(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().refresh_token
    assert token is not None
    got: list[str | None] = []

    def use() -> None:
        try:
            got.append(room.issuer.refresh(token, SDK).refresh_token)
        except OAuthError:
            got.append(None)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in got if one is not None]
    assert code_of(lambda: refreshed(room, winner)) == "invalid_grant"
    assert rows(room, refresh_tokens) == 0


def test_refreshing_does_not_move_the_end_of_the_family(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().refresh_token
    room.clock.advance(REFRESH_S - 1)
    token = refreshed(room, token)
    room.clock.advance(1)
    assert code_of(lambda: refreshed(room, token)) == "invalid_grant"
    room.log_in()
    assert rows(room, refresh_tokens) == 1


def test_a_refresh_token_of_another_client_or_none_is_refused(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().refresh_token
    assert token is not None
    for given, client in ((token, "evil-app"), (token, ""), ("mkr_unknown", SDK), ("", SDK)):
        assert code_of(lambda given=given, client=client: room.issuer.refresh(given, client)) == "invalid_grant"  # type: ignore[misc]
    refreshed(room, token)


def test_a_removed_member_and_a_suspended_tenant_refresh_nothing(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    room.tenants.enrol(invited.invitation.token, "ben", PASSWORD)
    of_ben, of_ada = room.log_in("acme", "ben").refresh_token, room.log_in().refresh_token
    room.members.remove(admin, invited.member.id)
    assert code_of(lambda: refreshed(room, of_ben)) == "invalid_grant"
    room.tenants.suspend(operator_caller(), "acme")
    assert code_of(lambda: refreshed(room, of_ada)) == "invalid_grant"
    # The refusal spent nothing: with resumption it is as it was before.
    room.tenants.resume(operator_caller(), "acme")
    assert refreshed(room, of_ada) != of_ada


def test_a_refresh_token_older_than_its_credential_is_over(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled()
    token = room.log_in().refresh_token
    with room.database.tenant(admin.tenant, by=admin) as tx:
        room.memberships.void_tokens(tx, enrolled.principal, room.clock.now_s())
    assert code_of(lambda: refreshed(room, token)) == "invalid_grant"


def test_a_revoked_refresh_token_ends_its_family(room: IdentityRoom) -> None:
    room.enrolled()
    first = room.log_in().refresh_token
    second = refreshed(room, first)
    room.issuer.revoke(second)
    room.issuer.revoke(second)
    room.issuer.revoke("mkr_unknown")
    assert code_of(lambda: refreshed(room, second)) == "invalid_grant"


def test_a_refresh_token_is_no_access_token_and_the_other_way_round(room: IdentityRoom) -> None:
    room.enrolled()
    answer = room.log_in()
    assert answer.refresh_token is not None
    with pytest.raises(InvalidTokenError):
        room.caller(answer.refresh_token)
    assert code_of(lambda: room.issuer.refresh(answer.access_token, SDK)) == "invalid_grant"


def test_a_revocation_waits_for_every_process_and_the_same_again_empties_no_cache(room: IdentityRoom) -> None:
    room.enrolled()
    token, epoch, waited = room.log_in().access_token, room.epoch.current(), room.epoch.refreshed
    room.issuer.revoke(token)
    assert (room.epoch.current(), room.epoch.refreshed) == (epoch + 1, waited + 1)
    for _ in range(3):
        room.issuer.revoke(token)
        room.issuer.revoke(f"{token}x")
    assert (room.epoch.current(), room.epoch.refreshed) == (epoch + 1, waited + 1)


def test_denied_tokens_are_forgotten_once_they_would_be_over(room: IdentityRoom) -> None:
    room.enrolled()
    room.issuer.revoke(room.log_in().access_token)
    room.clock.advance(ACCESS_S + 61)
    room.issuer.revoke(room.log_in().access_token)
    assert rows(room, denied_tokens) == 1


# --- keys --------------------------------------------------------------------------------------------


def kids(room: IdentityRoom) -> list[str]:
    return [key["kid"] for key in room.issuer.jwks()["keys"]]


def test_keys_that_could_not_be_read_are_read_at_the_next_call(
    room: IdentityRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kids(room)
    room.new_issuer().rotate_key()  # another process
    with room.database.platform() as tx:
        tx.bump_epoch()
    with monkeypatch.context() as broken:
        broken.setattr(room.store, "get_or_create", lambda *_: pytest.fail("the disk"))
        with pytest.raises(pytest.fail.Exception):
            kids(room)
    assert kids(room)[1:] == before


def test_two_processes_that_rotate_keep_both_keys(room: IdentityRoom) -> None:
    one, other, first = room.new_issuer(), room.new_issuer(), kids(room)
    tokens = [issuer.jwks() for issuer in (one, other)]
    assert len(tokens) == 2
    one.rotate_key()
    other.rotate_key()  # it has not read what the first did
    found = [key["kid"] for key in other.jwks()["keys"]]
    assert found[1:] == [key["kid"] for key in one.jwks()["keys"]]
    assert found[2:] == first


def test_the_key_set_holds_no_private_part(room: IdentityRoom) -> None:
    (key,) = room.issuer.jwks()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")


def test_a_retired_key_verifies_until_its_last_token_is_over_and_no_longer(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    (old,) = kids(room)
    room.issuer.rotate_key()
    room.clock.advance(1)
    room.issuer.rotate_key()
    assert len(kids(room)) == 3
    room.clock.advance(ACCESS_S - 2)
    room.new_authenticator().authenticate(token, REQUEST)
    room.clock.advance(61)
    assert old not in kids(room)
    room.clock.advance(1)
    assert len(kids(room)) == 1


def test_a_leaked_old_key_signs_nothing_that_is_believed(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    leaked = room.store.kept["issuer-keys"]
    room.issuer.rotate_key()
    room.clock.advance(ACCESS_S + 60)
    now = room.clock.now_s()
    current, room.store.kept["issuer-keys"] = room.store.kept["issuer-keys"], leaked
    forged = room.forge(token, iat=now, nbf=now, exp=now + 300)
    room.store.kept["issuer-keys"] = current
    with pytest.raises(InvalidTokenError) as caught:
        room.caller(forged)
    assert caught.value.message == "the token's key is not one of the issuer's"


def test_keys_survive_a_restart(room: IdentityRoom) -> None:
    room.enrolled()
    room.issuer.rotate_key()
    token, known = room.log_in().access_token, kids(room)
    room.issuer = room.new_issuer()
    assert kids(room) == known
    room.new_authenticator().authenticate(token, REQUEST)


def test_two_issuers_that_start_at_once_agree_on_one_key(room: IdentityRoom) -> None:
    other = room.new_issuer()
    assert other.jwks() == room.issuer.jwks()
    assert isinstance(room.store, FakeSecretStore)
    assert list(room.store.kept) == ["issuer-keys"]
