"""Weights are hashed in constant memory, once in a file's life, and a changed file is never taken for the old one."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from unprivileged import as_nobody

from ollamaops.errors import Cancelled, StateError, WeightsError
from ollamaops.files.digest import (
    HASHED_BYTES,
    RACY_NS,
    DigestCache,
    FileStamp,
    digest_of,
    hash_file,
    hash_files,
    is_racy,
    stamp_of,
)
from ollamaops.names import Digest

CONTENTS = b"weights" * 1000
ENDLESS = 1 << 40  # a file with a hole of this size takes no room, and many minutes to hash


class Notes:
    """A cache that counts."""

    def __init__(self) -> None:
        self.known: dict[FileStamp, Digest] = {}

    def get(self, stamp: FileStamp) -> Digest | None:
        return self.known.get(stamp)

    def has_seen(self, path: Path) -> bool:
        return any(stamp.path == str(path) for stamp in self.known)

    def put(self, stamp: FileStamp, digest: Digest) -> None:
        self.known[stamp] = digest


class ReadOnlyNotes(Notes):
    def put(self, stamp: FileStamp, digest: Digest) -> None:
        raise StateError("the state folder is read-only")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(CONTENTS)
    return path


def later() -> int:
    """A clock long after any change that a test makes."""
    return time.time_ns() + 10 * RACY_NS


@pytest.mark.parametrize(
    "size", [0, 1, HASHED_BYTES - 1, HASHED_BYTES, HASHED_BYTES + 1, 3 * HASHED_BYTES + 7]
)
def test_the_digest_is_sha256_of_all_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = os.urandom(size)
    path.write_bytes(data)
    facts = hash_file(path)
    assert facts.digest.hex == hashlib.sha256(data).hexdigest()
    assert (facts.path, facts.size_bytes, facts.stamp) == (path, size, stamp_of(path))
    assert facts.is_current()


def test_progress_counts_up_to_the_size_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * HASHED_BYTES + 5))
    seen: list[int] = []
    hash_file(path, on_progress=seen.append)
    assert seen == [HASHED_BYTES, 2 * HASHED_BYTES, 2 * HASHED_BYTES + 5]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 * HASHED_BYTES)
    tracemalloc.start()
    try:
        hash_file(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * HASHED_BYTES


def test_hashing_can_be_cancelled_between_blocks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * HASHED_BYTES))
    seen: list[int] = []
    with pytest.raises(Cancelled):
        hash_file(path, on_progress=seen.append, cancel=lambda: len(seen) == 2)
    assert seen == [HASHED_BYTES, 2 * HASHED_BYTES]


# Files that cannot be hashed


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    path.write_bytes(CONTENTS[::-1])


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES = [grow, lambda path: os.truncate(path, 10), overwrite, replace, Path.unlink]


@pytest.mark.parametrize("change", CHANGES, ids=["grown", "cut", "overwritten", "replaced", "deleted"])
def test_a_file_that_changes_while_it_is_read_is_refused(path: Path, change: Callable[[Path], None]) -> None:
    os.utime(path, (1, 1))
    changes = iter([change])

    def change_once(done_bytes: int) -> None:
        for change in changes:
            change(path)

    with pytest.raises(WeightsError) as caught:
        hash_file(path, on_progress=change_once)
    assert str(caught.value) == f"{path}: changed while it was read"
    assert caught.value.hint


def test_a_git_lfs_pointer_is_refused_with_the_command_that_helps(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n")
    with pytest.raises(WeightsError, match="is a git-lfs pointer") as caught:
        hash_file(path)
    assert "git lfs pull" in (caught.value.hint or "")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for ask in (hash_file, stamp_of):
        with pytest.raises(WeightsError, match="no such file or directory"):
            ask(tmp_path / "missing")
        with pytest.raises(WeightsError, match="is a directory, not a weights file"):
            ask(tmp_path)


def test_an_unreadable_file_is_refused(path: Path) -> None:
    path.chmod(0)
    path.parent.chmod(0o711)
    with as_nobody(), pytest.raises(WeightsError) as caught:
        hash_file(path)
    assert str(caught.value) == f"{path}: cannot be read: permission denied"
    assert caught.value.hint == "give the user that runs ollamaops the right to read it"


# Remembered digests


def reads_of(path: Path, cache: DigestCache, clock_ns: Callable[[], int] = later) -> tuple[Digest, bool]:
    """The digest, and whether the file had to be read for it."""
    seen: list[int] = []
    facts = digest_of(path, cache, on_progress=seen.append, clock_ns=clock_ns)
    return facts.digest, bool(seen)


def test_a_file_is_hashed_once_in_its_life(path: Path) -> None:
    cache = Notes()
    assert reads_of(path, cache) == (Digest.of(CONTENTS), True)
    assert reads_of(path, cache) == (Digest.of(CONTENTS), False)


def test_a_file_that_has_just_changed_is_not_remembered(path: Path) -> None:
    cache = Notes()
    assert reads_of(path, cache, time.time_ns) == (Digest.of(CONTENTS), True)
    assert cache.known == {}


@pytest.mark.parametrize(
    "mtime_ns, ctime_ns, racy",
    [
        (0, 0, False),
        (100 * RACY_NS, 0, True),
        (0, 100 * RACY_NS, True),
        (99 * RACY_NS, 99 * RACY_NS, False),
        (99 * RACY_NS + 1, 0, True),
        (100 * RACY_NS + 5, 0, True),
        (200 * RACY_NS, 0, False),
    ],
)
def test_only_stamps_well_before_the_hashing_are_trusted(mtime_ns: int, ctime_ns: int, racy: bool) -> None:
    stamp = FileStamp("/a", 1, mtime_ns, ctime_ns, 1, 1)
    assert is_racy(stamp, 100 * RACY_NS) == racy


def keeping_mtime(path: Path, change: Callable[[], object]) -> None:
    """Change the file and set its mtime back, as archive tools do; wait until the kernel's clock has ticked."""
    before = path.stat()
    change()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_file_is_never_taken_for_the_old_one(path: Path) -> None:
    cache = Notes()
    reads_of(path, cache)
    for number in range(3):
        contents = CONTENTS[:-1] + str(number).encode()
        keeping_mtime(path, lambda contents=contents: path.write_bytes(contents))  # type: ignore[misc]
        assert reads_of(path, cache) == (Digest.of(contents), True)


def test_another_file_under_the_same_name_size_and_time_is_hashed(path: Path) -> None:
    cache = Notes()
    reads_of(path, cache)
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(CONTENTS[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert reads_of(path, cache) == (Digest.of(CONTENTS[::-1]), True)


def test_a_cache_that_cannot_be_written_is_not_an_error(path: Path) -> None:
    assert reads_of(path, ReadOnlyNotes()) == (Digest.of(CONTENTS), True)


def test_facts_tell_when_the_file_has_changed_since(path: Path) -> None:
    facts = hash_file(path)
    path.write_bytes(CONTENTS + b"more")
    assert not facts.is_current()


# Several files


def test_several_files_are_hashed_in_the_order_they_were_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "cab"]
    for path in paths:
        path.write_text(path.name)
    facts = hash_files([*paths, paths[0]])
    assert list(facts) == paths
    assert [fact.digest for fact in facts.values()] == [Digest.of(path.name.encode()) for path in paths]


def test_several_files_report_their_own_progress(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name * 5)
    seen: list[tuple[str, int]] = []
    hash_files(
        [tmp_path / "a", tmp_path / "b"], on_progress=lambda path, done: seen.append((path.name, done))
    )
    assert sorted(seen) == [("a", 5), ("b", 5)]


def test_several_files_use_the_cache(path: Path) -> None:
    cache = Notes()
    digest_of(path, cache, clock_ns=later)
    seen: list[Path] = []
    facts = hash_files([path], cache=cache, on_progress=lambda path, done: seen.append(path))
    assert (facts[path].digest, seen) == (Digest.of(CONTENTS), [])


def test_no_files_give_no_digests() -> None:
    assert hash_files([]) == {}


def test_one_bad_file_stops_the_others_and_is_the_error(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(ENDLESS)
    done: list[int] = []
    with pytest.raises(WeightsError, match="missing: cannot be read"):
        hash_files([big, tmp_path / "missing"], workers=2, on_progress=lambda path, count: done.append(count))
    assert not done or done[-1] < ENDLESS


def test_ctrl_c_stops_the_hashing_of_several_files(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(ENDLESS)
    done: list[int] = []
    noticed = threading.Event()

    def interrupt(path: Path, count: int) -> None:
        done.append(count)
        if len(done) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            noticed.wait()

    def on_signal(number: int, frame: FrameType | None) -> None:
        noticed.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        with pytest.raises(KeyboardInterrupt):
            hash_files([big], on_progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done[-1] < ENDLESS


def test_several_files_can_be_cancelled(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(ENDLESS)
    asked = threading.Event()
    with pytest.raises(Cancelled):
        hash_files([big], on_progress=lambda path, count: asked.set(), cancel=asked.is_set)
