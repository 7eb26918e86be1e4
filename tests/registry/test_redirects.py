"""What holds for every registry, whether it redirects to its storage or not: sizes, locks, and a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import CONFIG, WEIGHTS_A, WEIGHTS_B, World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = pytest.mark.registry
BLOBS_ITSELF = (
    "the registry serves blobs itself, and Ollama only pulls from one that redirects to another host name"
)


@pytest.fixture(scope="module", params=[True, False], ids=["redirect", "no-redirect"])
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=request.param) as running:
        yield running


@pytest.fixture
def redirects(request: pytest.FixtureRequest) -> bool:
    """Whether the test's registry does."""
    return "no-redirect" not in request.node.callspec.id


@pytest.fixture
def mario(registry: RunningRegistry, request: pytest.FixtureRequest) -> str:
    """`team…/mario:v1`, published for this test alone."""
    path = f"team-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
    publish(registry, path, license=b"MIT")
    return path


@pytest.fixture
def hosts() -> Iterator[dict[str, object]]:
    """A server that writes pulled manifests anew, and one that keeps them."""
    with Sandbox(as_version="0.3.4") as old, Sandbox(as_version="0.33.0") as new:
        yield {"old": {"url": old.url}, "new": {"url": new.url}}


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: dict[str, object]) -> World:
    folder = tmp_path / "here"
    folder.mkdir()
    return World(folder, capsys, hosts=hosts)


def downloads(world: World, *arguments: str) -> dict[str, list[int | None]]:
    """Host → what each of its pulls downloads."""
    code, text = world.run("plan", *arguments, "-o", "json")
    assert code == 0
    plans = json.loads(text)["hosts"]
    return {plan["host"]: [each["cost"]["download_bytes"] for each in plan["actions"]] for plan in plans}


def test_a_plan_says_what_each_host_downloads_with_shared_layers_counted_once(
    world: World, registry: RunningRegistry, mario: str
) -> None:
    luigi = mario.replace("mario", "luigi")
    publish(registry, luigi, license=b"Apache")
    world.declare(entry(registry, mario), entry(registry, luigi))
    assert world.run("lock")[0] == 0
    found = downloads(world)
    once = len(WEIGHTS_A) + len(CONFIG) + len(b"MIT") + len(b"Apache")
    assert {host: sum(filter(None, sizes)) for host, sizes in found.items()} == {"old": once, "new": once}
    assert downloads(world, "--no-registry") == {"old": [None, None], "new": [None, None]}
    assert "; ? to download" in world.run("plan", "--no-registry")[1]


def test_a_lock_made_on_one_machine_verifies_on_another(
    world: World, registry: RunningRegistry, mario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.declare(entry(registry, mario))
    assert world.run("lock")[0] == 0
    elsewhere = World(tmp_path / "elsewhere" / "checkout", capsys)
    shutil.copytree(world.folder, elsewhere.folder, ignore=shutil.ignore_patterns("state"))
    assert elsewhere.run("lock", "--check") == (0, f"{elsewhere.lock}: 1 same\n")
    assert elsewhere.run("lock", "--update")[0] == 0
    elsewhere.lock.unlink()
    assert elsewhere.run("lock")[0] == 0
    assert elsewhere.lock.read_bytes() == world.lock.read_bytes()
    assert elsewhere.run("plan", "--locked")[0] == 0

    publish(registry, mario, model=WEIGHTS_B)
    code, text = elsewhere.run("lock", "--check")
    assert (code, f"{registry.host}/{mario}" in text) == (2, True)


def test_a_pull_works_or_says_why_the_registry_cannot_be_pulled_from_and_what_to_do(
    world: World, registry: RunningRegistry, mario: str, redirects: bool
) -> None:
    world.declare(entry(registry, mario))
    world.run("lock")
    code, text = world.run("apply", "-y", "--locked")
    assert code == (0 if redirects else 3)
    assert (BLOBS_ITSELF in text, "hint: let the registry redirect" in text) == (not redirects, not redirects)
    assert "no Location header" not in text
    assert "status code 200" not in text
    code, text = world.run("outdated")
    assert (code, f"2 {'current' if redirects else 'missing'}" in text) == (0, True)
