"""The platform's own secrets: sealed under its key, one of a name, never shown."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fakes.sealed_room import SealedRoom
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.platform_secrets import Ed25519Signer, PlatformSecrets
from modelkeep_platform.storage.tables.keys import platform_secrets, wrapped_deks

VALUE = SecretBytes(b"the issuer's private key")


@pytest.fixture
def kept(room: SealedRoom) -> PlatformSecrets:
    kept = PlatformSecrets(database=room.database, sealer=room.keys, clock=room.clock)
    kept.prepare()
    return kept


def test_preparing_twice_makes_one_key_of_the_platforms(room: SealedRoom, kept: PlatformSecrets) -> None:
    before = room.rows(wrapped_deks)
    kept.prepare()
    assert room.rows(wrapped_deks) == before
    assert [(row["tenant_id"], row["object_id"]) for row in before] == [(PLATFORM, "platform-secrets")]


def test_a_secret_comes_back_as_a_secret_and_lies_sealed(room: SealedRoom, kept: PlatformSecrets) -> None:
    assert kept.get("issuer") is None
    kept.get_or_create("issuer", VALUE.reveal)
    assert kept.get("issuer") == VALUE
    assert isinstance(kept.get("issuer"), SecretBytes)
    assert VALUE.reveal() not in repr(room.rows(platform_secrets)).encode()


def test_a_later_secret_replaces_the_earlier(room: SealedRoom, kept: PlatformSecrets) -> None:
    kept.get_or_create("issuer", VALUE.reveal)
    room.clock.advance(10)
    assert kept.change("issuer", lambda before: SecretBytes(before.reveal() + b", and new")).reveal().endswith(b"new")
    assert kept.get("issuer") == SecretBytes(VALUE.reveal() + b", and new")
    assert [row["created_at"] for row in room.rows(platform_secrets)] == [room.clock.now_s()]


def test_one_that_is_not_there_is_not_changed(kept: PlatformSecrets) -> None:
    with pytest.raises(LookupError):
        kept.change("issuer", lambda before: before)
    assert kept.get("issuer") is None


def test_of_two_processes_that_change_one_each_changes_what_the_other_made_of_it(room: SealedRoom) -> None:
    one, other = (PlatformSecrets(database=room.database, sealer=room.keys, clock=room.clock) for _ in range(2))
    one.prepare()
    one.get_or_create("issuer", lambda: b"0")
    with ThreadPoolExecutor(4) as threads:
        each = [threads.submit(kept.change, "issuer", _one_more) for kept in (one, other) for _ in range(10)]
    assert all(future.result() for future in each)
    assert one.get("issuer") == SecretBytes(b"20")


def _one_more(before: SecretBytes) -> SecretBytes:
    return SecretBytes(str(int(before.reveal()) + 1).encode())


def test_a_secret_is_made_once(kept: PlatformSecrets) -> None:
    made = iter([b"first", b"second"])
    assert kept.get_or_create("checkpoint-key", lambda: next(made)) == SecretBytes(b"first")
    assert kept.get_or_create("checkpoint-key", lambda: next(made)) == SecretBytes(b"first")


def test_of_two_processes_that_make_one_the_first_wins(kept: PlatformSecrets) -> None:
    def make() -> bytes:
        kept.get_or_create("checkpoint-key", lambda: b"of another process")
        return b"ours"

    assert kept.get_or_create("checkpoint-key", make) == SecretBytes(b"of another process")


def test_one_that_vanishes_at_once_is_not_made_up(kept: PlatformSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "get", lambda _name: None)
    with pytest.raises(RuntimeError, match="gone"):
        kept.get_or_create("checkpoint-key", lambda: b"x")


def test_a_secret_moved_to_another_name_does_not_open(room: SealedRoom, kept: PlatformSecrets) -> None:
    kept.get_or_create("issuer", VALUE.reveal)
    with room.database.platform() as tx:
        tx.execute(sa.update(platform_secrets).values(name="checkpoint-key"))
    with pytest.raises(IntegrityError) as raised:
        kept.get("checkpoint-key")
    assert raised.value.error_code == "sealed_invalid"
    assert kept.get("issuer") is None


def test_the_signer_signs_with_the_key_it_was_given_after_a_restart_too(kept: PlatformSecrets) -> None:
    secret = kept.get_or_create("checkpoint-key", Ed25519Signer.generate)
    signer, again = Ed25519Signer(secret), Ed25519Signer(kept.get_or_create("checkpoint-key", Ed25519Signer.generate))
    assert signer.public_key() == again.public_key()
    assert len(signer.public_key()) == 32
    Ed25519PublicKey.from_public_bytes(again.public_key()).verify(signer.sign(b"message"), b"message")


def test_two_generated_keys_differ() -> None:
    assert Ed25519Signer.generate() != Ed25519Signer.generate()


def test_the_signing_key_is_not_printed_and_not_pickled() -> None:
    secret = Ed25519Signer.generate()
    signer = Ed25519Signer(SecretBytes(secret))
    for shown in (repr(signer), str(signer), repr(vars(signer))):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(signer)
