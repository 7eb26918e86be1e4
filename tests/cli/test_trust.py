"""--untrusted at the command line: when it is on by itself, what it says, and what it lets nobody do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollamaops.cli.main import run
from ollamaops.cli.options import Shared
from ollamaops.cli.trust import find_fork, is_untrusted

THIEF = """
hosts:
  gpu-1: {url: "http://127.0.0.1:9", auth: {bearer: {command: [touch, stolen]}}}
models: [llama3.2:3b]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ollamaops.yaml").write_text(THIEF)
    return tmp_path


def an_event(
    here: Path, head: object, base: object = "corp/models", kind: str = "pull_request"
) -> dict[str, str]:
    named = {"full_name": head} if isinstance(head, str) else head
    event = {"pull_request": {"head": {"repo": named}, "base": {"repo": {"full_name": base}}}}
    if kind == "workflow_run":
        event = {"workflow_run": {"head_repository": named}, "repository": {"full_name": base}}
    (here / "event.json").write_text(json.dumps(event))
    return {"GITHUB_EVENT_NAME": kind, "GITHUB_EVENT_PATH": str(here / "event.json")}


@pytest.mark.parametrize(
    ("head", "kind", "says"),
    [
        ("corp/models", "pull_request", None),
        ("corp/models", "workflow_run", None),
        ("some\x1bbody/models", "pull_request", "this is a pull request from some�body/models"),
        ("somebody/models", "pull_request_target", "this is a pull request from somebody/models"),
        ("somebody/models", "workflow_run", "this is a pull request from somebody/models"),
        (None, "pull_request", "this is the pull request of a fork that is gone"),
        (3, "pull_request", "GitHub Actions does not say whose pull request this is"),
        ("somebody/models", "push", None),
    ],
)
def test_what_github_tells_of_a_run(head: object, kind: str, says: str | None, here: Path) -> None:
    found = find_fork(an_event(here, head, kind=kind))
    assert found is None if says is None else says in str(found)


@pytest.mark.parametrize(
    ("environ", "is_fork"),
    [
        ({}, False),
        ({"GITHUB_EVENT_NAME": "pull_request"}, True),
        ({"CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "7", "CI_PROJECT_ID": "7"}, False),
        ({"CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "8", "CI_PROJECT_ID": "7"}, True),
        ({"TRAVIS_PULL_REQUEST_SLUG": "a/b", "TRAVIS_REPO_SLUG": "a/b"}, False),
        ({"TRAVIS_PULL_REQUEST_SLUG": "x/b", "TRAVIS_REPO_SLUG": "a/b"}, True),
        ({"BUILDKITE_PULL_REQUEST_REPO": "git://x", "BUILDKITE_REPO": "git://a"}, True),
        ({"BUILDKITE_PULL_REQUEST_REPO": "", "BUILDKITE_REPO": "git://a"}, False),
        ({"CIRCLE_PR_REPONAME": "models"}, True),
        ({"CHANGE_FORK": "somebody"}, True),
        ({"SYSTEM_PULLREQUEST_ISFORK": "True"}, True),
        ({"SYSTEM_PULLREQUEST_ISFORK": "False"}, False),
    ],
)
def test_a_run_for_a_fork_is_untrusted_unless_somebody_says_otherwise(
    environ: dict[str, str], is_fork: bool
) -> None:
    assert is_untrusted(Shared(), environ) is is_fork
    assert not is_untrusted(Shared(trust="trusted"), environ)
    assert is_untrusted(Shared(trust="untrusted"), environ)


@pytest.mark.parametrize(
    "command", [["plan"], ["drift"], ["status"], ["diff", "x"], ["apply", "-y"], ["lock"]]
)
def test_no_command_of_a_fork_runs_what_its_manifest_names(
    command: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in an_event(here, "somebody/models").items():
        monkeypatch.setenv(name, value)
    assert run([*command, "-q"]) == 65
    said = capsys.readouterr().err
    assert said.startswith(
        "note: --untrusted, because GitHub Actions says that this is a pull request from somebody/models; "
        "--trusted says otherwise\n"
    )
    assert "ollamaops.yaml:3:63: a command is not run for a manifest that is not trusted" in said
    assert not (here / "stolen").exists()


def test_whoever_trusts_a_fork_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in an_event(here, "somebody/models").items():
        monkeypatch.setenv(name, value)
    assert run(["plan", "--trusted"]) != 65
    assert "--untrusted" not in capsys.readouterr().err
    assert (here / "stolen").exists()


@pytest.mark.parametrize(
    "command", [["apply", "-y"], ["prune", "-y"], ["rollback", "llama3.2:3b"], ["test"], ["verify"]]
)
def test_servers_are_neither_changed_nor_made_to_work(
    command: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    assert run([*command, "--untrusted"]) == 4
    assert "this run is --untrusted, and would make servers work" in capsys.readouterr().err


def test_pretend_servers_may_be_changed(here: Path) -> None:
    (here / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    assert run(["apply", "-y", "-q", "--untrusted", "--sandbox"]) == 0


def test_the_hosts_of_the_base_are_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "base.yaml").write_text('hosts: {gpu-1: {url: "http://127.0.0.1:9"}}')
    (here / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    assert run(["plan", "--untrusted", "--hosts-from", "base.yaml", "--timeout", "1s"]) == 3
    assert "gpu-1" in capsys.readouterr().out


def test_files_outside_are_nobody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--untrusted", "--allow-outside"]) == 64
    assert "--allow-outside is not for a manifest that is not trusted" in capsys.readouterr().err
