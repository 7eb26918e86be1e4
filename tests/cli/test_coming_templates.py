"""The template that a pull would bring is known before: from the header of the weights at the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_host import WEIGHTS
from pulled_models import World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = pytest.mark.registry
PLAIN = b"{{ .System }} {{ .Prompt }}"
TOOLCALL = (WEIGHTS / "tiny-toolcall.gguf").read_bytes()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture(params=["0.12.11", "0.33.0-rc2"])
def host(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(as_version=request.param) as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": host.url}})


def outdated(world: World) -> dict[str, object]:
    document = json.loads(world.run("outdated", "-o", "json")[1])
    return dict(document["hosts"][0]["models"][0])


def test_weights_that_bring_another_template_are_named_before_they_are_pulled(
    world: World, registry: RunningRegistry, host: Sandbox
) -> None:
    path = f"team-{host.version[2:4]}/bot:v1"
    publish(registry, path, template=PLAIN)
    world.declare(entry(registry, path, update="latest"))
    assert world.run("apply", "-y")[0] == 0
    publish(registry, path, model=TOOLCALL, template=PLAIN)
    changes = host.version.startswith("0.33")

    text = world.run("outdated")[1]
    assert "weights" in text
    assert ("the weights bring another template" in text) is changes
    assert outdated(world)["prompts"] == ("changed" if changes else "same")
    line = f"the template that makes its prompts: {Digest.of(PLAIN).short} → "
    assert (line in world.run("plan", "-v")[1]) is changes
    assert line not in world.run("plan")[1]


def test_a_template_that_will_not_be_in_force_is_said_before_its_base_is_pulled(
    world: World, registry: RunningRegistry, host: Sandbox
) -> None:
    path = f"team-base-{host.version[2:4]}/base:v1"
    publish(registry, path, model=TOOLCALL)
    bot = {"name": "bot", "from": f"{registry.host}/{path}", "insecure": True, "template": "{{ .Prompt }}!"}
    world.declare(bot)
    said = "the declared template will not be in force on this server"
    assert (said in world.run("plan")[1]) is host.version.startswith("0.33")


def test_a_registry_that_gives_no_header_is_said_not_to_be_known(
    world: World, registry: RunningRegistry, host: Sandbox
) -> None:
    path = f"team-none-{host.version[2:4]}/bot:v1"
    publish(registry, path, template=PLAIN)
    world.declare(entry(registry, path))
    assert world.run("apply", "-y")[0] == 0
    publish(registry, path, model=b"not a GGUF", template=PLAIN)
    unknown = host.version.startswith("0.33")
    assert ("not known: the template in the weights" in world.run("outdated")[1]) is unknown
    assert outdated(world)["prompts"] == ("unknown" if unknown else "same")
