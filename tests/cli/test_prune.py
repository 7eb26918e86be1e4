"""`ollamaops prune` as its users see it: what is listed, what goes, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml
from breadth import in_turn
from patience import PATIENCE_S

from ollamaops.cli.main import run
from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("host")


Write = Callable[[object], None]
BASE = "llama3.2:3b"
BOT = {"name": "bot", "from": BASE, "system": "Be brief."}
CHAT = {"name": "chat", "copy": "bot"}


@pytest.fixture(params=["0.3.4", "0.5.7", "0.12.11", "0.33.0-rc2"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(as_version=request.param) as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        yield sandbox


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(manifest: object) -> None:
        (tmp_path / "ollamaops.yaml").write_text(yaml.safe_dump(manifest))

    return write


def tags(host: Sandbox) -> set[str]:
    return {
        model["name"] for model in requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    }


def stray(host: Sandbox, name: str) -> None:
    requests.post(f"{host.url}/api/copy", json={"source": BASE, "destination": name}, timeout=PATIENCE_S)


@pytest.fixture
def applied(host: Sandbox, write: Write) -> None:
    """A base, a bot and an alias of ours, of which only the base is still declared; and somebody else's model."""
    write({"models": [BASE, BOT, CHAT]})
    assert run(["apply", "-y"]) == 0
    stray(host, "stray")
    write({"models": [BASE]})


@pytest.mark.usefixtures("applied")
def test_what_is_ours_and_undeclared_is_listed_and_then_deleted(
    host: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tags(host)
    capsys.readouterr()
    assert run(["prune", "--list"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith("-")] == [
        ["-", "bot:latest", "on", "local:"],
        ["-", "chat:latest", "on", "local:"],
    ]
    assert tags(host) == before
    assert run(["prune", "-y"]) == 0
    assert tags(host) == {BASE, "stray:latest"}
    assert run(["prune", "-y"]) == 0
    assert tags(host) == {BASE, "stray:latest"}


@pytest.mark.usefixtures("applied")
def test_globs_delete_what_is_not_ours_too_and_nothing_else(host: Sandbox) -> None:
    assert run(["prune", "-y", "--prune", "stra*,chat:*"]) == 0
    assert tags(host) == {BASE, "bot:latest"}


@pytest.mark.usefixtures("applied")
def test_the_policy_says_what_may_go_when_no_scope_is_given(host: Sandbox, write: Write) -> None:
    write({"models": [BASE], "policy": {"prune": ["stray:*"]}})
    assert run(["prune", "-y"]) == 0
    assert tags(host) == {BASE, "bot:latest", "chat:latest"}


@pytest.mark.usefixtures("applied")
def test_what_is_protected_or_ignored_stays(host: Sandbox, write: Write) -> None:
    write({"models": [BASE], "policy": {"protect": ["bot:*"], "ignore": ["chat:*"]}})
    before = tags(host)
    assert run(["prune", "-y"]) == 0
    assert run(["prune", "-y", "--prune", "*", "--force", "protect"]) == 0
    assert tags(host) == before - {"stray:latest"}


@pytest.mark.usefixtures("applied")
def test_a_host_with_other_changes_pending_keeps_everything(
    host: Sandbox, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"models": [BASE, {"name": "successor", "from": BASE, "system": "new"}]})
    before = tags(host)
    capsys.readouterr()
    assert run(["prune", "-y"]) == 3
    assert (
        "not pruned while other changes are pending (1): bot:latest, chat:latest" in capsys.readouterr().out
    )
    assert tags(host) == before
    assert run(["prune", "-y", "--force", "pending"]) == 0
    assert tags(host) == {BASE, "stray:latest"}


@pytest.mark.usefixtures("applied")
def test_without_a_terminal_and_without_yes_nothing_is_listed_or_asked(
    host: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tags(host)
    capsys.readouterr()
    assert run(["prune"]) == 64
    assert capsys.readouterr().err.startswith("error: there is no terminal to ask on: use -y, or --list")
    assert tags(host) == before


@pytest.mark.usefixtures("applied", "host")
def test_a_prune_is_in_the_history_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["prune", "-y", "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["id"] for host in report["hosts"] for result in host["results"]] == [
        "local/delete/bot:latest",
        "local/delete/chat:latest",
    ]
    run(["history", "-o", "json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [each["command"] for each in runs] == ["prune", "apply"]
