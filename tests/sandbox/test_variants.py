"""Servers that are announced, or only compatible with Ollama, as the sandbox pretends to be them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import pytest
import requests
from patience import PATIENCE_S
from sandbox_caller import Caller, Json

from ollamaops.sandbox.behavior import NEWEST, as_variant, behavior_for
from ollamaops.sandbox.server import Sandbox

TOMORROW = as_variant(behavior_for(NEWEST), "tomorrow")


def test_tomorrow_has_rows_of_one_name_unknown_words_and_no_quantization(tmp_path: Path) -> None:
    with Sandbox(tmp_path, behavior=TOMORROW) as sandbox, requests.Session() as session:
        caller = Caller(sandbox, session)
        pulled = caller.post("pull", model="llama3.2:3b")
        assert pulled.lines[0]["status"] == "consulting the scheduler"
        assert (pulled.lines[-1]["status"], pulled.lines[-1]["generation"]) == ("success", 2)
        rows = cast("list[Json]", caller.call("GET", "/api/tags").document["models"])
        assert [row["name"] for row in rows] == ["llama3.2:3b"] * 2
        assert len({row["digest"] for row in rows}) == 2
        assert caller.show("llama3.2:3b")["generation"] == 2
        weights = caller.weights("tiny-f16.gguf")
        refused = caller.create("q", files={"w.gguf": weights}, quantize="q8_0")
        assert "no longer supported" in str(refused.error)
        assert caller.create("q", files={"w.gguf": weights}).lines[-1]["status"] == "success"


def test_tomorrows_registry_lists_manifests_whose_digests_lead_to_layers(tmp_path: Path) -> None:
    with Sandbox(tmp_path, behavior=TOMORROW, registry=True) as sandbox:
        url = f"{sandbox.url}/v2/library/llama3.2/manifests"
        listed = requests.get(f"{url}/3b", timeout=PATIENCE_S)
        assert (
            listed.headers["docker-content-digest"] == f"sha256:{hashlib.sha256(listed.content).hexdigest()}"
        )
        (child,) = listed.json()["manifests"]
        assert "layers" not in listed.json()
        found = requests.get(f"{url}/{child['digest']}", timeout=PATIENCE_S)
        assert (len(found.content), "layers" in found.json()) == (child["size"], True)


@pytest.mark.parametrize(("variant", "status"), [("minimal", 404), ("minimal-501", 501)])
def test_a_minimal_server_pulls_and_shows_but_makes_nothing(
    variant: str, status: int, tmp_path: Path
) -> None:
    behavior = as_variant(behavior_for("0.12.11"), variant)
    with Sandbox(tmp_path, behavior=behavior) as sandbox, requests.Session() as session:
        caller = Caller(sandbox, session)
        assert caller.post("pull", model="llama3.2:3b").lines[-1] == {"status": "success"}
        assert set(caller.tags()) == {"llama3.2:3b"}
        assert caller.create("bot", **{"from": "llama3.2:3b"}).status == status
        assert caller.post("copy", source="llama3.2:3b", destination="x").status == status
        digest = f"sha256:{'0' * 64}"
        for method in ("HEAD", "POST"):
            assert caller.call(method, f"/api/blobs/{digest}").status == status
        assert caller.delete("llama3.2:3b").status == 200
