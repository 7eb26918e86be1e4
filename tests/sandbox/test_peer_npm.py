"""The official `ollama` package for JavaScript runs its usual session against the sandbox.

What it does is in peers/session.mjs. `npm ci` puts the package into peers/node_modules once; where node, npm or the
network is missing the tests are skipped, but fail where the environment says CI=true.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from patience import PATIENCE_S
from registry_fixture import RunningRegistry, program, run_registry

from ollamaops.sandbox.server import Sandbox

PEERS = Path(__file__).parents[1] / "peers"
WEIGHTS = Path(__file__).parents[1] / "contract" / "weights" / "tiny-ascii-f16.gguf"
VERSIONS = ("0.12.11", "0.33.0-rc2")
_IN_CI = os.environ.get("CI", "").lower() == "true"  # read now: conftest.py removes it from every test
_INSTALL_S = 100


@pytest.fixture(scope="module")
def node() -> str:
    """The path of node, with the package installed beside the session."""
    found, npm = program("node"), program("npm")
    with (PEERS / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes, one installation
        wanted = json.load(lock)["packages"]["node_modules/ollama"]["version"]
        if _installed_version() != wanted:
            _install(npm)
    return found


def _installed_version() -> str:
    installed = PEERS / "node_modules" / "ollama" / "package.json"
    return str(json.loads(installed.read_text())["version"]) if installed.exists() else ""


def _install(npm: str) -> None:
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(PEERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    if done.returncode != 0:
        reason = f"npm cannot install the ollama package: {done.stderr.strip()[-300:]}"
        pytest.fail(reason) if _IN_CI else pytest.skip(reason)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture(scope="module", params=VERSIONS)
def session(
    request: pytest.FixtureRequest,
    node: str,
    registry: RunningRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the session printed, with the name it pushed to as `name`."""
    name = f"{registry.host}/peers/npm:v{request.param}"
    with Sandbox(tmp_path_factory.mktemp("npm") / "models", as_version=request.param) as sandbox:
        done = subprocess.run(
            [node, str(PEERS / "session.mjs"), sandbox.url, str(WEIGHTS), name],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["version"] == request.param
    return {**seen, "name": name}


@pytest.mark.registry
def test_models_are_made_shown_copied_pushed_deleted_and_pulled(session: dict[str, Any]) -> None:
    assert session["blob"] == 201
    everything = ("created", "derived", "copied", "pushed", "deleted", "pulledAgain")
    assert {step: session[step] for step in everything} == dict.fromkeys(everything, "success")
    assert (session["pulled"][0], session["pulled"][-1]) == ("pulling manifest", "success")
    assert session["shown"]["system"] == "You are a bot."
    assert session["shown"]["family"] == session["shown"]["architecture"] == "llama"
    assert session["shown"]["messages"] == [{"role": "user", "content": "hi"}]
    assert "MIT" in session["shown"]["license"]
    assert "completion" in session["shown"]["capabilities"]
    models = sorted(["bot:latest", "llama3.2:1b", session["name"], "mine:latest"])
    assert session["listed"] == session["listedAgain"] == models


@pytest.mark.registry
def test_models_are_loaded_and_used(session: dict[str, Any]) -> None:
    assert (session["loaded"], session["running"], session["unloaded"]) == ("load", ["llama3.2:1b"], "unload")
    assert session["generated"] == session["generatedInPieces"] != ""
    assert isinstance(json.loads(session["json"]), dict)
    person = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["name", "age"]}
    Draft202012Validator(person).validate(json.loads(session["bound"]))
    assert session["chatted"]["role"] == "assistant"
    assert session["chatted"]["content"] == session["chattedInPieces"] != ""
    assert session["toolCall"]["name"] == "weather_in"
    assert isinstance(session["toolCall"]["arguments"]["city"], str)
    assert session["vectors"] == [384, 384]


@pytest.mark.registry
def test_errors_are_the_packages_own(session: dict[str, Any]) -> None:
    assert session["aborted"]["name"] == "AbortError"
    assert (session["missing"]["name"], session["missing"]["status"]) == ("ResponseError", 404)
    assert "not found" in session["missing"]["text"]
    assert "pull model manifest: file does not exist" in session["missingPull"]["text"]
