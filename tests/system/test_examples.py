"""Every example and the starter set validate, apply to pretend servers, and then have nothing left to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ollamaops.cli.main import run

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/ollamaops.yaml"))
FOLDERS = [*EXAMPLES, ROOT / "manifests"]


def test_there_are_the_promised_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {
        "minimal",
        "derived-models",
        "gguf-upload",
        "several-hosts",
        "cron",
    }
    assert all((path / "README.md").exists() for path in EXAMPLES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_applies_and_then_has_nothing_left_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(folder, tmp_path / "example")
    monkeypatch.chdir(copied)
    where = ["-f", ".", f"--sandbox={tmp_path / 'store'}"]
    assert run(["validate", *where]) == 0
    assert run(["apply", "-y", *where]) == 0
    assert run(["drift", *where]) == 0
    capsys.readouterr()
    assert run(["plan", "-o", "json", *where]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [host["actions"] for host in shown["hosts"]] == [[] for _ in shown["hosts"]]
    assert [host for host in shown["hosts"] if host["unchanged"]]


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_explains_itself(folder: Path) -> None:
    assert "ollamaops " in (folder / "README.md").read_text()
