"""The front door keeps what its docstring promises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ollamaops
from ollamaops.errors import RefusedError
from ollamaops.events import Event
from ollamaops.http.cancel import CancelToken
from ollamaops.sandbox.server import Sandbox


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[ollamaops.Manifest]:
    with Sandbox() as sandbox:
        path = tmp_path / "ollamaops.yaml"
        path.write_text(
            "models: [llama3.2:3b, {name: bot, from: llama3.2:3b, system: hi}]\npolicy: {protect: [bot]}\n"
        )
        yield ollamaops.load_manifest([path], environ={"OLLAMA_HOST": sandbox.url})


def test_a_plan_applied_leaves_nothing_to_plan(manifest: ollamaops.Manifest, tmp_path: Path) -> None:
    events: list[Event] = []
    plan = ollamaops.make_plan(manifest, state_dir=tmp_path)
    report = ollamaops.apply_plan(plan, manifest, state_dir=tmp_path, on_event=events.append)
    assert ([host.verified for host in report.hosts], bool(events)) == ([True], True)
    assert ollamaops.make_plan(manifest, state_dir=tmp_path).actions == ()


def test_a_refused_plan_is_not_applied(manifest: ollamaops.Manifest, tmp_path: Path) -> None:
    ollamaops.apply_plan(ollamaops.make_plan(manifest, state_dir=tmp_path), manifest, state_dir=tmp_path)
    other = ollamaops.load_manifest(
        [write(tmp_path, "models: [{name: bot, from: llama3.2:3b, system: ho}]\npolicy: {protect: [bot]}\n")],
        environ={"OLLAMA_HOST": manifest.hosts[0].url},
    )
    plan = ollamaops.make_plan(other, state_dir=tmp_path)
    with pytest.raises(RefusedError, match="bot:latest"):
        ollamaops.apply_plan(plan, other, state_dir=tmp_path)


def write(folder: Path, text: str) -> Path:
    path = folder / "other.yaml"
    path.write_text(text)
    return path


def test_a_cancelled_run_says_so(manifest: ollamaops.Manifest, tmp_path: Path) -> None:
    cancel = CancelToken()
    plan = ollamaops.make_plan(manifest, state_dir=tmp_path)
    cancel.cancel()
    report = ollamaops.apply_plan(plan, manifest, state_dir=tmp_path, cancel=cancel)
    assert report.interrupted


def test_every_promised_name_is_there() -> None:
    assert [name for name in ollamaops.__all__ if not hasattr(ollamaops, name)] == []
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ollamaops.nonsense


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    code = "import sys, ollamaops; print([name for name in sys.modules if name.startswith('ollamaops.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['ollamaops.about']")
