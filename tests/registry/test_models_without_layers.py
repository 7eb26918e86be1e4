"""Models that consist of a config alone, as stubs of cloud models do: registries keep them with `"layers": null`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import World, entry
from registry_fixture import MANIFEST_TYPE, RunningRegistry, run_registry

from ollamaops.sandbox.server import Sandbox

pytestmark = pytest.mark.registry
OK, CHANGES, PARTIAL = 0, 2, 3
CONFIG = json.dumps({"remote_host": "https://ollama.com:443", "remote_model": "gpt:120b"}).encode()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


def publish_stub(registry: RunningRegistry, path: str, layers: list[object] | None) -> None:
    """Put a model without layers into the registry, in a layout that no server writes."""
    repository, _, tag = path.partition(":")
    digest = registry.put_blob(repository, CONFIG)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": str(digest)}
    tree = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {**config, "size": len(CONFIG)},
        "layers": layers,
    }
    registry.put_manifest(repository, tag, json.dumps(tree, indent=2).encode())


@pytest.mark.parametrize("layers", [None, []], ids=["null", "empty"])
@pytest.mark.parametrize("version", ["0.12.11", "0.18.3", "0.19.0", "0.33.0-rc2"])
def test_a_model_without_layers_is_locked_and_what_came_is_told_to_be_a_stub(
    version: str,
    layers: list[object] | None,
    registry: RunningRegistry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = f"{'null' if layers is None else 'empty'}/gpt-{version}:v1"
    publish_stub(registry, path, layers)
    with Sandbox(as_version=version) as sandbox:
        world = World(tmp_path, capsys, hosts={"gpu-1": {"url": sandbox.url}})
        world.declare(entry(registry, path))
        code, text = world.run("lock")
        assert code == OK, text
        assert f"{registry.host}/{path}" in world.lock.read_text()
        assert world.run("plan", "--detailed-exitcode")[0] == CHANGES
        code, text = world.run("apply", "--yes")
        assert code == PARTIAL, text
        assert "is a cloud stub for gpt:120b at https://ollama.com:443" in text
        for update in ("locked", "missing", "latest"):
            world.declare(entry(registry, path, update=update))
            code, text = world.run("plan", "--detailed-exitcode")
            assert code in (CHANGES, PARTIAL), text
