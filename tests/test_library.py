"""The front door keeps what its docstring promises."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ollamaops
from ollamaops.errors import RefusedError, UsageError
from ollamaops.events import Event
from ollamaops.http.cancel import CancelToken
from ollamaops.names import ModelName
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger


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


def dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def live() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def declare(folder: Path, live: Sandbox, text: str) -> ollamaops.Manifest:
    return ollamaops.load_manifest([write(folder, text)], environ={"OLLAMA_HOST": live.url})


def kept_code(folder: Path) -> int:
    return Ledger(folder).runs(1)[0].exit_code


def test_a_run_with_an_unreached_host_ends_and_is_kept_as_partial(live: Sandbox, tmp_path: Path) -> None:
    hosts = f"hosts: {{gpu-1: {{url: '{live.url}'}}, gpu-2: {{url: '{dead_url()}', timeout: 2s}}}}\n"
    manifest = declare(tmp_path, live, hosts + "models: [llama3.2:3b]\n")
    plan = ollamaops.make_plan(manifest, state_dir=tmp_path)
    report = ollamaops.apply_plan(plan, manifest, state_dir=tmp_path)
    assert [host.is_as_declared for host in report.hosts] == [True]
    assert (report.is_as_declared, report.exit_code, kept_code(tmp_path)) == (False, 3, 3)


def test_a_failed_expectation_ends_and_is_kept_as_unexpected(live: Sandbox, tmp_path: Path) -> None:
    model = (
        "{name: bot, from: llama3.2:3b, system: hi, staged: true, expect: [{prompt: hi, matches: '^never$'}]}"
    )
    manifest = declare(tmp_path, live, f"models: [llama3.2:3b, {model}]\n")
    plan = ollamaops.make_plan(manifest, state_dir=tmp_path)
    report = ollamaops.apply_plan(plan, manifest, state_dir=tmp_path)
    assert (report.exit_code, kept_code(tmp_path)) == (5, 5)


def test_an_interrupted_run_ends_and_is_kept_as_interrupted(
    manifest: ollamaops.Manifest, tmp_path: Path
) -> None:
    cancel = CancelToken()
    plan = ollamaops.make_plan(manifest, state_dir=tmp_path)
    cancel.cancel()
    report = ollamaops.apply_plan(plan, manifest, state_dir=tmp_path, cancel=cancel)
    assert (report.exit_code, kept_code(tmp_path)) == (130, 130)


def test_drift_tells_what_differs_without_costs_and_rules(
    manifest: ollamaops.Manifest, tmp_path: Path
) -> None:
    assert len(ollamaops.drift(manifest, state_dir=tmp_path).actions) == 2
    ollamaops.apply_plan(ollamaops.make_plan(manifest, state_dir=tmp_path), manifest, state_dir=tmp_path)
    found = ollamaops.drift(manifest, state_dir=tmp_path)
    assert (found.actions, found.unreached) == ((), ())


def test_prune_deletes_what_we_made_and_is_not_declared_any_more(live: Sandbox, tmp_path: Path) -> None:
    both = declare(tmp_path, live, "models: [llama3.2:3b, {name: bot, from: llama3.2:3b, system: hi}]\n")
    ollamaops.apply_plan(ollamaops.make_plan(both, state_dir=tmp_path), both, state_dir=tmp_path)
    report = ollamaops.prune(declare(tmp_path, live, "models: [llama3.2:3b]\n"), state_dir=tmp_path)
    assert [str(result.action.model) for result in report.results] == ["bot:latest"]
    assert report.exit_code == 0


def test_rollback_switches_back_to_the_version_before(live: Sandbox, tmp_path: Path) -> None:
    def bot(system: str) -> ollamaops.Manifest:
        text = f"{{name: bot, from: llama3.2:3b, system: {system}, staged: true, keep_previous: 2}}"
        return declare(tmp_path, live, f"models: [llama3.2:3b, {text}]\n")

    for system in ("red", "blue"):
        manifest = bot(system)
        ollamaops.apply_plan(ollamaops.make_plan(manifest, state_dir=tmp_path), manifest, state_dir=tmp_path)
    report = ollamaops.rollback(manifest, "bot", state_dir=tmp_path)
    assert (report.exit_code, kept_code(tmp_path)) == (0, 0)
    with ollamaops.OllamaClient.connect(live.url) as client:
        assert client.show(ModelName.parse("bot")).system == "red"
    with pytest.raises(UsageError, match="no model"):
        ollamaops.rollback(manifest, state_dir=tmp_path)


def test_verify_holds_models_to_what_is_expected(live: Sandbox, tmp_path: Path) -> None:
    told: list[str] = []
    manifest = declare(
        tmp_path, live, "models: [{name: llama3.2:3b, expect: [{prompt: hi, matches: '^never$'}]}]\n"
    )
    ollamaops.apply_plan(ollamaops.make_plan(manifest, state_dir=tmp_path), manifest, state_dir=tmp_path)
    (host,) = ollamaops.verify(
        manifest, state_dir=tmp_path, on_model=lambda host, model: told.append(f"{model} on {host}")
    )
    assert [verdict.is_met for verdict in host.verdicts] == [False]
    assert len(told) == 1


def test_every_promised_name_is_there() -> None:
    assert [name for name in ollamaops.__all__ if not hasattr(ollamaops, name)] == []
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ollamaops.nonsense


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    code = "import sys, ollamaops; print([name for name in sys.modules if name.startswith('ollamaops.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['ollamaops.about']")
