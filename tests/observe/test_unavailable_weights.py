"""Weights elsewhere that cannot be asked about: unknown, and a matter of the models that are made of them alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pulled_models import WEIGHTS_A, World

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

FAR = {"name": "far", "files": ["hf://org/repo/far.gguf"]}
NEAR = {"name": "near", "files": ["near.gguf"]}
ON_FAR = {"name": "child", "from": "far", "system": "hi"}
WHY = "its weights cannot be asked about: 127.0.0.1:1"


@pytest.fixture(params=["0.5.4", "0.33.0-rc2"])
def world(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    (tmp_path / "near.gguf").write_bytes(WEIGHTS_A)
    with Sandbox(as_version=request.param) as sandbox:
        yield World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})


def test_the_other_models_are_made_and_theirs_are_not(world: World) -> None:
    world.declare(FAR, NEAR, ON_FAR)
    code, text = world.run("plan")
    assert (code, WHY in text, "+ near:latest" in text) == (3, True, True), text
    code, text = world.run("apply", "-y")
    assert (code, WHY in text, "near:latest on gpu: created" in text) == (3, True, True), text
    [host] = json.loads(world.run("status", "-o", "json")[1])["hosts"]
    assert {model["model"]: model["state"] for model in host["models"]} == {
        "far:latest": "unknown",
        "child:latest": "missing",
        "near:latest": "in sync",
    }
    assert world.run("drift")[0] == 3
    assert world.run("drift", "--target", "near")[0] == 0


def test_what_is_there_under_their_names_is_neither_replaced_nor_pruned(world: World) -> None:
    world.declare(NEAR, {"name": "far", "copy": "near"})
    assert world.run("apply", "-y")[0] == 0
    world.declare(NEAR, FAR)
    code, text = world.run("apply", "-y", "--prune", "*")
    assert (code, WHY in text) == (3, True), text
    world.declare(NEAR, {"name": "far", "copy": "near"})
    assert world.run("plan", "--detailed-exitcode")[0] == 0


def test_a_saved_plan_for_the_others_is_carried_out(world: World) -> None:
    world.declare(FAR, NEAR)
    saved = str(world.folder / "plan.json")
    assert world.run("plan", "--out", saved)[0] == 3
    code, text = world.run("apply", saved)
    assert "near:latest on gpu: created" in text
    assert world.run("plan", "--target", "near", "--detailed-exitcode")[0] == 0
    assert code == 3, text


def test_what_is_known_by_digest_alone_has_an_unknown_size(world: World) -> None:
    address = "http://127.0.0.1:1/far.gguf"
    stated = Digest.of(b"far").hex
    world.declare({"name": "far", "files": [address], "sha256": {address: stated}})
    code, text = world.run("plan")
    assert (code, "not there: upload size not known" in text) == (0, True), text
    assert "0 unchanged; ? to upload" in text
