"""A store of a real server opens in the sandbox, and the sandbox writes the files that the real server wrote.

No real server is needed for that: the recordings tell the digests of its files, and here the files are written anew
by code that shares nothing with the sandbox. Where a hand-written file has the recorded digest, it is byte for byte
the one that the real server had.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from patience import PATIENCE_S
from registry_fixture import RunningRegistry, run_registry

from ollamaops.sandbox.gguf_file import read_header
from ollamaops.sandbox.gguf_rewrite import copy_weights, plan_copy
from ollamaops.sandbox.model_name import parse_name
from ollamaops.sandbox.server import Sandbox
from ollamaops.sandbox.store import MARK, Store

CONTRACT = Path(__file__).parents[1] / "contract"
TINY = CONTRACT / "weights" / "tiny-a.gguf"
VERSIONS = ("0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2")
REWRITING = ("0.32.15", "0.33.0-rc2")
NAMES_PATHS = ("0.5.7", "0.6.8", "0.12.11")
RECORDED_REGISTRY = "localhost:5055"

TEMPLATE = "{{ if .System }}<|system|>{{ .System }}{{ end }}<|user|>{{ .Prompt }}<|assistant|>{{ .Response }}"
PARAMETERS = (
    '{"num_ctx":4096,"stop":["\\u003c|user|\\u003e","END \\"quoted\\""],"temperature":0.25,"top_k":40}\n'
)
MESSAGES = '[{"role":"user","content":"Is it you?"},{"role":"assistant","content":"It\'s-a me!\\nMario"}]\n'
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


# --- what a real server writes --------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def weights(version: str) -> bytes:
    """The model layer: the file itself, or what llama-quantize makes of it (its digest is recorded)."""
    if version not in REWRITING:
        return TINY.read_bytes()
    header, parts = read_header(TINY), list[bytes]()
    copy_weights([(TINY, header)], plan_copy(header), parts.append)
    return b"".join(parts)


@dataclass(frozen=True)
class Layer:
    """A blob and what the manifest says of it; `origin` is the key `from`."""

    kind: str
    data: bytes
    origin: str = ""

    def entry(self) -> dict[str, object]:
        entry = {
            "mediaType": f"application/vnd.ollama.image.{self.kind}",
            "digest": f"sha256:{sha256(self.data)}",
            "size": len(self.data),
        }
        return entry | ({"from": self.origin} if self.origin else {})


def go_json(value: object) -> bytes:
    """As Go's json.Marshal writes what has neither `<`, `>`, `&` nor floats in it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def config_of(version: str, layers: Sequence[Layer]) -> bytes:
    tree: dict[str, object] = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "27K",
        "file_type": "unknown",
        "architecture": "amd64",
        "os": "linux",
    }
    if version not in REWRITING:  # 0.32.7 took it out
        digests = [f"sha256:{sha256(layer.data)}" for layer in layers]
        tree["rootfs"] = {"type": "layers", "diff_ids": digests}
    return go_json(tree) + b"\n"


def manifest_of(config: bytes, layers: Sequence[Layer]) -> bytes:
    return go_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": f"sha256:{sha256(config)}", "size": len(config)},
            "layers": [layer.entry() for layer in layers],
        }
    )


def base_layers(version: str, store: Path) -> list[Layer]:
    """`base`, made from tiny-a.gguf. From 0.3.6 to 0.24 the manifest says in which store that was."""
    origin = str(store / "blobs" / f"sha256-{sha256(weights(version))}") if version in NAMES_PATHS else ""
    return [Layer("model", weights(version), origin)]


def mario_layers(version: str) -> list[Layer]:
    """`mario`, made from `base` with everything that can be said."""
    words = [
        Layer("template", TEMPLATE.encode()),
        Layer("system", b"You are Mario."),
        Layer("license", b"MIT"),
        Layer("license", b"Apache-2.0"),
    ]
    ends = [Layer("params", PARAMETERS.encode()), Layer("messages", MESSAGES.encode())]
    if version == "0.3.4":
        ends.reverse()
    return [Layer("model", weights(version), "base:latest"), *words, *ends]


def real_store(version: str, root: Path, *, at: Path | None = None) -> dict[str, bytes]:
    """Every file of the store below `root` after `base` and `mario` were made, by its path.

    `at` is where the server believed its store to be.
    """
    files: dict[str, bytes] = {}
    for name, layers in (("base", base_layers(version, at or root)), ("mario", mario_layers(version))):
        config = config_of(version, layers)
        manifest = manifest_of(config, layers) + b"\n"
        files[f"manifests/registry.ollama.ai/library/{name}/latest"] = manifest
        files |= {f"blobs/sha256-{sha256(data)}": data for data in (config, *(each.data for each in layers))}
    upload = TINY.read_bytes()  # stays behind where the layer is another file
    return files | {f"blobs/sha256-{sha256(upload)}": upload}


def files_below(root: Path) -> dict[str, bytes]:
    """The files of a store, without our mark."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != MARK]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


# --- what the recordings say ----------------------------------------------------------------------------------------


@cache
def exchanges(version: str, scenario: str) -> list[dict[str, Any]]:
    document = json.loads((CONTRACT / f"ollama-{version}.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = document["scenarios"][scenario]
    return found


def answers(version: str, scenario: str, path: str) -> Iterator[Any]:
    for exchange in exchanges(version, scenario):
        if exchange["request"]["path"] == path:
            response = exchange["response"]
            yield response.get("json", response.get("ndjson"))


def recorded_models(version: str) -> dict[str, Mapping[str, Any]]:
    """What tags said of each model of the scenario when it was first seen."""
    seen: dict[str, Mapping[str, Any]] = {}
    for answer in answers(version, "push-pull", "/api/tags"):
        for model in answer["models"]:
            seen.setdefault(str(model["name"]), model)
    return seen


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_written_here_are_those_of_the_recorded_server(version: str, tmp_path: Path) -> None:
    files = real_store(version, tmp_path)
    recorded = recorded_models(version)
    for name in ("mario",) if version in NAMES_PATHS else ("mario", "base"):
        manifest = files[f"manifests/registry.ollama.ai/library/{name}/latest"]
        assert sha256(manifest) == recorded[f"{name}:latest"]["digest"]
    pushed = [line for line in next(answers(version, "push-pull", "/api/push")) if "digest" in line]
    manifest = json.loads(files["manifests/registry.ollama.ai/library/mario/latest"])
    blobs = [(blob["digest"], blob["size"]) for blob in (*manifest["layers"], manifest["config"])]
    assert blobs == [(line["digest"], line["total"]) for line in pushed]


# --- a real store in the sandbox ------------------------------------------------------------------------------------


def write_files(files: Mapping[str, bytes], root: Path) -> None:
    (root / MARK).touch()
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def without_times(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "modified_at"}


def in_any_order(shown: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Without what is random on real servers (the order of parameters), the time, and where the store is."""
    modelfile = str(shown["modelfile"]).replace(str(root), "<models>").splitlines()
    parameters = str(shown.get("parameters", "")).splitlines()
    kept = without_times(shown) | {"modelfile": sorted(modelfile), "parameters": sorted(parameters)}
    return {key: value for key, value in kept.items() if key not in ("model_info", "tensors")}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_a_real_server_opens_with_the_same_names_digests_and_contents(
    version: str, tmp_path: Path
) -> None:
    write_files(real_store(version, tmp_path, at=Path("/root/.ollama/models")), tmp_path)
    with Sandbox(tmp_path, as_version=version) as sandbox:
        listed = {
            model["name"]: model
            for model in requests.get(f"{sandbox.url}/api/tags", timeout=PATIENCE_S).json()["models"]
        }
        shown = requests.post(f"{sandbox.url}/api/show", json={"model": "mario"}, timeout=PATIENCE_S).json()
    recorded = recorded_models(version)
    assert without_times(listed["mario:latest"]) == without_times(recorded["mario:latest"])
    base = without_times(recorded["base:latest"])
    if version in NAMES_PATHS:  # recorded in another folder
        base["digest"] = listed["base:latest"]["digest"]
    assert without_times(listed["base:latest"]) == base
    wanted = next(iter(answers(version, "create-with-overrides", "/api/show")))
    assert in_any_order(shown, tmp_path) == in_any_order(wanted, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_made_from_a_real_servers_model_is_the_recorded_one(version: str, tmp_path: Path) -> None:
    files = real_store(version, tmp_path)
    mario = files.pop("manifests/registry.ollama.ai/library/mario/latest")
    write_files(files, tmp_path)
    with Sandbox(tmp_path, as_version=version) as sandbox:
        play(version, sandbox, only="mario")
        assert files_below(tmp_path)["manifests/registry.ollama.ai/library/mario/latest"] == mario
        requests.delete(f"{sandbox.url}/api/delete", json={"name": "mario"}, timeout=PATIENCE_S)
        requests.delete(f"{sandbox.url}/api/delete", json={"name": "base"}, timeout=PATIENCE_S)
    upload = TINY.read_bytes()
    kept = {f"blobs/sha256-{sha256(upload)}": upload} if version in REWRITING else {}
    assert files_below(tmp_path) == kept


# --- the sandbox's store --------------------------------------------------------------------------------------------


def play(version: str, sandbox: Sandbox, *, only: str = "") -> None:
    """Send the recorded requests that make `base` and `mario`."""
    for exchange in exchanges(version, "push-pull"):
        request = exchange["request"]
        body = request.get("json", {})
        name = body.get("model", body.get("name"))
        if request["path"].startswith("/api/blobs/"):
            data = (CONTRACT / "weights" / request["file"]).read_bytes()
            requests.post(sandbox.url + request["path"], data=data, timeout=PATIENCE_S).raise_for_status()
        elif request["path"] == "/api/create" and only in ("", name):
            answer = requests.post(sandbox.url + request["path"], json=body, timeout=PATIENCE_S)
            assert json.loads(answer.text.splitlines()[-1]) == {"status": "success"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sandbox_writes_file_by_file_what_the_real_server_wrote(version: str, tmp_path: Path) -> None:
    with Sandbox(tmp_path, as_version=version) as sandbox:
        play(version, sandbox)
    assert files_below(tmp_path) == real_store(version, tmp_path)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.mark.registry
@pytest.mark.parametrize("version", VERSIONS)
def test_what_went_through_a_registry_is_stored_as_the_real_server_stores_it(
    version: str, tmp_path: Path, registry: RunningRegistry
) -> None:
    name = f"{registry.host}/team/mario:v{version}"
    body = {"model": name, "insecure": True, "stream": False}
    with Sandbox(tmp_path, as_version=version) as sandbox:
        play(version, sandbox)
        copied = {"source": "mario", "destination": name}
        requests.post(f"{sandbox.url}/api/copy", json=copied, timeout=PATIENCE_S).raise_for_status()
        requests.post(f"{sandbox.url}/api/push", json=body, timeout=PATIENCE_S).raise_for_status()
        requests.post(f"{sandbox.url}/api/pull", json=body, timeout=PATIENCE_S).raise_for_status()
    stored = (tmp_path / "manifests" / registry.host / "team" / "mario" / f"v{version}").read_bytes()
    layers = mario_layers(version)
    assert stored == manifest_of(config_of(version, layers), layers)
    assert sha256(stored) == recorded_after_pull(version)["digest"]


def recorded_after_pull(version: str) -> Mapping[str, Any]:
    *_, last = answers(version, "push-pull", "/api/tags")
    found: Mapping[str, Any] = last["models"][0]
    assert found["name"] == f"{RECORDED_REGISTRY}/team/mario:v1"
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_in_use_holds_only_what_a_real_server_would_expect(version: str, tmp_path: Path) -> None:
    with Sandbox(tmp_path, as_version=version) as sandbox:
        play(version, sandbox)
        for path, body in (
            ("pull", {"model": "llama3.2:1b", "stream": False}),
            ("copy", {"source": "llama3.2:1b", "destination": "me/alias:v1"}),
            ("pull", {"model": "nobody", "stream": False}),
            ("create", {"model": "broken", "files": {"a.gguf": "sha256:" + "0" * 64}, "stream": False}),
        ):
            requests.post(f"{sandbox.url}/api/{path}", json=body, timeout=PATIENCE_S)
        requests.post(f"{sandbox.url}/api/blobs/sha256:{'1' * 64}", data=b"else", timeout=PATIENCE_S)
        listed = requests.get(f"{sandbox.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    files = files_below(tmp_path)
    blobs = {path: data for path, data in files.items() if path.startswith("blobs/")}
    manifests = {path: data for path, data in files.items() if path not in blobs}
    assert all(path == f"blobs/sha256-{sha256(data)}" for path, data in blobs.items())
    assert all(re.fullmatch(r"manifests/[^/]+/[^/]+/[^/]+/[^/]+", path) for path in manifests)
    assert sorted(sha256(data) for data in manifests.values()) == sorted(model["digest"] for model in listed)
    for data in manifests.values():
        document = json.loads(data)
        assert list(document) == ["schemaVersion", "mediaType", "config", "layers"]
        assert (document["schemaVersion"], document["mediaType"]) == (2, MANIFEST_TYPE)
        assert document["config"]["mediaType"] == CONFIG_TYPE
        parts = (document["config"], *document["layers"])
        sizes = [len(blobs[f"blobs/{part['digest'].replace(':', '-')}"]) for part in parts]
        assert sizes == [part["size"] for part in parts]
        config = json.loads(blobs[f"blobs/{document['config']['digest'].replace(':', '-')}"])
        if "rootfs" in config:
            assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in document["layers"]]


# --- a folder that somebody prepared --------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a file that no model uses, and that is two hours old."""
    (tmp_path / "outside").mkdir()
    file = tmp_path / "outside" / f"sha256-{'0' * 64}"
    file.write_text("precious")
    os.utime(file, (time.time() - 7200,) * 2)
    return file.parent


@pytest.mark.parametrize(
    "link", ["blobs", "manifests", "manifests/registry.ollama.ai", "blobs/sha256-" + "1" * 64, MARK, "."]
)
def test_a_store_with_a_link_in_it_is_not_used(link: str, tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "store"
    if link == ".":
        root.symlink_to(outside)
    else:
        (root / link).parent.mkdir(parents=True)
        (root / MARK).touch()
        (root / MARK).rename(root / "x") if link == MARK else None
        (root / link).symlink_to(outside)
    before = files_below(outside)
    with pytest.raises(OSError, match="is a link"):
        Sandbox(root)
    assert files_below(outside) == before


def test_a_folder_of_somebody_elses_is_not_used(tmp_path: Path) -> None:
    files = real_store("0.33.0-rc2", tmp_path)
    write_files(files, tmp_path)
    (tmp_path / MARK).unlink()
    with pytest.raises(OSError, match="other things are in it"):
        Sandbox(tmp_path)
    assert files_below(tmp_path) == files


def test_only_files_that_a_server_names_so_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob, partial = f"sha256-{'0' * 64}", f"sha256-{'1' * 64}-partial-3"
    for name in (blob, partial, "notes.txt", "sha256", f"{blob}.bak"):
        (store.blobs / name).write_text("")
    (store.blobs / f"sha256-{'2' * 64}").mkdir()
    assert store.prune() == [blob, partial]


def test_a_manifest_is_not_written_behind_a_link_that_came_later(tmp_path: Path, outside: Path) -> None:
    store = Store(tmp_path / "store")
    path = store.manifest_path(parse_name("a"))
    path.parent.mkdir(parents=True)
    path.symlink_to(outside / f"sha256-{'0' * 64}")
    with pytest.raises(OSError, match="symbolic links"):
        store.write_manifest(parse_name("a"), b"{}")
    assert (outside / f"sha256-{'0' * 64}").read_text() == "precious"
