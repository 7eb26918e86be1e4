"""What a run did is written down: its start, every action, its end; and a disk that refuses stops nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from live_host import BASE, LiveHost, a_build, a_host, a_model

from ollamaops.apply.history import recorded
from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_tasks
from ollamaops.errors import RefusedError
from ollamaops.events import ActionStarted, Noted
from ollamaops.manifest.types import ModelSpec
from ollamaops.plan.codec import plan_from_json
from ollamaops.plan.results import RunReport
from ollamaops.state.records import UNFINISHED, RunRecord

FOLDER = Path(__file__).parent
IMPORTED_FROM = os.pathsep.join((str(FOLDER), str(FOLDER.parent / "support")))
# the lower one needs the higher one, which cannot be pulled
CHAIN = [
    a_model(BASE),
    a_model("missing:1b"),
    a_model("child", a_build("missing:1b", system="s")),
]
APPLY_AND_DIE = """
import os, signal, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from msgspec.structs import replace
from pathlib import Path
from live_host import BASE, RecordingProxy, LiveHost, a_model
from test_history import run
sandbox = type("Sandbox", (), {"url": sys.argv[2], "version": "0.33.0-rc2"})()
host = LiveHost(sandbox, Path(sys.argv[3]), RecordingProxy())
host.emit = lambda event: type(event).__name__ == "ActionEnded" and os.kill(os.getpid(), signal.SIGKILL)
run(host, [a_model(BASE)])
"""


@pytest.fixture
def host() -> Iterator[LiveHost]:
    with a_host() as host:
        yield host


def run(host: LiveHost, models: Sequence[ModelSpec], *, code: int = 0, folder: Path = FOLDER) -> RunReport:
    tasks = host.tasks(models)
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        with recorded(plan, tasks, run, command="apply --force protect", folder=folder) as recorder:
            report = apply_tasks(plan, tasks, recorder.run)
            recorder.finish(report, code)
    return report


def audit(host: LiveHost) -> list[dict[str, object]]:
    path = host.state / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_run(host: LiveHost) -> RunRecord:
    (found,) = host.ledger.runs(1)
    return found


def test_a_run_is_kept_with_who_when_what_and_how_it_ended(host: LiveHost) -> None:
    report = run(host, CHAIN, code=3)
    kept = last_run(host)
    assert (kept.run_id, kept.command, kept.exit_code) == ("run", "apply --force protect", 3)
    assert kept.who.count("@") == 1
    assert kept.at <= kept.ended_at
    assert len(kept.manifest_digest) == 64
    assert plan_from_json(json.loads(kept.plan)) == report.plan
    assert [(each["action"], each["result"]) for each in json.loads(kept.outcomes)] == [
        ("gpu-1/pull/llama3.2:3b", "succeeded"),
        ("gpu-1/pull/missing:1b", "failed"),
        ("gpu-1/create/child:latest", "skipped"),
    ]
    host_part = json.loads(kept.hosts)["gpu-1"]
    assert (host_part["verified"], host_part["server_version"]) == (False, "0.33.0-rc2")


def test_each_action_is_one_line_of_the_audit_log_those_that_never_began_too(host: LiveHost) -> None:
    run(host, CHAIN)
    lines = audit(host)
    assert sorted((line["action"], line["result"]) for line in lines) == [
        ("gpu-1/create/child:latest", "skipped"),
        ("gpu-1/pull/llama3.2:3b", "succeeded"),
        ("gpu-1/pull/missing:1b", "failed"),
    ]
    assert {(line["run"], line["command"], line["host"]) for line in lines} == {
        ("run", "apply --force protect", "gpu-1")
    }
    skipped = next(line for line in lines if line["result"] == "skipped")
    assert skipped["because"] == "gpu-1/pull/missing:1b"
    failed = next(line for line in lines if line["result"] == "failed")
    assert "missing:1b" in str(failed["error"])


def test_the_log_of_a_second_run_follows_that_of_the_first(host: LiveHost) -> None:
    run(host, [a_model(BASE)])
    before = (host.state / "audit.jsonl").read_bytes()
    run(host, [a_model("bot", a_build(BASE, system="s"))])
    assert (host.state / "audit.jsonl").read_bytes().startswith(before)
    assert len(audit(host)) == 2


def test_an_interrupted_run_says_of_every_action_that_it_was_interrupted_once(host: LiveHost) -> None:
    def stop(event: object) -> None:
        if isinstance(event, ActionStarted):
            host.cancel.cancel()

    host.emit = stop
    host.parallel = 1
    run(host, [a_model("llama3.2:1b"), a_model(BASE), a_model("qwen3:0.6b")], code=130)
    lines = audit(host)
    assert len(lines) == len({str(line["action"]) for line in lines}) == 3
    assert {line["result"] for line in lines} <= {"interrupted", "succeeded"}
    assert last_run(host).exit_code == 130


def test_a_run_with_nothing_to_do_leaves_no_trace(host: LiveHost) -> None:
    run(host, [a_model(BASE)])
    before = last_run(host), audit(host)
    run(host, [a_model(BASE)])
    assert (last_run(host), audit(host)) == before


def test_a_run_that_is_killed_stays_unfinished_and_what_it_did_is_in_the_log(host: LiveHost) -> None:
    arguments = [sys.executable, "-c", APPLY_AND_DIE, IMPORTED_FROM, host.sandbox.url, str(host.state)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (last_run(host).exit_code, last_run(host).is_finished) == (UNFINISHED, False)
    assert [(line["action"], line["result"]) for line in audit(host)] == [
        ("gpu-1/pull/llama3.2:3b", "succeeded")
    ]


@pytest.mark.parametrize("error, code", [(RefusedError("no"), 4), (ZeroDivisionError(), 1)])
def test_a_run_that_ends_in_an_error_is_kept_with_its_exit_code(
    host: LiveHost, error: Exception, code: int
) -> None:
    tasks = host.tasks([a_model(BASE)])
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        with pytest.raises(type(error)), recorded(plan, tasks, run, command="apply", folder=FOLDER):
            raise error
    assert last_run(host).exit_code == code


def test_a_state_folder_that_cannot_be_written_is_told_once_and_stops_nothing(host: LiveHost) -> None:
    tasks = host.tasks([a_model(BASE)])
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        (host.state / "audit.jsonl").mkdir()
        with recorded(plan, tasks, run, command="apply", folder=FOLDER) as recorder:
            (host.state / "ledger.sqlite3").unlink(missing_ok=True)
            (host.state / "ledger.sqlite3").mkdir()
            report = apply_tasks(plan, tasks, recorder.run)
            recorder.finish(report, 0)
        (host.state / "ledger.sqlite3").rmdir()
    assert [type(result.outcome).__name__ for result in report.results] == ["Succeeded"]
    told = [event.message for event in host.events if isinstance(event, Noted)]
    assert sum(message.startswith("this run is not written down: ") for message in told) == 1
