"""The root key in a file: nobody else's to read, outside the data, whole or not there."""

import errno
import os
import pickle
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.roots.file import FileRootKey, RootKeyError
from modelkeep_platform.keys.sealed import SealedError

SHOWN = "modelkeep-root-key-v1 " + "0123456789abcdef" * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "root.key"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def written(path: Path) -> Callable[[str], Path]:
    """Write a key file as a person would who has its copy."""

    def write(text: str) -> Path:
        path.parent.mkdir(mode=0o700)
        path.write_bytes(text.encode())
        path.chmod(0o600)
        return path

    return write


def _refused(path: Path) -> str:
    with pytest.raises(RootKeyError) as raised:
        FileRootKey.load(path)
    assert raised.value.error_code == "root_key_unusable"
    assert str(path) not in raised.value.message
    return raised.value.message


def test_the_file_and_its_folder_are_the_owners_alone_whatever_the_umask(path: Path, data: Path) -> None:
    before = os.umask(0)
    try:
        FileRootKey.create(path, data=data)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_files_hold_two_keys(path: Path, data: Path) -> None:
    one, two = (FileRootKey.create(path.with_name(name), data=data) for name in "ab")
    assert one.id != two.id
    assert path.with_name("a").read_bytes() != path.with_name("b").read_bytes()


def test_the_id_does_not_change_and_is_not_the_key(path: Path, data: Path) -> None:
    made = FileRootKey.create(path, data=data)
    assert FileRootKey.load(path).id == made.id
    assert made.id.removeprefix("file-") not in path.read_text()


def test_the_key_is_in_no_representation_and_cannot_be_pickled(path: Path, data: Path) -> None:
    root = FileRootKey.create(path, data=data)
    key = path.read_text().split()[1]
    for shown in (repr(root), str(root), f"{root}", repr(vars(root))):
        assert key not in shown
        assert repr(bytes.fromhex(key)) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(root)


def test_a_file_that_is_there_is_never_overwritten(path: Path, data: Path) -> None:
    FileRootKey.create(path, data=data)
    before = path.read_bytes()
    with pytest.raises(ConflictError) as raised:
        FileRootKey.create(path, data=data)
    assert raised.value.error_code == "root_key_exists"
    assert path.read_bytes() == before


def test_a_link_in_its_place_is_not_followed(path: Path, data: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError):
        FileRootKey.create(path, data=data)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("where", ["root.key", "a/b/root.key", "a/../root.key"])
def test_a_key_within_the_data_folder_is_neither_made_nor_read(data: Path, where: str) -> None:
    data.mkdir()
    with pytest.raises(ConflictError) as made:
        FileRootKey.create(data / where, data=data)
    with pytest.raises(ConflictError) as read:
        FileRootKey.load(data / where, data=data)
    assert made.value.error_code == read.value.error_code == "root_key_inside"
    assert list(data.iterdir()) == []


def test_a_link_that_leads_into_the_data_folder_is_within_it(data: Path, tmp_path: Path) -> None:
    data.mkdir()
    (tmp_path / "keys").symlink_to(data, target_is_directory=True)
    with pytest.raises(ConflictError):
        FileRootKey.create(tmp_path / "keys" / "root.key", data=data)
    assert list(data.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["disk full", "EIO"])
def test_half_a_key_is_not_left_behind(path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            FileRootKey.create(path, data=data)
    assert list(path.parent.iterdir()) == []
    FileRootKey.create(path, data=data)


def test_file_and_folder_are_synced_before_the_key_is_used(
    path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    FileRootKey.create(path, data=data)
    assert synced == [path, path.parent]


@pytest.mark.parametrize("tail", ["", "\n", "\r\n", "\n\n", " \n"], ids=repr)
def test_a_copy_restored_by_hand_is_read(written: Callable[[str], Path], data: Path, tail: str) -> None:
    assert FileRootKey.load(written(SHOWN + tail), data=data).id == "file-f6adbeb9ea29e887"


DAMAGED = {
    "empty": "",
    "header alone": "modelkeep-root-key-v1 ",
    "no header": "0123456789abcdef" * 4,
    "other version": SHOWN.replace("v1", "v2"),
    "short": SHOWN[:-1],
    "long": SHOWN + "00",
    "two keys": f"{SHOWN}\n{SHOWN}\n",
    "spaces within": SHOWN[:40] + " " + SHOWN[40:],
    "not hexadecimal": SHOWN[:-1] + "g",
    "other digits": SHOWN[:-1] + "٣",
    "zeros": "\0" * 87,
    "leading space": " " + SHOWN,
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused_without_its_text(written: Callable[[str], Path], text: str) -> None:
    message = _refused(written(text))
    assert "damaged" in message
    assert "0123456789abcdef" not in message


def test_a_missing_file_is_refused(path: Path) -> None:
    assert "cannot be opened" in _refused(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o777, 0o610])
def test_a_file_open_to_others_is_refused(path: Path, data: Path, mode: int) -> None:
    FileRootKey.create(path, data=data)
    path.chmod(mode)
    assert "open to others" in _refused(path)


def test_a_file_of_another_owner_is_refused(path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FileRootKey.create(path, data=data)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert "open to others" in _refused(path)


def _link(path: Path) -> None:
    path.with_name("real").write_text(SHOWN)
    path.with_name("real").chmod(0o600)
    path.symlink_to(path.with_name("real"))


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def _socket(path: Path) -> None:
    # Not bound to the long path itself: a socket's address is short.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("place", [_link, _pipe, _folder, _socket], ids=["link", "pipe", "folder", "socket"])
def test_what_is_no_plain_file_is_refused_at_once(path: Path, place: Callable[[Path], None]) -> None:
    path.parent.mkdir(mode=0o700)
    place(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    _refused(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_wrapped_key_opens_under_its_root_and_context_only(path: Path, data: Path, tmp_path: Path) -> None:
    FileRootKey.create(path, data=data)
    root = FileRootKey.load(path, data=data)
    wrapped = root.wrap(SecretBytes(b"k" * 32), b"context")
    assert root.unwrap(wrapped, b"context").reveal() == b"k" * 32
    FileRootKey.create(tmp_path / "elsewhere" / "other.key", data=data)
    other = FileRootKey.load(tmp_path / "elsewhere" / "other.key", data=data)
    assert root.id != other.id
    for opened_by, context in ((root, b"another"), (other, b"context")):
        with pytest.raises(SealedError):
            opened_by.unwrap(wrapped, context)
