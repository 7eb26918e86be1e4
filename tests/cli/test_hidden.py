"""A secret that the environment fills into a text is in nothing that is shown or kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollamaops.cli.main import run

SECRET, OLD = "hunter2-and-more", "hunter1-and-more"
MANIFEST = """
models:
  - llama3.2:3b
  - {name: bot, from: llama3.2:3b, system: "Say ${env:WORD} to nobody.", parameters: {stop: ["${env:WORD}"]}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ollamaops.yaml").write_text(MANIFEST)
    monkeypatch.setenv("WORD", OLD)
    assert run(["apply", "-y", "-q", "--sandbox=pretend"]) == 0
    monkeypatch.setenv("WORD", SECRET)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "-v"],
        ["plan", "-o", "json"],
        ["plan", "-o", "markdown"],
        ["plan", "-o", "html"],
        ["diff", "bot"],
        ["diff", "bot", "-o", "json"],
        ["drift", "--junit", "report.xml"],
        ["status", "-v"],
        ["apply", "-y", "-v"],
        ["apply", "-y", "-o", "json"],
    ],
)
def test_no_output_shows_it(command: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run([*command, "--sandbox=pretend"])
    shown = "".join(capsys.readouterr())
    report = here / "report.xml"
    shown += report.read_text() if report.exists() else ""
    assert "hunter" not in shown
    assert "${env:WORD}" in shown or command == ["apply", "-y", "-o", "json"]


def test_a_saved_plan_is_carried_out_with_what_the_environment_has(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "-q", "--sandbox=pretend", "--out", "plan.json"]) == 0
    assert "hunter" not in (here / "plan.json").read_text()
    assert run(["apply", "-q", "--sandbox=pretend", "plan.json"]) == 0
    assert run(["plan", "-q", "--sandbox=pretend", "--detailed-exitcode"]) == 0
    assert not [path for path in (here / "pretend" / ".state").rglob("*") if b"hunter" in read(path)]
    capsys.readouterr()
    assert run(["history", "show", "latest", "-o", "json", "--sandbox=pretend"]) == 0
    assert "${env:WORD}" in json.dumps(json.loads(capsys.readouterr().out))


def read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_a_name_may_have_only_what_everybody_may_know(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "ollamaops.yaml").write_text("models: [{name: 'bot:${env:WORD}', from: llama3.2:3b}]")
    assert run(["plan", "--sandbox=pretend"]) == 65
    said = capsys.readouterr().err
    assert (
        "ollamaops.yaml:1:17: a name is shown to everybody, and bot:${env:WORD} may stand for a secret"
        in said
    )
    assert run(["plan", "--sandbox=pretend", "--allow-env", "WORD"]) == 0
    assert f"bot:{SECRET}" in capsys.readouterr().out
