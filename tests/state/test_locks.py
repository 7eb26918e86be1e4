"""One writer per host: who has the lock, who waits, and what a killed owner leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import StateError
from ollamaops.state.locks import (
    UNKNOWN_OWNER,
    HostLock,
    LockOwner,
    has_died,
    owner_from_json,
    owner_to_json,
    where_am_i,
    who_am_i,
)

HOST = "http://gpu-1.lan:11434"
ALICE = LockOwner(token="r1", who="alice@build-7", process=4711, since="2026-11-22T10:00:00.000Z")
BOB = LockOwner(token="r2", who="bob@laptop", process=12, since="2026-11-22T10:00:01.000Z")
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
# takes the lock, says so, and ends when its standard input does
TAKE_AND_STAY = """
import sys
from pathlib import Path
from ollamaops.state.locks import HostLock, LockOwner
lock = HostLock(Path(sys.argv[1]), sys.argv[2])
owner = LockOwner(token="other", who="carol@ci", process=1, since="2026-11-22T09:00:00Z")
print(lock.take(owner), flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock, or has been told who has it."""
    arguments = [sys.executable, "-c", TAKE_AND_STAY, str(folder), HOST]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.poll() is None:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_free_lock_is_taken_and_the_next_one_is_told_who_has_it(tmp_path: Path) -> None:
    mine, others = HostLock(tmp_path, HOST), HostLock(tmp_path, HOST)
    assert mine.take(ALICE) is None
    assert others.take(BOB) == ALICE
    mine.release()
    assert others.take(BOB) is None
    assert mine.take(ALICE) == BOB
    others.release()


def test_locks_of_different_hosts_and_folders_are_different_locks(tmp_path: Path) -> None:
    locks = [
        HostLock(tmp_path / "a", HOST),
        HostLock(tmp_path / "a", "http://x"),
        HostLock(tmp_path / "b", HOST),
    ]
    assert [lock.take(ALICE) for lock in locks] == [None, None, None]
    for lock in locks:
        lock.release()


def test_a_lock_in_another_process_is_seen_with_its_owner_and_free_when_that_is_killed(
    tmp_path: Path,
) -> None:
    lock = HostLock(tmp_path, HOST)
    with another_process(tmp_path) as process:
        assert first_line(process) == "None"
        owner = lock.take(ALICE)
        assert str(owner) == "carol@ci, process 1, since 2026-11-22T09:00:00Z"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.take(ALICE) is None
    lock.release()


def test_another_process_is_told_that_this_one_has_the_lock(tmp_path: Path) -> None:
    lock = HostLock(tmp_path, HOST)
    assert lock.take(ALICE) is None
    with another_process(tmp_path) as process:
        assert first_line(process) == str(ALICE)
    lock.release()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"token": "r1"}', b"\xff"])
def test_an_owner_that_has_not_said_who_it_is_is_another_run(tmp_path: Path, text: bytes) -> None:
    mine, others = HostLock(tmp_path, HOST), HostLock(tmp_path, HOST)
    assert mine.take(ALICE) is None
    mine.path.write_bytes(text)
    assert others.take(BOB) == UNKNOWN_OWNER
    assert str(UNKNOWN_OWNER) == "another run"
    mine.release()


def test_a_lock_file_that_a_killed_owner_left_behind_says_nothing(tmp_path: Path) -> None:
    lock = HostLock(tmp_path, HOST)
    assert lock.take(LockOwner(token="r", who="a" * 500, process=1, since="s")) is None
    lock.release()
    assert lock.path.exists()
    assert lock.take(ALICE) is None
    assert HostLock(tmp_path, HOST).take(BOB) == ALICE
    lock.release()


def test_releasing_what_is_not_held_does_nothing(tmp_path: Path) -> None:
    lock = HostLock(tmp_path, HOST)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("in the way")
    lock = HostLock(tmp_path, HOST)
    with pytest.raises(StateError) as caught:
        lock.take(ALICE)
    assert str(caught.value) == f"{lock.path}: the lock cannot be used: file exists"
    assert caught.value.hint == "choose a folder on a local disk that can be written with --state-dir"


def test_a_file_system_without_locks_is_named_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  descriptors, not a folder of ours
    with pytest.raises(StateError, match="the lock cannot be used: no locks available"):
        HostLock(tmp_path, HOST).take(ALICE)
    assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208


def test_the_lock_file_is_private_and_named_after_no_secret(tmp_path: Path) -> None:
    lock = HostLock(tmp_path, "https://user:secret@gpu-1")
    assert lock.take(ALICE) is None
    assert lock.path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in str(lock.path)
    lock.release()


# owners


@given(
    st.builds(
        LockOwner,
        token=st.text(),
        who=st.text(),
        process=st.integers(),
        since=st.text(),
        expires_at=st.text(),
    )
)
def test_a_owner_survives_json(owner: LockOwner) -> None:
    assert owner_from_json(owner_to_json(owner)) == owner


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**owner_to_json(ALICE), "process": True},
        {**owner_to_json(ALICE), "process": "1"},
        {**owner_to_json(ALICE), "who": None},
        {**owner_to_json(ALICE), "expires_at": 3},
        {**owner_to_json(ALICE), "place": None},
    ],
)
def test_what_is_no_owner_is_none(value: object) -> None:
    assert owner_from_json(value) is None


@pytest.mark.parametrize(
    "expires_at, expired",
    [
        ("", False),
        ((NOW + timedelta(seconds=1)).isoformat(), False),
        (NOW.isoformat(), True),
        ("2026-11-22T12:00:00+02:00", True),
        ("2026-11-22T12:00:01+02:00", False),
        ("tomorrow", True),
        ("2027-01-01T00:00:00", True),
    ],
)
def test_a_lock_runs_out_at_its_end_and_at_once_if_that_cannot_be_read(
    expires_at: str, expired: bool
) -> None:
    owner = LockOwner(token="t", who="w", process=1, since="s", expires_at=expires_at)
    assert owner.has_expired(NOW) == expired


def test_somebody_without_a_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise KeyError("no such uid")

    assert who_am_i().count("@") == 1
    monkeypatch.setattr("getpass.getuser", refuse)
    assert who_am_i().partition("@")[0] == str(os.getuid())


def an_owner(process: int, place: str) -> LockOwner:
    return LockOwner(token="t", who="w", process=process, since="s", place=place)


def test_only_an_owner_that_would_be_seen_from_here_is_known_to_have_died() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert has_died(an_owner(ended.pid, where_am_i()))
    assert not has_died(an_owner(ended.pid, ""))
    assert not has_died(an_owner(ended.pid, "another machine"))
    assert not has_died(an_owner(os.getpid(), where_am_i()))
    assert not has_died(an_owner(1, where_am_i()))
    assert not has_died(an_owner(1 << 80, where_am_i()))


def test_a_place_is_the_same_for_every_process_of_a_machine() -> None:
    code = "from ollamaops.state.locks import where_am_i; print(where_am_i(), end='')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == where_am_i()


def test_where_the_system_does_not_tell_the_name_of_the_machine_has_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr("pathlib.Path.readlink", refuse)
    assert where_am_i() == socket.gethostname()
