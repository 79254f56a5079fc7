"""Passwords and random secrets."""

import threading

import pytest

from modelkeep_platform.core.errors import UnavailableError, UnprocessableError
from modelkeep_platform.identity import secrets
from modelkeep_platform.identity.secrets import (
    check_password,
    hash_password,
    new_secret,
    password_matches,
    token_hash,
)


@pytest.mark.parametrize("password", ["", "short", "elevenchars", "a" * 12, "abcabcabcabc", "x1" * 129])
def test_weak_and_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        check_password(password)
    assert caught.value.error_code == "weak_password"
    assert not password or password not in caught.value.message


@pytest.mark.parametrize("password", ["twelve chars", "correct horse battery", "pässwörter sind", "ab1!" * 64])
def test_long_passwords_of_any_characters_are_taken(password: str) -> None:
    assert check_password(password) == password


def test_a_password_matches_its_own_salted_hash_only() -> None:
    hashed = hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert hashed != hash_password("correct horse battery")
    assert password_matches("correct horse battery", hashed)
    assert not password_matches("correct horse batterz", hashed)
    assert not password_matches("", hashed)


@pytest.mark.parametrize("password", ["", "correct horse battery", "x" * 10_000])
def test_nobody_has_no_password(password: str) -> None:
    assert not password_matches(password, None)


def test_nobodys_hash_costs_what_a_real_one_costs() -> None:
    real = hash_password("correct horse battery")
    assert secrets._NOBODY.split("$")[:4] == real.split("$")[:4]
    assert len(secrets._NOBODY) == len(real)


def test_few_passwords_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hashing", threading.BoundedSemaphore(1))
    monkeypatch.setattr(secrets, "_HASHING_WAIT_S", 0.01)
    with secrets._one_of_few():
        for work in (lambda: hash_password("correct horse battery"), lambda: password_matches("x", None)):
            with pytest.raises(UnavailableError) as caught:
                work()
            assert caught.value.error_code == "login_busy"
    assert not password_matches("x", None)


def test_random_secrets_have_256_bits_and_a_prefix() -> None:
    made = {new_secret("mks") for _ in range(100)}
    assert len(made) == 100
    assert all(one.startswith("mks_") and len(one) == 4 + 43 for one in made)


def test_the_hash_of_a_random_secret_is_sha_256() -> None:
    assert token_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
