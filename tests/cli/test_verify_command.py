"""`ollamaops verify` as its users see it: what is broken is found, and what is not known is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from breadth import in_turn
from pulled_models import World

from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("host")


MODEL = "llama3.2:3b"
OTHER = "all-minilm:latest"


@pytest.fixture(params=["0.3.4", "0.12.11", "0.33.0-rc2"])
def host(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(as_version=request.param, registry=True) as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox) -> World:
    world = World(tmp_path, capsys, hosts={"gpu-1": {"url": host.url}})
    world.declare(MODEL, OTHER, {"name": "bot", "from": MODEL, "system": "be kind"})
    assert world.run("apply", "-y", "--no-registry")[0] == 0
    return world


def blobs_like(host: Sandbox, is_meant: bytes) -> list[Path]:
    return [path for path in host.store.blobs.iterdir() if is_meant in path.read_bytes()[:100]]


def test_every_declared_model_is_asked_also_without_expectations(world: World) -> None:
    code, text = world.run("verify")
    assert code == 0, text
    assert [line.split(" on ")[0] for line in text.splitlines()[:-1]] == [
        f"✓ {MODEL}",
        f"✓ {OTHER}",
        "✓ bot:latest",
    ]
    assert "answers; loaded in" in text
    assert world.run("verify", "bot")[1].endswith("1 model tested on 1 host: 1 passed\n")


def test_weights_that_were_cut_short_are_found(world: World, host: Sandbox) -> None:
    for weights in blobs_like(host, b"GGUF"):
        weights.write_bytes(weights.read_bytes()[:40])
    code, text = world.run("verify", "-o", "json")
    assert code == 5, text
    assert [model["passed"] for model in json.loads(text)["hosts"][0]["models"]] == [False, False, False]


def test_weights_that_are_gone_are_found(world: World, host: Sandbox) -> None:
    for weights in blobs_like(host, b"GGUF"):
        weights.unlink()
    code, text = world.run("verify", "--deep")
    assert code == 5, text
    assert "ollamaops apply" in text


def test_what_depth_cannot_prove_is_said(world: World) -> None:
    code, text = world.run("verify", "--deep", "--no-registry")
    assert (code, "not proven: weights: " in text) == (0, True)
    document = json.loads(world.run("verify", "--deep", "--no-registry", "-o", "json")[1])
    assert len(document["not_proven"]) == 2
    assert "not proven" not in world.run("verify")[1]
