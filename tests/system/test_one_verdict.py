"""All commands are asked about the same server, in every format, and may never contradict one another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
from breadth import in_turn
from live_host import VERSIONS, WEIGHTS
from patience import PATIENCE_S
from pulled_models import WEIGHTS_B, World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.sandbox.server import Sandbox

pytestmark = [pytest.mark.registry, in_turn("version")]

UPDATES = ("missing", "latest", "locked", "never")
OFFLINE = "--no-registry"
_NUMBERS = re.compile(r"(\d+) (to pull|to create|to delete|unchanged|unknown|not declared)")
_SHOWN_BY_DIFF = ("in sync", "missing", "drifted", "unknown")
_KINDS_OF_MISSING = {"missing", "moved"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def server(version: str) -> Iterator[Sandbox]:
    with Sandbox(as_version=version) as sandbox:
        yield sandbox


class Everything:
    """A manifest with every source and update mode, on a server where each is there, missing or something else."""

    def __init__(self, world: World, server: Sandbox, registry: RunningRegistry, path: str) -> None:
        self._world, self._server, self._registry, self._path = world, server, registry, path
        self.models: list[dict[str, object]] = []
        self._add_pulls()
        self._add_made()
        world.declare(*self.models)

    def _ask(self, endpoint: str, method: str = "POST", **body: object) -> None:
        url = f"{self._server.url}/api/{endpoint}"
        answer = requests.request(method, url, json=body, timeout=PATIENCE_S)
        assert answer.ok, answer.text

    def _publish(self, tag: str, *, moves: bool = False) -> dict[str, object]:
        """The entry of a model that is in the registry, and of which the server has what was there first."""
        declared = entry(self._registry, f"{self._path}:{tag}")
        first = publish(self._registry, f"{self._path}:{tag}")
        self._ask("pull", model=declared["name"], insecure=True, stream=False)
        if moves:
            publish(self._registry, f"{self._path}:{tag}", model=WEIGHTS_B)
        return {**declared, "digest": str(first)}

    def _add_pulls(self) -> None:
        for update in UPDATES:
            self._pull(f"same-{update}", update=update)
            self._pull(f"old-{update}", moves=True, update=update)
            self.models.append(entry(self._registry, f"{self._path}:gone-{update}", update=update))
        self._pull("pinned", is_pinned=True)
        self._pull("pinned-to-other", is_pinned=True, digest=f"sha256:{'0' * 64}")
        there = self._publish("mirrored", moves=True)
        for update in UPDATES:
            mirror = {"pull": there["name"], "insecure": True, "update": update}
            self.models.append({"name": f"mirror-{update}", **mirror})
        self._ask("copy", source=there["name"], destination="mirror-latest")

    def _pull(self, tag: str, *, moves: bool = False, is_pinned: bool = False, **keys: object) -> None:
        declared = self._publish(tag, moves=moves)
        if not is_pinned:
            del declared["digest"]
        self.models.append({**declared, **keys})

    def _add_made(self) -> None:
        base = f"{self._registry.host}/{self._path}:same-missing"
        old = f"{self._registry.host}/{self._path}:old-latest"
        gone = f"{self._registry.host}/{self._path}:gone-never"
        shutil.copy(WEIGHTS / "tiny-a.gguf", self._world.folder / "tiny.gguf")
        self._ask("copy", source=base, destination="drifted")
        self._ask("copy", source=base, destination="former")
        self._ask("copy", source=base, destination="unwanted")
        self._ask("copy", source=base, destination="nobodys")
        self.models += [
            {"name": "made", "from": base, "system": "Be brief."},
            {"name": "drifted", "from": base, "system": "Be kind."},
            {"name": "held-back", "from": base, "system": "Be kind.", "update": "never"},
            {"name": "on-old", "from": old},
            {"name": "on-gone", "from": gone},
            {"name": "kid", "from": "made", "parameters": {"temperature": 0.5}},
            {"name": "uploaded", "files": ["tiny.gguf"]},
            {"name": "by-modelfile", "modelfile": {"text": f"FROM {base}\nSYSTEM hi\n"}},
            {"name": "alias", "copy": base},
            {"name": "alias-of-made", "copy": "made"},
            {"name": "renamed", "copy": base, "moved_from": "former"},
            {"name": "unwanted", "ensure": "absent"},
        ]


@pytest.fixture
def world(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    server: Sandbox,
    registry: RunningRegistry,
    version: str,
) -> World:
    world = World(tmp_path, capsys, hosts={"gpu-1": {"url": server.url}})
    Everything(
        world, server, registry, f"all-{version.replace('.', '-')}/{tmp_path.name[-12:].strip('_-').lower()}"
    )
    return world


def as_json(world: World, *command: str) -> tuple[int, dict[str, Any]]:
    code, text = world.run(*command, "-o", "json", "-q")
    assert text.startswith("{"), (command, text)
    return code, json.loads(text)


def as_text(world: World, *command: str) -> str:
    return world.run(*command, "-q")[1]


def states_of(host: dict[str, Any]) -> dict[str, str]:
    """Model → its state, read off the document of a plan as a program would."""
    found = dict.fromkeys(host["unchanged"], "in sync")
    found |= dict.fromkeys(host["unmanaged"], "unmanaged")
    for note in host["notes"]:
        if note["model"] and (note["unresolved"] or note["waits"]):
            found[note["model"]] = "unknown"
        if note["lasting"]:
            found[note["model"]] = state_of({why["kind"] for why in note["lasting"]})
    for action in host["actions"]:
        if action["because"] and action["action"] != "upload":
            kinds = {why["kind"] for why in action["because"]}
            found[action["model"]] = "unwanted" if action["action"] == "delete" else state_of(kinds)
    return found


def state_of(kinds: set[str]) -> str:
    if "unknown" in kinds:
        return "unknown"
    return "missing" if kinds <= _KINDS_OF_MISSING else "drifted"


def code_for(states: set[str]) -> int:
    """What drift ends with."""
    if "unknown" in states:
        return 3
    return 2 if states & {"missing", "drifted", "unwanted"} else 0


def open_notes(host: dict[str, Any]) -> list[str]:
    """What is not as declared, or not known, and nothing that is planned changes that."""
    return [note["message"] for note in host["notes"] if note["unresolved"] or note["lasting"]]


def numbers(text: str) -> dict[str, int]:
    return {what: int(count) for count, what in _NUMBERS.findall(text.splitlines()[-1])}


def require_one_verdict(world: World, *options: str) -> dict[str, str]:
    """Asks everybody, requires that they agree, and returns the state of each model."""
    code, drift = as_json(world, "drift", "--junit", str(world.folder / "drift.xml"), *options)
    [host] = drift["hosts"]
    states = states_of(host)
    assert code == code_for(set(states.values())), states

    status_code, status = as_json(world, "status", *options)
    assert {row["model"]: row["state"] for row in status["hosts"][0]["models"]} == states
    assert status_code == (3 if code == 3 else 0)
    [suite] = ElementTree.parse(world.folder / "drift.xml").getroot()
    counted = [list(states.values()).count(state) for state in ("missing", "drifted", "unwanted")]
    assert (int(suite.get("failures", "")), int(suite.get("errors", ""))) == (
        sum(counted),
        list(states.values()).count("unknown"),
    )

    plan_code, plan = as_json(world, "plan", *options)
    is_lasting = any(note["lasting"] or note["unresolved"] for note in host["notes"])
    assert plan_code == (3 if is_lasting else 0)
    known = [action for action in plan["hosts"][0]["actions"] if action in host["actions"]]
    others = [action for action in plan["hosts"][0]["actions"] if action not in host["actions"]]
    assert known == host["actions"]
    assert all({why["kind"] for why in action["because"]} == {"unknown"} for action in others)
    text = as_text(world, "drift", *options)
    if not others:
        assert plan["summary"] == drift["summary"]
        assert text.splitlines()[-1] == as_text(world, "plan", *options).splitlines()[-1]

    said = numbers(text)
    for what, key in (("to pull", "pull"), ("to create", "create"), ("to delete", "delete")):
        assert said.get(what, 0) == drift["summary"]["actions"][key]
    for what, key in (("unchanged", "unchanged"), ("unknown", "unresolved"), ("not declared", "unmanaged")):
        if what in said:
            assert said[what] == drift["summary"][key]
    return states


def require_same_diffs(world: World, states: dict[str, str], *options: str) -> None:
    """A model by itself, in both formats, is what it is among all: a few of each state."""
    declared = [(state, model) for model, state in sorted(states.items()) if not model.endswith(":mirrored")]
    for state, model in (
        pair for each in _SHOWN_BY_DIFF for pair in [p for p in declared if p[0] == each][-2:]
    ):
        code, diff = as_json(world, "diff", model, "--detailed-exitcode", *options)
        found = states_of(diff["hosts"][0])
        assert (found.get(model), code) == (state, code_for(set(found.values()))), model
        text = as_text(world, "diff", model, *options)
        assert ("as declared" in text) == (state == "in sync"), (model, state, text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("options", [(), (OFFLINE,)], ids=["asking", "not asking"])
def test_no_command_contradicts_another(version: str, options: tuple[str, ...], world: World) -> None:
    before = require_one_verdict(world, *options)
    require_same_diffs(world, before, *options)

    code, run = as_json(world, "apply", "-y", *options)
    require_one_verdict(world, *options)
    [host] = run["hosts"]
    drift_code, drift = as_json(world, "drift", *options)
    assert host["as_declared"] == (drift_code == 0)
    assert code == (0 if drift_code == 0 else 3)
    assert open_notes(host) == open_notes(drift["hosts"][0])
    prune_code, prune = as_json(world, "prune", "--list", *options)
    assert prune_code == (0 if drift_code == 0 else 3)
    assert prune["hosts"][0]["unchanged"] == drift["hosts"][0]["unchanged"]
