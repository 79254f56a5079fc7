"""What every root of trust promises, over the fake and the real ones."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.root_keys import FakeRootKey
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.context import kek_context
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.roots.port import RootKey

KEK = SecretBytes(bytes(range(32)))
CONTEXT = kek_context(TenantId("acme"), version=1, root_id="root")

Same = Callable[[], RootKey]
"""Opens the same root again, as a restart would."""


@pytest.fixture(params=["fake", "file"])
def same(request: pytest.FixtureRequest, tmp_path: Path) -> Same:
    if request.param == "fake":
        return FakeRootKey
    path = tmp_path / "keys" / "root"
    FileRootKey.create(path, data=tmp_path / "data")
    return lambda: FileRootKey.load(path)


@pytest.fixture
def other(same: Same, tmp_path: Path) -> RootKey:
    """Another root of the same kind."""
    if isinstance(same(), FakeRootKey):
        return FakeRootKey("another-root")
    return FileRootKey.create(tmp_path / "keys" / "other", data=tmp_path / "data")


def test_what_was_wrapped_is_unwrapped_after_a_restart(same: Same) -> None:
    assert same().unwrap(same().wrap(KEK, CONTEXT), CONTEXT) == KEK


def test_a_root_keeps_its_id_and_no_other_has_it(same: Same, other: RootKey) -> None:
    assert same().id == same().id != other.id
    assert 1 <= len(same().id) <= 64


def test_the_wrapped_key_does_not_hold_the_key(same: Same) -> None:
    assert KEK.reveal() not in same().wrap(KEK, CONTEXT)


def test_wrapping_twice_gives_two_values(same: Same) -> None:
    root = same()
    assert root.wrap(KEK, CONTEXT) != root.wrap(KEK, CONTEXT)


CONTEXTS = {
    "another tenant's": kek_context(TenantId("globex"), version=1, root_id="root"),
    "another version's": kek_context(TenantId("acme"), version=2, root_id="root"),
    "another root's": kek_context(TenantId("acme"), version=1, root_id="toor"),
    "none": b"",
    "longer": CONTEXT + b"\0",
    "shorter": CONTEXT[:-1],
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_a_wrapped_key_opens_under_its_own_context_only(same: Same, context: bytes) -> None:
    wrapped = same().wrap(KEK, CONTEXT)
    with pytest.raises(IntegrityError):
        same().unwrap(wrapped, context)


def test_a_wrapped_key_opens_by_its_own_root_only(same: Same, other: RootKey) -> None:
    with pytest.raises(IntegrityError):
        other.unwrap(same().wrap(KEK, CONTEXT), CONTEXT)


def test_any_changed_byte_is_refused_and_says_nothing_of_the_key(same: Same) -> None:
    wrapped = same().wrap(KEK, CONTEXT)
    for at in range(len(wrapped)):
        changed = wrapped[:at] + bytes([wrapped[at] ^ 0x80]) + wrapped[at + 1 :]
        with pytest.raises(IntegrityError) as raised:
            same().unwrap(changed, CONTEXT)
        assert KEK.reveal().hex() not in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 31, 40])
def test_what_is_cut_is_refused(same: Same, length: int) -> None:
    with pytest.raises(IntegrityError):
        same().unwrap(same().wrap(KEK, CONTEXT)[:length], CONTEXT)


def test_the_key_comes_back_as_a_secret(same: Same) -> None:
    unwrapped = same().unwrap(same().wrap(KEK, CONTEXT), CONTEXT)
    assert isinstance(unwrapped, SecretBytes)
    with pytest.raises(TypeError):
        pickle.dumps(unwrapped)
