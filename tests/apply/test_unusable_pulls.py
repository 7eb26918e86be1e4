"""What was pulled and cannot be opened: no run calls it in sync before it can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import WEIGHTS_A, World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = pytest.mark.registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(("version", "name"), [("0.6.8", None), ("0.33.0-rc2", "mario")])
def test_what_cannot_be_opened_is_pulled_again_by_every_run_until_it_can(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    registry: RunningRegistry,
    request: pytest.FixtureRequest,
    version: str,
    name: str | None,
) -> None:
    with Sandbox(as_version=version) as sandbox:
        world = World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})
        _pull_until_whole(world, registry, request, name)


def _pull_until_whole(
    world: World, registry: RunningRegistry, request: pytest.FixtureRequest, name: str | None
) -> None:
    path = f"broken-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
    publish(registry, path, model=WEIGHTS_A[:100] + request.node.name.encode())
    declared = entry(registry, path)
    if name:
        declared = {"name": name, "pull": declared["name"], "insecure": True}
    world.declare(declared)
    code, text = world.run("apply", "-y")
    assert (code, "cannot be opened" in text) == (3, True), text
    code, text = world.run("drift")
    assert (code, "it cannot be opened" in text or "not there" in text) == (2, True), text

    publish(registry, path, system=b"whole")
    code, text = world.run("apply", "-y")
    assert code == 0, text
    assert world.run("drift")[0] == 0
