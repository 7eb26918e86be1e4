"""The lock file on disk is replaced in one step, or stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollamaops.errors import ManifestError, StateError
from ollamaops.names import Digest, ModelName
from ollamaops.registry.documents import LIST_TYPE, ManifestList
from ollamaops.registry.lock import Lock, LockEntry
from ollamaops.registry.lock_file import load_lock, save_lock

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


def test_a_byte_order_mark_is_no_flaw(tmp_path: Path) -> None:
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


def test_what_is_no_file_is_a_problem_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="the lock: cannot be read: Is a directory"):
        load_lock(tmp_path)
