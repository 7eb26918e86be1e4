"""`ollamaops history`, and one run at a time: the program as its users and other runs of it see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml
from patience import PATIENCE_S
from recording_proxy import RecordingProxy, Request

from ollamaops.cli.main import run
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import UNFINISHED, RunRecord

Write = Callable[[object], None]
BASE = "llama3.2:3b"
PROGRAM = Path(sys.executable).parent / "ollamaops"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        yield sandbox


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def write(manifest: object) -> None:
        (tmp_path / "ollamaops.yaml").write_text(yaml.safe_dump(manifest))

    return write


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("OLLAMAOPS_STATE_DIR", str(folder))
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; it has to work."""
    capsys.readouterr()
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def runs(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads(told(capsys, "history", "-o", "json"))["runs"]
    return entries


# history


@pytest.mark.usefixtures("host", "state")
def test_every_apply_is_in_the_list_the_last_one_first(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "history") == "no run has changed anything yet\n"
    write({"models": [BASE]})
    told(capsys, "apply", "-y")
    write({"models": [BASE, {"name": "bot", "from": BASE, "system": "s"}]})
    told(capsys, "apply", "-y", "--force", "protect")
    told(capsys, "apply", "-y")
    assert [(each["command"], each["exit_code"], each["summary"]) for each in runs(capsys)] == [
        ("apply --force protect", 0, {"succeeded": 1}),
        ("apply", 0, {"succeeded": 1}),
    ]
    listed = told(capsys, "history", "-n", "1").splitlines()
    assert len(listed) == 2
    assert listed[0].split() == ["RUN", "WHEN", "WHO", "COMMAND", "COMMIT", "RESULT"]
    assert listed[1].endswith("exit 0: 1 succeeded")


@pytest.mark.usefixtures("host", "state")
def test_one_run_is_shown_by_the_beginning_of_its_id(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": [BASE, "missing:1b"]})
    assert run(["apply", "-y"]) == 3
    (entry,) = runs(capsys)
    shown = told(capsys, "history", "show", str(entry["run_id"])[:5])
    assert "  succeeded local/pull/llama3.2:3b" in shown
    assert "  failed local/pull/missing:1b: " in shown
    assert shown == told(capsys, "history", "show", "latest")
    document = json.loads(told(capsys, "history", "show", "latest", "-o", "json"))
    assert document["plan"]["format"] == "ollamaops-plan"
    assert [outcome["result"] for outcome in document["outcomes"]] == ["succeeded", "failed"]
    assert document["commit"] is None


@pytest.mark.usefixtures("host", "state")
def test_two_runs_are_compared_action_by_action(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write({"models": [BASE, "missing:1b"]})
    run(["apply", "-y"])
    run(["apply", "-y"])
    second, first = (str(entry["run_id"]) for entry in runs(capsys))
    said = told(capsys, "history", "diff", first, second)
    assert said.splitlines() == [f"{first} → {second}", "- local/pull/llama3.2:3b: succeeded"]
    document = json.loads(told(capsys, "history", "diff", first, second, "-o", "json"))
    assert (document["changed"], document["actions"]) == ({}, {"local/pull/llama3.2:3b": ["succeeded", None]})
    assert (
        told(capsys, "history", "diff", first, first)
        == f"{first} and {first} did the same, with the same end\n"
    )


def test_a_run_that_is_not_known_or_not_the_only_one_is_a_wrong_command_line(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(state)
    for run_id in ("abc1", "abc2", "abc"):
        ledger.record_run(
            RunRecord(
                run_id=run_id, at="t", command="apply", hosts="{}", manifest_digest="m", exit_code=UNFINISHED
            )
        )
    assert run(["history", "show", "x"]) == 64
    assert "no run 'x' is known" in capsys.readouterr().err
    assert run(["history", "show", "ab"]) == 64
    assert "'ab' is the beginning of 3 runs: abc, abc2, abc1" in capsys.readouterr().err
    assert "not finished" in told(capsys, "history", "show", "abc")


def test_without_any_run_there_is_no_latest(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", "show", "latest"]) == 64
    assert "no run 'latest' is known" in capsys.readouterr().err
    assert not state.exists()


def test_the_state_folder_may_be_named_before_and_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "s").record_run(
        RunRecord(run_id="abc", at="t", command="apply", hosts="{}", manifest_digest="m", exit_code=0)
    )
    folder = str(tmp_path / "s")
    for arguments in (["--state-dir", folder, "history"], ["history", "--state-dir", folder]):
        assert "abc" in told(capsys, *arguments)
    assert "apply" in told(capsys, "history", "--state-dir", folder, "show", "abc")


# one run at a time


def start_slow_apply(folder: Path, host: Sandbox) -> subprocess.Popen[bytes]:
    """A real process that has the host, and waits until somebody lets the server go on."""
    environ = {**os.environ, "OLLAMA_HOST": host.url}
    return subprocess.Popen(
        [PROGRAM, "apply", "-y", "--progress", "plain"],
        cwd=folder,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sandbox, threading.Event, threading.Event]]:
    """A host whose pulls wait; the events say that one has begun, and let it go on."""
    from starlette.types import ASGIApp, Receive, Scope, Send

    begun, go_on = threading.Event(), threading.Event()

    def wrap(app: ASGIApp) -> ASGIApp:
        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/api/pull":
                import anyio.to_thread

                begun.set()
                await anyio.to_thread.run_sync(go_on.wait, 60)
            await app(scope, receive, send)

        return gated

    with Sandbox(faults=wrap) as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        yield sandbox, begun, go_on
        go_on.set()


Gate = tuple[Sandbox, threading.Event, threading.Event]


def test_a_second_apply_is_refused_and_told_who_has_the_host(
    gate: Gate, write: Write, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, begun, go_on = gate
    write({"models": [BASE]})
    first = start_slow_apply(tmp_path, host)
    assert begun.wait(PATIENCE_S)
    assert run(["apply", "-y"]) == 4
    assert run(["prune", "-y"]) == 4
    said = capsys.readouterr().err
    assert f"local: another run has the lock: {os.environ.get('USER', '')}" in said
    assert f"process {first.pid}, since 20" in said
    for command in ("plan", "drift", "status", "validate"):
        assert run([command]) in (0, 2)
    go_on.set()
    assert first.wait(PATIENCE_S) == 0
    assert run(["apply", "-y"]) == 0
    assert sorted(path.name for path in state.iterdir()) == ["audit.jsonl", "ledger.sqlite3", "locks"]


def test_a_second_apply_waits_and_finds_everything_done(
    gate: Gate, write: Write, state: Path, tmp_path: Path
) -> None:
    host, begun, go_on = gate
    write({"models": [BASE]})
    first = start_slow_apply(tmp_path, host)
    assert begun.wait(PATIENCE_S)
    arguments = [str(PROGRAM), "apply", "-y", "--wait", "60s"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as second:
        assert second.stderr is not None
        assert "local: waiting for the lock, which another run has: " in second.stderr.readline()
        go_on.set()
        shown, _ = second.communicate(timeout=PATIENCE_S)
    assert (first.wait(PATIENCE_S), second.returncode) == (0, 0)
    assert "nothing to do" in shown
    assert len(Ledger(state).runs()) == 1


def test_a_run_that_was_killed_holds_nobody_up(gate: Gate, write: Write, state: Path, tmp_path: Path) -> None:
    host, begun, go_on = gate
    write({"models": [BASE]})
    first = start_slow_apply(tmp_path, host)
    assert begun.wait(PATIENCE_S)
    first.kill()
    first.wait()
    go_on.set()
    assert run(["apply", "-y"]) == 0
    finished = [(each.is_finished, each.exit_code) for each in Ledger(state).runs()]
    assert finished[0] == (True, 0) or len(finished) == 1
    assert finished[-1] == (False, UNFINISHED)


@pytest.mark.usefixtures("state")
def test_a_wait_that_cannot_be_read_is_a_wrong_command_line(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": [BASE]})
    assert run(["apply", "-y", "--wait", "soon"]) in (64, 65)
    assert "'soon' is not a duration" in capsys.readouterr().err
    assert requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json() == {"models": []}


# a stateless controller


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "number", [12, 30, *(pytest.param(number, marks=pytest.mark.soak) for number in (18, 24, 36, 45))]
)
def test_killed_at_any_request_a_run_with_its_state_on_the_server_is_finished_by_the_next(
    write: Write, state: Path, tmp_path: Path, number: int
) -> None:
    proxy = RecordingProxy()
    with Sandbox(as_version="0.12.11", faults=proxy.wrap) as host:
        write(
            {
                "state": "server",
                "hosts": {"gpu-1": {"url": host.url}},
                "models": [
                    BASE,
                    {"name": "bot", "from": BASE, "system": "s"},
                    {"name": "chat", "copy": "bot"},
                ],
            }
        )
        program = start_slow_apply(tmp_path, host)

        def kill(_: Request) -> None:
            if len(proxy.seen) == number:
                program.kill()

        proxy.before = kill
        program.wait(PATIENCE_S)
        proxy.before = None
        assert run(["apply", "-y"]) == 0
        assert run(["drift"]) == 0
        assert Ledger(state).load(host.url) == {}


@pytest.mark.usefixtures("hurry")
def test_with_the_state_on_the_server_a_second_machine_has_nothing_to_do_and_may_prune(
    host: Sandbox, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bot = {"name": "bot", "from": BASE, "system": "s"}
    write({"state": "server", "models": [BASE, bot]})
    assert run(["apply", "-y", "--state-dir", str(tmp_path / "one")]) == 0
    assert run(["drift", "--state-dir", str(tmp_path / "two")]) == 0
    assert not (tmp_path / "two").exists()
    write({"state": "server", "models": [BASE]})
    assert run(["prune", "-y", "--state-dir", str(tmp_path / "two")]) == 0
    names = {
        model["name"] for model in requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    }
    assert names == {BASE, "ollamaops-ledger:state"}
    capsys.readouterr()
    assert run(["status", "--state-dir", str(tmp_path / "two")]) == 0
    assert "ollamaops-ledger" not in capsys.readouterr().out
