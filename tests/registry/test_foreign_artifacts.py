"""What a registry has under a model's name and is no model: it is neither planned nor locked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import World, entry, publish
from registry_fixture import MANIFEST_TYPE, RunningRegistry, run_registry

from ollamaops.sandbox.server import Sandbox

pytestmark = pytest.mark.registry
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    with Sandbox(as_version="0.12.11") as sandbox:
        yield World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})


def publish_image(registry: RunningRegistry, repository: str, tag: str) -> None:
    """A container image, as `docker push` leaves it."""

    def part(media_type: str, data: bytes) -> dict[str, object]:
        digest = str(registry.put_blob(repository, data))
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    tree = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": part(CONFIG_TYPE, b'{"os":"linux"}'),
        "layers": [part(LAYER_TYPE, b"\x1f\x8b a layer")],
    }
    registry.put_manifest(repository, tag, json.dumps(tree).encode())


def test_a_container_image_is_neither_pulled_nor_locked(world: World, registry: RunningRegistry) -> None:
    publish_image(registry, "team/web", "v1")
    publish(registry, "team/mario:v1")
    world.declare(entry(registry, "team/web:v1"), entry(registry, "team/mario:v1"))
    code, text = world.run("lock")
    assert (code, "what the registry has under this name is not an Ollama model" in text) == (3, True), text
    code, text = world.run("apply", "-y", "--lock-file", str(world.lock))
    assert (code, f"'{registry.host}/team/web:v1' is not an Ollama model" in text) == (3, True), text
    assert "team/web:v1 on gpu: pull" not in text
    assert "team/mario:v1 on gpu: pulled" in text
