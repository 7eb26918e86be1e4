"""What README shows is what happens: its sessions and its manifests are run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ollamaops.cli.main import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted(ROOT.glob("examples/*/README.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [block for path in (ROOT / "README.md", *EXAMPLES) for block in BLOCK.findall(path.read_text())]
MANIFESTS = [text for kind, text in BLOCKS if kind == "yaml" and "models:" in text]
FAULTS = [text for kind, text in BLOCKS if kind == "yaml" and "faults:" in text]


class Session(NamedTuple):
    """Commands with what they print, in a folder that is like `folder` or holds just the `manifest` shown before."""

    name: str
    manifest: str
    folder: Path | None
    text: str


def sessions(text: str, folder: Path | None = None) -> Iterator[Session]:
    for section in re.split(r"^##? ", text, flags=re.MULTILINE):
        manifest = ""
        for kind, block in BLOCK.findall(section):
            if kind == "console":
                yield Session(section.splitlines()[0], manifest, folder, block)
            elif kind == "yaml" and "models:" in block:
                manifest = block


SESSIONS = [*sessions(README), *(one for path in EXAMPLES for one in sessions(path.read_text(), path.parent))]


def without_chance(text: str) -> str:
    """The text without times, run ids, who ran it, and the widths of columns that depend on them."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", re.sub(r"\d+\.\ds", "0.0s", text))
    text = re.sub(r"^[0-9a-f]{12} ", "RUN ", text, flags=re.MULTILINE)
    return re.sub(r" {2,}", "  ", re.sub(r"\S+@\S+", "WHO", text))


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.name)
def test_a_session_shows_what_a_user_would_see(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "here"
    monkeypatch.chdir(shutil.copytree(session.folder, folder) if session.folder else tmp_path)
    if session.manifest:
        Path("ollamaops.yaml").write_text(session.manifest)
    seen = []
    for step in re.split(r"^\$ ", session.text, flags=re.MULTILINE)[1:]:
        command = shlex.split(step.splitlines()[0])
        seen.append("$ " + step.splitlines()[0] + "\n")
        if command[0] == "sed":
            edit(command)
        else:
            run(command[1:])
        shown = capsys.readouterr()
        seen.append(interleave(shown.out, shown.err))
    assert without_chance("".join(seen)) == without_chance(session.text)


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
    from ollamaops.sandbox.fault_script import parse_faults

    assert parse_faults(text).rules


def test_every_link_leads_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings_of(README)}
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (ROOT / link).exists(), link


def headings_of(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_readme_has_all_of_them() -> None:
    assert (len(SESSIONS), len(MANIFESTS), len(FAULTS)) == (6, 7, 1)


def test_readme_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 400
