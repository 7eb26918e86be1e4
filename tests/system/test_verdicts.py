"""One verdict everywhere: what plan, drift, status, diff, prune and apply say of the same host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from breadth import in_turn
from live_host import VERSIONS
from patience import PATIENCE_S
from pulled_models import WEIGHTS_B, World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = [pytest.mark.registry, in_turn("version")]

every_version = pytest.mark.parametrize("version", VERSIONS)
BASE = "llama3.2:3b"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def mario(registry: RunningRegistry, request: pytest.FixtureRequest) -> str:
    """`team…/mario:v1`, published for this test alone."""
    path = f"team-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
    publish(registry, path, template=b"{{ .Prompt }}")
    return path


@pytest.fixture
def server(version: str) -> Iterator[Sandbox]:
    with Sandbox(as_version=version) as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], server: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": server.url}})


def ask(server: Sandbox, endpoint: str, **body: object) -> None:
    """Somebody else changes the server."""
    answer = requests.post(f"{server.url}/api/{endpoint}", json=body, timeout=PATIENCE_S)
    assert answer.ok, answer.text


def tags(server: Sandbox) -> dict[str, str]:
    models = requests.get(f"{server.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    return {model["name"]: model["digest"] for model in models}


def codes(world: World, *commands: str) -> dict[str, int]:
    """Command → exit code."""
    return {command: world.run(*command.split())[0] for command in commands}


def states(world: World, *options: str) -> dict[str, str]:
    """Model → its state on gpu-1, as `status` says it."""
    [host] = json.loads(world.run("status", *options, "-o", "json")[1])["hosts"]
    return {model["model"]: model["state"] for model in host["models"]}


@every_version
@pytest.mark.parametrize("how", ["digest", "lock"])
def test_what_differs_from_its_pin_is_drift_even_if_the_registry_has_moved_on(
    version: str, how: str, world: World, server: Sandbox, registry: RunningRegistry, mario: str
) -> None:
    good = publish(registry, mario)
    pin = {"digest": str(good)} if how == "digest" else {}
    declared = entry(registry, mario, **pin)
    world.declare(declared, {"name": "bot", "from": declared["name"], "system": "Be brief."})
    if how == "lock":
        assert world.run("lock")[0] == 0
    assert world.run("apply", "-y")[0] == 0
    publish(registry, mario, model=WEIGHTS_B)
    ask(server, "pull", model=declared["name"], insecure=True, stream=False)

    assert codes(world, "drift", "plan", "plan --detailed-exitcode", "apply -y") == {
        "drift": 2,
        "plan": 3,
        "plan --detailed-exitcode": 3,
        "apply -y": 3,
    }
    said = world.run("drift")[1]
    assert f": pinned to {good.short}, but the registry now has " in said, said
    assert states(world) == {declared["name"]: "drifted", "bot:latest": "drifted"}
    code, said = world.run("diff", str(declared["name"]), "--detailed-exitcode")
    assert (code, f"+{good.hex}" in said) == (2, True), said


def found(world: World, command: str) -> object:
    """What a command says is to be done on the hosts, and what that adds up to."""
    document = json.loads(world.run(*command.split(), "-o", "json")[1])
    return [(host["actions"], host["unchanged"], host["notes"]) for host in document["hosts"]], document[
        "summary"
    ]


@every_version
def test_drift_and_plan_tell_the_same_bytes_and_announce_the_same_rebuilds(
    version: str, world: World, server: Sandbox, registry: RunningRegistry, mario: str
) -> None:
    base = f"{registry.host}/{mario}"
    world.declare(entry(registry, mario), {"name": "bot", "from": base, "system": "Be brief."})
    assert world.run("apply", "-y")[0] == 0
    publish(registry, mario, model=WEIGHTS_B)
    requests.delete(f"{server.url}/api/delete", json={"model": base, "name": base}, timeout=PATIENCE_S)

    plan, drift = found(world, "plan"), found(world, "drift")
    assert plan == drift
    assert f"~ bot:latest on gpu-1: create, its base {base} changes" in world.run("drift")[1]


@every_version
def test_a_tag_that_the_registry_does_not_have_is_said_when_planning_with_those_that_are_near(
    version: str, world: World, registry: RunningRegistry, mario: str
) -> None:
    for tag in ("v1-q4", "other"):
        publish(registry, mario.replace("v1", tag))
    wrong = f"{registry.host}/{mario.replace('v1', 'v1-q5')}"
    world.declare(entry(registry, mario), {"name": wrong, "insecure": True})

    assert codes(world, "plan", "drift", "apply -y") == {"plan": 3, "drift": 2, "apply -y": 3}
    said = world.run("plan")[1]
    assert f"! {wrong} on gpu-1: not there: its registry has no such model or tag\n" in said
    assert " has v1-q4, other, v1;" in said, said
    assert "size not known" not in said
    assert states(world) == {f"{registry.host}/{mario}": "in sync", wrong: "missing"}


@every_version
def test_without_asking_a_registry_the_latest_is_what_it_was_when_the_host_pulled_it(
    version: str, world: World, server: Sandbox, registry: RunningRegistry, mario: str
) -> None:
    latest = entry(registry, mario, update="latest")
    mirror = {"name": "mirror", "pull": latest["name"], "insecure": True, "update": "latest"}
    world.declare(latest, mirror, {"name": "bot", "from": latest["name"]})
    offline = ["--no-registry"]
    assert world.run("apply", "-y", *offline)[0] == 0
    before = tags(server)
    publish(registry, mario, model=WEIGHTS_B)
    world.declare(latest, mirror)

    said = world.run("drift", *offline)[1]
    assert "nothing to do: 2 models on 1 host are as declared; 1 not declared" in said, said
    assert "was the latest when it was pulled (20" in said, said
    assert codes(world, "drift --no-registry", "plan --no-registry --detailed-exitcode", "status") == {
        "drift --no-registry": 0,
        "plan --no-registry --detailed-exitcode": 0,
        "status": 0,
    }
    assert set(states(world, *offline).values()) == {"in sync", "unmanaged"}
    assert world.run("prune", "-y", *offline)[0] == 0
    assert "bot:latest" not in tags(server)
    assert world.run("drift")[0] == 2
    assert "? " in world.run("plan", *offline)[1]
    assert world.run("apply", "-y", *offline)[0] == 0
    assert all(now != before[model] for model, now in tags(server).items())
    assert codes(world, "drift", "drift --no-registry") == {"drift": 0, "drift --no-registry": 0}


@every_version
def test_whether_a_model_is_the_latest_is_unknown_everywhere_until_the_host_has_pulled_it(
    version: str, world: World, server: Sandbox, registry: RunningRegistry, mario: str
) -> None:
    latest = entry(registry, mario, update="latest")
    bot = {"name": "bot", "from": latest["name"], "system": "Be brief."}
    ask(server, "pull", model=latest["name"], insecure=True, stream=False)
    world.declare({**latest, "update": "missing"}, bot)
    assert world.run("apply", "-y")[0] == 0
    world.declare(latest)

    asked = [f"{command} --no-registry" for command in ("drift", "status", "plan", "prune --list")]
    assert codes(world, *asked) == dict(zip(asked, (3, 3, 0, 3), strict=True))
    assert states(world, "--no-registry")[str(latest["name"])] == "unknown"
    said = world.run("drift", "--no-registry")[1]
    assert "hint: ollamaops apply --no-registry has the host pull it, which tells" in said, said
    assert world.run("prune", "-y", "--no-registry")[0] == 3
    assert "bot:latest" not in tags(server)
    assert world.run("apply", "-y", "--no-registry")[0] == 0
    assert codes(world, *asked) == dict.fromkeys(asked, 0)


@every_version
def test_a_host_with_something_unknown_is_nowhere_called_as_declared(
    version: str, world: World, server: Sandbox, registry: RunningRegistry, mario: str
) -> None:
    nowhere = f"localhost:1/{mario}"
    ask(server, "pull", model=f"{registry.host}/{mario}", insecure=True, stream=False)
    ask(server, "copy", source=f"{registry.host}/{mario}", destination=nowhere)
    world.declare({"name": nowhere, "update": "latest", "insecure": True}, {"name": "bot", "from": nowhere})

    assert codes(world, "plan", "drift", "status") == {"plan": 3, "drift": 3, "status": 3}
    code, said = world.run("apply", "-y", "--progress", "plain")
    assert code == 3
    assert "round 1: nothing more to do; 1 unknown" in said, said
    assert "round 1: as declared" not in said
    assert "0 hosts as declared, 1 unknown\n" in said
    found = states(world)
    assert (found[nowhere], found["bot:latest"]) == ("unknown", "in sync")
