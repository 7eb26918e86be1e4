"""The template that makes a locked model's prompts: in the lock where a host shows it, and drift when it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
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


@pytest.fixture
def host() -> Iterator[Sandbox]:
    with Sandbox(as_version="0.12.11") as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": host.url}})


def templates(world: World) -> list[str]:
    (locked,) = yaml.safe_load(world.lock.read_text())["models"].values()
    return list(locked.get("templates", []))


def test_an_upgrade_that_changes_the_template_is_drift_of_its_own_kind(
    world: World, registry: RunningRegistry, host: Sandbox
) -> None:
    publish(registry, "team-upgrade/bot:v1", model=TOOLCALL, template=PLAIN)
    world.declare(entry(registry, "team-upgrade/bot:v1"))
    assert world.run("lock")[0] == 0
    assert templates(world) == []
    assert "is not known: no host that was asked has the model" in world.run("lock", "-v")[1]
    assert world.run("apply", "-y")[0] == 0

    code, text = world.run("lock")
    assert (code, templates(world)) == (0, [str(Digest.of(PLAIN))])
    assert f"its prompts are made with template {Digest.of(PLAIN).short}" in text
    assert world.run("lock")[1].startswith("1 kept;")
    for _ in range(2):
        assert world.run("drift")[0] == 0

    host.restart(as_version="0.33.0-rc2")
    for _ in range(2):
        code, text = world.run("drift")
        assert code == 2
        assert "the template that makes the prompts is not the locked one" in text
        assert "the server uses the weights' own template" in text
    assert world.run("apply", "-y")[0] == 3
    assert world.run("lock", "--check")[0] == 0

    assert world.run("lock", "--update")[0] == 0
    assert len(templates(world)) == 1
    assert templates(world) != [str(Digest.of(PLAIN))]
    assert world.run("drift")[0] == 0


def test_a_template_that_stays_is_no_drift_on_another_version(
    world: World, registry: RunningRegistry, host: Sandbox
) -> None:
    publish(registry, "team-stay/bot:v1", template=PLAIN)
    world.declare(entry(registry, "team-stay/bot:v1"))
    assert world.run("apply", "-y")[0] == 0
    assert world.run("lock")[0] == 0
    assert templates(world) == [str(Digest.of(PLAIN))]
    host.restart(as_version="0.33.0-rc2")
    assert world.run("drift")[0] == 0
