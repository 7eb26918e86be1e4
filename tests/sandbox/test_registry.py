"""What the sandbox promises as a registry: our client reads it, servers pull from it, and it is read-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from patience import PATIENCE_S
from sandbox_caller import a_caller, digest_of

from ollamaops.cli.main import run
from ollamaops.errors import NotFound
from ollamaops.names import Digest, ModelName
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import MANIFEST_TYPE, RegistryManifest
from ollamaops.sandbox.behavior import RECORDED
from ollamaops.sandbox.server import Sandbox

LLAMA = ModelName.parse("llama3.2:3b")
TAG = "/v2/library/llama3.2/manifests/3b"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(registry=True) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[RegistryClient]:
    with RegistryClient(endpoints={"registry.ollama.ai": sandbox.url}) as opened:
        yield opened


def weights_of(client: RegistryClient) -> Digest:
    document = client.manifest(LLAMA).document
    assert isinstance(document, RegistryManifest)
    return document.layers[0].digest


def get(sandbox: Sandbox, path: str, method: str = "GET", **headers: str) -> requests.Response:
    return requests.request(method, sandbox.url + path, headers=headers, timeout=PATIENCE_S)


@pytest.mark.parametrize("version", ["0.3.4", "0.33.0-rc2"])
def test_a_server_has_no_registry_paths(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        answer = get(caller.sandbox, "/v2/")
        assert (answer.status_code, answer.text) == (404, "404 page not found")


def test_the_registry_identifies_itself(sandbox: Sandbox) -> None:
    for path in ("/v2", "/v2/"):
        for method in ("GET", "HEAD"):
            assert get(sandbox, path, method).status_code == 200


def test_the_client_learns_what_a_pull_would_store(sandbox: Sandbox, client: RegistryClient) -> None:
    found = client.manifest(LLAMA)
    assert requests.post(f"{sandbox.url}/api/pull", json={"model": "llama3.2:3b"}, timeout=PATIENCE_S).ok
    stored = requests.get(f"{sandbox.url}/api/tags", timeout=PATIENCE_S).json()["models"][0]
    assert found.digest.hex == stored["digest"]
    assert isinstance(found.document, RegistryManifest)
    assert sum(part.size_bytes for part in found.document.parts) == stored["size"]
    served = requests.get(f"{sandbox.url}/v2/library/llama3.2/manifests/3b", timeout=PATIENCE_S)
    assert served.headers["Content-Type"] == MANIFEST_TYPE


def test_every_blob_of_a_manifest_is_there_for_the_client(client: RegistryClient) -> None:
    document = client.manifest(LLAMA).document
    assert isinstance(document, RegistryManifest)
    for part in document.parts:
        assert client.blob_exists(LLAMA, part.digest)
        assert len(client.blob(LLAMA, part.digest, 10_000_000)) == part.size_bytes


def test_a_blob_is_there_before_its_manifest_was_asked_for(sandbox: Sandbox, client: RegistryClient) -> None:
    weights = weights_of(client)
    sandbox.restart()
    assert client.blob_exists(LLAMA, weights)


@pytest.mark.parametrize("name", ["nope:latest", "llama3.2:nope", "me/llama3.2:3b"])
def test_a_model_that_is_not_built_in_is_not_found(name: str, client: RegistryClient) -> None:
    with pytest.raises(NotFound):
        client.manifest(ModelName.parse(name))


def test_a_blob_of_another_model_is_not_found(sandbox: Sandbox, client: RegistryClient) -> None:
    weights = weights_of(client)
    other = ModelName.parse("qwen3:8b")
    assert not client.blob_exists(other, weights)
    answer = get(sandbox, f"/v2/library/qwen3/blobs/{weights}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "BLOB_UNKNOWN")


def test_a_manifest_is_found_by_its_digest_too(sandbox: Sandbox) -> None:
    raw = get(sandbox, TAG).content
    assert get(sandbox, f"/v2/library/llama3.2/manifests/{digest_of(raw)}").content == raw
    assert get(sandbox, f"/v2/library/llama3.2/manifests/{digest_of(b'')}").status_code == 404


def test_head_gives_the_size_without_the_bytes(sandbox: Sandbox) -> None:
    whole, head = get(sandbox, TAG), get(sandbox, TAG, "HEAD")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["docker-content-digest"] == digest_of(whole.content)
    assert head.content == b""


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-", 206, slice(None)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=10-99999999", 206, slice(10, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_a_cut_download_can_be_resumed(
    wanted: str, status: int, part: slice, sandbox: Sandbox, client: RegistryClient
) -> None:
    weights = weights_of(client)
    whole = client.blob(LLAMA, weights, 10_000_000)
    answer = get(sandbox, f"/v2/library/llama3.2/blobs/{weights}", Range=wanted)
    assert (answer.status_code, answer.content) == (status, whole[part])


def test_a_registry_behind_any_other_name_serves_blobs_itself(
    sandbox: Sandbox, client: RegistryClient
) -> None:
    answer = get(sandbox, f"/v2/library/llama3.2/blobs/{weights_of(client)}", Host="models.example")
    assert answer.history == []
    assert answer.status_code == 200


def test_a_request_without_a_port_is_redirected_without_one(sandbox: Sandbox, client: RegistryClient) -> None:
    url = f"{sandbox.url}/v2/library/llama3.2/blobs/{weights_of(client)}"
    answer = requests.get(url, headers={"Host": "localhost"}, allow_redirects=False, timeout=PATIENCE_S)
    assert answer.headers["location"].startswith("http://127.0.0.1/v2/")


@pytest.mark.parametrize(
    "path", ["/v2/llama3.2/manifests/3b", "/v2/library/llama3.2/tags/list", "/v2/_catalog"]
)
def test_other_paths_are_unknown(path: str, sandbox: Sandbox) -> None:
    assert get(sandbox, path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_registry_is_read_only(method: str, sandbox: Sandbox) -> None:
    answer = get(sandbox, "/v2/library/llama3.2/blobs/uploads/", method)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")


@pytest.mark.parametrize("version", RECORDED)
def test_another_server_pulls_from_it(version: str, sandbox: Sandbox, tmp_path: Path) -> None:
    host, port = sandbox.address
    name = f"{host}:{port}/library/llama3.2:3b"
    with a_caller(tmp_path, version) as caller:
        reply = caller.post("pull", model=name, insecure=True)
        assert reply.statuses[-1] == "success"
        assert name in caller.tags()


def test_offline_a_plan_knows_sizes_and_whether_a_model_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ollamaops.yaml").write_text("models:\n  - {name: llama3.2:3b, update: latest}\n")
    shared = ["--sandbox", "--state-dir", "state", "--progress", "none"]
    assert run(["plan", *shared]) == 0
    assert "+ llama3.2:3b on local: pull, not there: 43.5 kB\n" in capsys.readouterr().out
    assert run(["apply", "-y", *shared]) == 0
    capsys.readouterr()
    assert run(["drift", *shared]) == 0
    assert capsys.readouterr().out == "nothing to do: 1 model on 1 host is as declared\n"
