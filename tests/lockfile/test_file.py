"""The lock file on disk is replaced in one step, or stays as it was."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ollamaops.errors import ManifestError, StateError
from ollamaops.lockfile.file import load_lock, save_lock
from ollamaops.lockfile.lock import Lock, LockEntry
from ollamaops.names import Digest, ModelName
from ollamaops.registry.documents import LIST_TYPE, ManifestList

LOCK = Lock({ModelName.parse("qwen3"): LockEntry(Digest.of(b""), ManifestList(LIST_TYPE, ()))})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "ollamaops.lock"
    assert load_lock(path) is None
    assert save_lock(path, LOCK)
    assert load_lock(path) == LOCK


def test_the_same_lock_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "ollamaops.lock"
    save_lock(path, LOCK)
    before = path.stat()
    assert not save_lock(path, LOCK)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "ollamaops.lock"
    save_lock(path, LOCK)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_lock(path) == LOCK


def test_a_full_disk_leaves_the_old_lock_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ollamaops.lock"
    save_lock(path, Lock())
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="No space left on device"):
        save_lock(path, LOCK)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_and_a_socket_are_refused_without_waiting_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/null")):
            with pytest.raises(ManifestError, match=r"the lock: not a regular file$") as caught:
                load_lock(path)
            assert caught.value.problems[0].hint == "name an ordinary file with --lock-file"


def test_a_folder_instead_of_a_lock_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="the lock: cannot be read: Is a directory"):
        load_lock(tmp_path)


@pytest.mark.parametrize("data", [b"version: [", b"\xff\xfe\x00", b"<<<<<<< HEAD\n"])
def test_the_hint_of_a_broken_lock_does_not_lead_back_to_the_same_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ollamaops.lock"
    path.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        load_lock(path)
    (problem,) = caught.value.problems
    assert problem.hint is not None
    assert problem.hint.endswith("delete it and run `ollamaops lock`") or "delete the file" in problem.hint
    path.unlink()  # as the hint says
    assert load_lock(path) is None
