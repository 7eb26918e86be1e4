"""One run at a time changes a host: others are refused, or wait, and a run that died holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from live_host import BASE, LiveHost, a_host, a_model

from ollamaops.apply.locks import holding_hosts, holding_ledgers
from ollamaops.engine import apply_hosts, plan_hosts
from ollamaops.errors import Cancelled, OllamaopsError, RefusedError, StateError, UsageError
from ollamaops.events import Noted
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.memory import ledger_of, server_ledger
from ollamaops.observe.run import HostCase, Options, Surroundings
from ollamaops.ollama.client import OllamaClient
from ollamaops.state.ledger_document import LEDGER_NAME, LedgerDocument, parse_document
from ollamaops.state.locks import HostLock, LockOwner
from ollamaops.state.records import ModelRecord

HOLD_UNTIL_TOLD = """
import sys
from pathlib import Path
from ollamaops.state.locks import LockOwner
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
def around(shared_host: LiveHost) -> Iterator[Surroundings]:
    shared_host.events.clear()
    shared_host.cancel = CancelToken()
    with shared_host.around() as around:
        yield around


def specs(*names: str) -> list[HostSpec]:
    return [HostSpec(name=name, url=f"http://{name}:11434") for name in names]


def on_server(host: LiveHost, **options: object) -> HostCase:
    (case,) = host.cases([a_model(BASE)])
    return replace(case, state="server", options=replace(Options(run_id="ours"), **options))  # type: ignore[arg-type]


def document(host: LiveHost) -> LedgerDocument:
    with OllamaClient.connect(host.sandbox.url) as client:
        return parse_document(client.show(LEDGER_NAME).system)


def take_elsewhere(host: LiveHost, around: Surroundings, *, ends_in_s: float) -> None:
    """Another controller has the lock of the host's own ledger."""
    end = (datetime.now(UTC) + timedelta(seconds=ends_in_s)).isoformat()
    holder = LockOwner(token="theirs", who="dave@other", process=9, since="08:00", expires_at=end)
    with OllamaClient.connect(host.sandbox.url) as client:
        assert server_ledger(client, around, writing=True).take(holder) is None


# locks in the state folder


def test_a_host_that_another_run_has_is_refused_at_once_and_the_owner_named(
    tmp_path: Path, around: Surroundings
) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-2:11434"),
        pytest.raises(RefusedError) as caught,
        holding_hosts(specs("gpu-1", "gpu-2"), tmp_path, around, run_id="r"),
    ):
        raise AssertionError("the block must not begin")
    assert str(caught.value) == "gpu-2: another run has the lock: carol@ci, process 1, since 09:00"
    assert caught.value.hint == "wait for it to end, with --wait 10m"
    assert caught.value.exit_code == 4


def test_after_a_refusal_none_of_the_other_hosts_stays_locked(tmp_path: Path, around: Surroundings) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-2:11434"),
        pytest.raises(RefusedError),
        holding_hosts(specs("gpu-1", "gpu-2", "gpu-3"), tmp_path, around, run_id="r"),
    ):
        raise AssertionError("the block must not begin")
    with holding_hosts(specs("gpu-1", "gpu-3"), tmp_path, around, run_id="r"):
        pass


def test_within_the_block_the_hosts_are_ours_and_afterwards_nobodys(
    tmp_path: Path, around: Surroundings
) -> None:
    holder = LockOwner(token="t", who="w", process=1, since="s")
    locks = [HostLock(tmp_path, spec.memory_key) for spec in specs("gpu-1", "gpu-2")]
    with holding_hosts(specs("gpu-1", "gpu-2"), tmp_path, around, run_id="r7"):
        owners = [lock.take(holder) for lock in locks]
    assert [(owner.token, owner.process) for owner in owners if owner] == [("r7", os.getpid())] * 2
    assert [lock.take(holder) for lock in locks] == [None, None]
    for lock in locks:
        lock.release()


def test_two_names_of_one_server_are_one_lock(tmp_path: Path, around: Surroundings) -> None:
    (spec,) = specs("gpu-1")
    with holding_hosts([spec, replace(spec, name="alias")], tmp_path, around, run_id="r"):
        pass


def test_a_run_that_waits_goes_on_when_the_other_one_is_killed(tmp_path: Path, around: Surroundings) -> None:
    with held_by_another_process(tmp_path, "http://gpu-1:11434") as other:
        told: list[str] = []

        def hear(event: object) -> None:
            assert isinstance(event, Noted)
            told.append(event.message)
            other.send_signal(signal.SIGKILL)

        patient = replace(around, emit=hear)
        with holding_hosts(specs("gpu-1"), tmp_path, patient, run_id="r", wait_s=60):
            assert told == ["waiting for the lock, which another run has: carol@ci, process 1, since 09:00"]


def test_a_run_does_not_wait_longer_than_it_was_told(tmp_path: Path, around: Surroundings) -> None:
    with (
        held_by_another_process(tmp_path, "http://gpu-1:11434"),
        pytest.raises(RefusedError, match=r"gpu-1: another run has the lock after 0\.2 s: carol@ci"),
        holding_hosts(specs("gpu-1"), tmp_path, around, run_id="r", wait_s=0.2),
    ):
        raise AssertionError("the block must not begin")


def test_waiting_can_be_interrupted(tmp_path: Path, around: Surroundings) -> None:
    stopping = replace(around, emit=lambda _: around.cancel.cancel())
    with (
        held_by_another_process(tmp_path, "http://gpu-1:11434"),
        pytest.raises(Cancelled),
        holding_hosts(specs("gpu-1"), tmp_path, stopping, run_id="r", wait_s=60),
    ):
        raise AssertionError("the block must not begin")


def test_a_folder_in_which_nothing_can_be_locked_is_an_error(tmp_path: Path, around: Surroundings) -> None:
    (tmp_path / "state").write_text("in the way")
    with (
        pytest.raises(StateError, match="the lock cannot be used: not a directory"),
        holding_hosts(specs("gpu-1"), tmp_path / "state", around, run_id="r"),
    ):
        raise AssertionError("the block must not begin")


# locks on hosts


def test_hosts_that_keep_nothing_themselves_are_not_asked_anything(around: Surroundings) -> None:
    case = HostCase(spec=HostSpec(name="gpu-1", url="http://127.0.0.1:9"), models=())
    with holding_ledgers([case], around) as holding:
        assert holding is around


def test_only_with_the_lock_is_the_ledger_of_a_host_written(host: LiveHost) -> None:
    case = on_server(host)
    record = {"m": ModelRecord(how="pulled", digest="d")}
    with host.around() as around, around.open_client(case.spec, around.cancel) as client:
        ledger_of(case, client, around).remember("x", record)
        assert host.stranger.tags() == {}
        with holding_ledgers([case], around) as holding:
            ledger_of(case, client, holding).remember("x", record)
            holder = document(host).lock_owner
            assert holder is not None
            assert (holder.token, holder.process) == ("ours", os.getpid())
        assert document(host).lock_owner is None
        assert list(ledger_of(case, client, around).load("gpu-1")) == ["m"]


def test_a_host_that_another_controller_has_is_refused_and_nothing_is_changed(host: LiveHost) -> None:
    case = on_server(host)
    with host.around() as around:
        take_elsewhere(host, around, ends_in_s=60)
        before = host.stranger.tags()
        plan = plan_hosts([case], around)
        with pytest.raises(RefusedError) as caught:
            apply_hosts(plan, [case], around)
    assert str(caught.value) == "gpu-1: another run has the lock: dave@other, process 9, since 08:00"
    assert host.stranger.tags() == before


def test_the_lock_of_a_controller_that_died_is_taken_over_when_it_has_run_out(host: LiveHost) -> None:
    case = on_server(host)
    with host.around() as around:
        take_elsewhere(host, around, ends_in_s=-1)
        report = apply_hosts(plan_hosts([case], around), [case], around)
    assert report.hosts[0].verified
    assert document(host).lock_owner is None


def test_waiting_for_a_controller_ends_when_its_lock_runs_out(host: LiveHost) -> None:
    case = on_server(host, wait_s=60.0)
    late = datetime.now(UTC) + timedelta(days=1)
    notes: list[str] = []
    with host.around() as around:
        take_elsewhere(host, around, ends_in_s=3600)

        def let_a_day_pass(event: object) -> None:
            assert isinstance(event, Noted)
            notes.append(event.message)

        def now() -> str:
            return (late if notes else datetime.now(UTC)).isoformat()

        with holding_ledgers([case], replace(around, emit=let_a_day_pass, now=now)):
            holder = document(host).lock_owner
    assert holder is not None
    assert holder.token == "ours"
    assert notes == ["waiting for the lock, which another run has: dave@other, process 9, since 08:00"]


def test_a_long_run_renews_its_lock(host: LiveHost) -> None:
    case = on_server(host)
    with host.around() as around, holding_ledgers([case], around, lease_s=1.5):
        first = document(host).lock_owner
        assert first is not None
        while (now := document(host).lock_owner) is None or now.expires_at <= first.expires_at:
            around.cancel.wait(0.1)
    assert document(host).lock_owner is None


def test_a_ledger_that_cannot_be_used_stops_the_run_before_it_begins(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.stranger.create("ollamaops-ledger:state", BASE, system="You are a pirate.")
    with (
        host.around() as around,
        pytest.raises(StateError, match="gpu-1: 'ollamaops-ledger:state' is not a usable ledger"),
        holding_ledgers([on_server(host)], around),
    ):
        raise AssertionError("the block must not begin")


def test_a_host_that_does_not_answer_is_left_to_the_run_to_report(host: LiveHost) -> None:
    case = replace(on_server(host), spec=HostSpec(name="gpu-9", url="http://127.0.0.1:9", timeout_s=1))
    with host.around() as around, holding_ledgers([case], around) as holding:
        assert list(holding.held) == ["gpu-9"]
    notes = [event for event in host.events if isinstance(event, Noted)]
    assert notes == []


def test_a_host_whose_secret_cannot_be_read_is_left_to_the_run_to_report(host: LiveHost) -> None:
    def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
        error: OllamaopsError = UsageError("no secret")
        raise error

    with (
        host.around() as around,
        holding_ledgers([on_server(host)], replace(around, open_client=refuse)) as holding,
    ):
        assert holding.held == {}


def test_what_cannot_be_written_at_the_end_is_told(host: LiveHost) -> None:
    record = {"m": ModelRecord(how="pulled", digest="d")}
    case = on_server(host)
    with host.around() as around, holding_ledgers([case], around) as holding:
        holding.held["gpu-1"].remember("x", record)
        host.stranger.create("ollamaops-ledger:state", "ollamaops-ledger:state", system="You are a pirate.")
    (note,) = [event for event in host.events if isinstance(event, Noted)]
    assert (note.level, note.host) == ("warning", "gpu-1")
    assert note.message.startswith("gpu-1: 'ollamaops-ledger:state' is not a usable ledger")
