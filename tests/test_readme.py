"""What README shows is what happens: its sessions and its manifests are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ollamaops.cli.main import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MANIFESTS = [text for kind, text in BLOCKS if kind == "yaml" and "models:" in text]
FAULTS = [text for kind, text in BLOCKS if kind == "yaml" and "faults:" in text]
SESSIONS = [text for kind, text in BLOCKS if kind == "console"]


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\ds", "0.0s", text)


@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_shows_what_a_user_would_see(
    session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command = shlex.split(step.splitlines()[0])
        seen.append("$ " + step.splitlines()[0] + "\n")
        if command[0] == "sed":
            edit(command)
        else:
            run(command[1:])
        shown = capsys.readouterr()
        seen.append(interleave(shown.out, shown.err))
    assert without_times("".join(seen)) == without_times(session)


def edit(command: list[str]) -> None:
    """`sed -i s/a/b/ file`"""
    _, old, new, _ = command[2].split("/")
    path = Path(command[3])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def interleave(out: str, err: str) -> str:
    """A terminal shows the plan (stdout) before the progress (stderr), and the result (stdout) after it."""
    *plan, result = out.splitlines(keepends=True) if err else [out]
    return "".join(plan) + err + result


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_manifest_is_valid(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ollamaops.yaml"
    path.write_text(text)
    assert run(["validate", "-f", str(path)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", FAULTS)
def test_a_script_of_faults_is_valid(text: str) -> None:
    from ollamaops.sandbox.faults import parse_faults

    assert parse_faults(text).rules


def test_readme_has_all_of_them() -> None:
    assert (len(SESSIONS), len(MANIFESTS), len(FAULTS)) == (1, 2, 1)
