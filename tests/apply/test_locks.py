"""One run at a time changes a host: others are refused, or wait, and a run that died holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from live_host import BASE, LiveHost, a_host, a_model
from msgspec.structs import replace

from ollamaops.apply.locks import lock_hosts, lock_ledgers
from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_tasks
from ollamaops.errors import Cancelled, OllamaopsError, RefusedError, StateError, UsageError
from ollamaops.events import Noted
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.ledger_model import ledger_of, server_ledger
from ollamaops.observe.run import HostTask, Run, RunOptions
from ollamaops.ollama.client import OllamaClient
from ollamaops.state.ledger import Ledger
from ollamaops.state.ledger_document import LEDGER_NAME, LedgerDocument, parse_document
from ollamaops.state.locks import HostLock, LockOwner
from ollamaops.state.records import ModelRecord

HOLD_UNTIL_TOLD = """
import sys
from pathlib import Path
from typing import Any
from ollamaops.state.ledger import Ledger
from ollamaops.state.locks import LockOwner
from ollamaops.state.ledger import Ledger
from ollamaops.state.locks import HostLock
HostLock(Path(sys.argv[1]), sys.argv[2]).take(LockOwner(token="x", who="carol@ci", process=1, since="09:00"))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder: Path, host: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [sys.executable, "-c", HOLD_UNTIL_TOLD, str(folder), host]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def shared_host() -> Iterator[LiveHost]:
    with a_host() as host:
        yield host


@pytest.fixture
def host() -> Iterator[LiveHost]:
    with a_host() as host:
        host.cancel = CancelToken()
        yield host


@pytest.fixture
def run(shared_host: LiveHost) -> Iterator[Run]:
    shared_host.events.clear()
    shared_host.cancel = CancelToken()
    with shared_host.opened() as run:
        yield run


def specs(*names: str) -> list[HostSpec]:
    return [HostSpec(name=name, url=f"http://{name}:11434") for name in names]


def on_server(host: LiveHost, **options: Any) -> HostTask:
    host.options, host.run_id = RunOptions(**options), "ours"
    (task,) = host.tasks([a_model(BASE)])
    return replace(task, state="server")


def at(folder: Path, run: Run, run_id: str = "r", *, wait_s: float = 0.0) -> Run:
    """The run with its state in that folder."""
    return replace(run, ledger=Ledger(folder), run_id=run_id, options=RunOptions(wait_s=wait_s))


def document(host: LiveHost) -> LedgerDocument:
    with OllamaClient.connect(host.sandbox.url) as client:
        return parse_document(client.show(LEDGER_NAME).system)


def take_elsewhere(host: LiveHost, run: Run, *, ends_in_s: float) -> None:
    """Another controller has the lock of the host's own ledger."""
    end = (datetime.now(UTC) + timedelta(seconds=ends_in_s)).isoformat()
    holder = LockOwner(token="theirs", who="dave@other", process=9, since="08:00", expires_at=end)
    with OllamaClient.connect(host.sandbox.url) as client:
        assert server_ledger(client, run, writing=True).take(holder) is None


# locks in the state folder


def test_a_host_that_another_run_has_is_refused_at_once_and_the_owner_named(tmp_path: Path, run: Run) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-2:11434"),
        pytest.raises(RefusedError) as caught,
        lock_hosts(specs("gpu-1", "gpu-2"), at(tmp_path, run)),
    ):
        raise AssertionError("the block must not begin")
    assert str(caught.value) == "gpu-2: another run has the lock: carol@ci, process 1, since 09:00"
    assert caught.value.hint == "wait for it to end, with --wait 10m"
    assert caught.value.exit_code == 4


def test_after_a_refusal_none_of_the_other_hosts_stays_locked(tmp_path: Path, run: Run) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-2:11434"),
        pytest.raises(RefusedError),
        lock_hosts(specs("gpu-1", "gpu-2", "gpu-3"), at(tmp_path, run)),
    ):
        raise AssertionError("the block must not begin")
    with lock_hosts(specs("gpu-1", "gpu-3"), at(tmp_path, run)):
        pass


def test_within_the_block_the_hosts_are_ours_and_afterwards_nobodys(tmp_path: Path, run: Run) -> None:
    holder = LockOwner(token="t", who="w", process=1, since="s")
    locks = [HostLock(tmp_path, spec.memory_key) for spec in specs("gpu-1", "gpu-2")]
    with lock_hosts(specs("gpu-1", "gpu-2"), at(tmp_path, run, "r7")):
        owners = [lock.take(holder) for lock in locks]
    assert [(owner.token, owner.process) for owner in owners if owner] == [("r7", os.getpid())] * 2
    assert [lock.take(holder) for lock in locks] == [None, None]
    for lock in locks:
        lock.release()


def test_two_names_of_one_server_are_one_lock(tmp_path: Path, run: Run) -> None:
    (spec,) = specs("gpu-1")
    with lock_hosts([spec, replace(spec, name="alias")], at(tmp_path, run)):
        pass


def test_a_run_that_waits_goes_on_when_the_other_one_is_killed(tmp_path: Path, run: Run) -> None:
    with held_by_another_process(tmp_path, "http://gpu-1:11434") as other:
        told: list[str] = []

        def hear(event: object) -> None:
            assert isinstance(event, Noted)
            told.append(event.message)
            other.send_signal(signal.SIGKILL)

        patient = replace(run, emit=hear)
        with lock_hosts(specs("gpu-1"), at(tmp_path, patient, wait_s=60)):
            assert told == ["waiting for the lock, which another run has: carol@ci, process 1, since 09:00"]


def test_a_run_does_not_wait_longer_than_it_was_told(tmp_path: Path, run: Run) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-1:11434"),
        pytest.raises(RefusedError, match=r"gpu-1: another run has the lock after 0\.2 s: carol@ci"),
        lock_hosts(specs("gpu-1"), at(tmp_path, run, wait_s=0.2)),
    ):
        raise AssertionError("the block must not begin")


def test_waiting_can_be_interrupted(tmp_path: Path, run: Run) -> None:
    stopping = replace(run, emit=lambda _: run.cancel.cancel())
    with (
        held_by_another_process(tmp_path, "http://gpu-1:11434"),
        pytest.raises(Cancelled),
        lock_hosts(specs("gpu-1"), at(tmp_path, stopping, wait_s=60)),
    ):
        raise AssertionError("the block must not begin")


def test_a_folder_in_which_nothing_can_be_locked_is_an_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "state").write_text("in the way")
    with (
        pytest.raises(StateError, match="the lock cannot be used: not a directory"),
        lock_hosts(specs("gpu-1"), at(tmp_path / "state", run)),
    ):
        raise AssertionError("the block must not begin")


# locks on hosts


def test_hosts_that_keep_nothing_themselves_are_not_asked_anything(run: Run) -> None:
    task = HostTask(spec=HostSpec(name="gpu-1", url="http://127.0.0.1:9"), models=())
    with lock_ledgers([task], run) as holding:
        assert holding is run


def test_only_with_the_lock_is_the_ledger_of_a_host_written(host: LiveHost) -> None:
    task = on_server(host)
    record = {"m": ModelRecord(how="pulled", digest="d")}
    with host.opened() as run, run.open_client(task.spec, run.cancel) as client:
        ledger_of(task, client, run).remember("x", record)
        assert host.stranger.tags() == {}
        with lock_ledgers([task], run) as holding:
            ledger_of(task, client, holding).remember("x", record)
            holder = document(host).lock_owner
            assert holder is not None
            assert (holder.token, holder.process) == ("ours", os.getpid())
        assert document(host).lock_owner is None
        assert list(ledger_of(task, client, run).load("gpu-1")) == ["m"]


def test_a_host_that_another_controller_has_is_refused_and_nothing_is_changed(host: LiveHost) -> None:
    task = on_server(host)
    with host.opened() as run:
        take_elsewhere(host, run, ends_in_s=60)
        before = host.stranger.tags()
        plan = plan_tasks([task], run)
        with pytest.raises(RefusedError) as caught:
            apply_tasks(plan, [task], run)
    assert str(caught.value) == "gpu-1: another run has the lock: dave@other, process 9, since 08:00"
    assert host.stranger.tags() == before


def test_the_lock_of_a_controller_that_died_is_taken_over_when_it_has_run_out(host: LiveHost) -> None:
    task = on_server(host)
    with host.opened() as run:
        take_elsewhere(host, run, ends_in_s=-1)
        report = apply_tasks(plan_tasks([task], run), [task], run)
    assert report.hosts[0].verified
    assert document(host).lock_owner is None


def test_waiting_for_a_controller_ends_when_its_lock_runs_out(host: LiveHost) -> None:
    task = on_server(host, wait_s=60.0)
    late = datetime.now(UTC) + timedelta(days=1)
    notes: list[str] = []
    with host.opened() as run:
        take_elsewhere(host, run, ends_in_s=3600)

        def let_a_day_pass(event: object) -> None:
            assert isinstance(event, Noted)
            notes.append(event.message)

        def now() -> str:
            return (late if notes else datetime.now(UTC)).isoformat()

        with lock_ledgers([task], replace(run, emit=let_a_day_pass, now=now)):
            holder = document(host).lock_owner
    assert holder is not None
    assert holder.token == "ours"
    assert notes == ["waiting for the lock, which another run has: dave@other, process 9, since 08:00"]


def test_a_long_run_renews_its_lock(host: LiveHost) -> None:
    task = on_server(host)
    with host.opened() as run, lock_ledgers([task], run, lease_s=1.5):
        first = document(host).lock_owner
        assert first is not None
        while (now := document(host).lock_owner) is None or now.expires_at <= first.expires_at:
            run.cancel.wait(0.1)
    assert document(host).lock_owner is None


def test_a_ledger_that_cannot_be_used_stops_the_run_before_it_begins(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.stranger.create("ollamaops-ledger:state", BASE, system="You are a pirate.")
    with (
        host.opened() as run,
        pytest.raises(StateError, match="gpu-1: 'ollamaops-ledger:state' is not a usable ledger"),
        lock_ledgers([on_server(host)], run),
    ):
        raise AssertionError("the block must not begin")


def test_a_host_that_does_not_answer_is_left_to_the_run_to_report(host: LiveHost) -> None:
    task = replace(on_server(host), spec=HostSpec(name="gpu-9", url="http://127.0.0.1:9", timeout_s=1))
    with host.opened() as run, lock_ledgers([task], run) as holding:
        assert list(holding.server_ledgers) == ["gpu-9"]
    notes = [event for event in host.events if isinstance(event, Noted)]
    assert notes == []


def test_a_host_whose_secret_cannot_be_read_is_left_to_the_run_to_report(host: LiveHost) -> None:
    def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
        error: OllamaopsError = UsageError("no secret")
        raise error

    with (
        host.opened() as run,
        lock_ledgers([on_server(host)], replace(run, open_client=refuse)) as holding,
    ):
        assert holding.server_ledgers == {}


def test_what_cannot_be_written_at_the_end_is_told(host: LiveHost) -> None:
    record = {"m": ModelRecord(how="pulled", digest="d")}
    task = on_server(host)
    with host.opened() as run, lock_ledgers([task], run) as holding:
        holding.server_ledgers["gpu-1"].remember("x", record)
        host.stranger.create("ollamaops-ledger:state", "ollamaops-ledger:state", system="You are a pirate.")
    (note,) = [event for event in host.events if isinstance(event, Noted)]
    assert (note.level, note.host) == ("warning", "gpu-1")
    assert note.message.startswith("gpu-1: 'ollamaops-ledger:state' is not a usable ledger")
