"""Weights that lie elsewhere, from the manifest to a server: straight through, or through the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from uuid import uuid4

import pytest
from registry_fixture import COMMIT, Reply, Request, RunningServer, a_file, run_server

from ollamaops.cli.main import run
from ollamaops.errors import DigestMismatch, NotFound, ServerFault
from ollamaops.files.location import FileInfo, RemoteRef
from ollamaops.http.file_body import LocalFile
from ollamaops.names import Digest
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_source
from ollamaops.registry.s3_weights import Bucket, FileSystem
from ollamaops.registry.web_weights import RemoteWeights
from ollamaops.sandbox.server import Sandbox

BODY = (Path(__file__).parents[1] / "contract" / "weights" / "tiny-chatml.gguf").read_bytes()
DIGEST = Digest.of(BODY)
HUB = RemoteRef("hf://org/repo/a.gguf")


def a_hub(
    body: bytes = BODY, *, is_large: bool = True, cut_at: int | None = None
) -> Callable[[Request], Reply]:
    """A hub with one file in it, which is large (git-lfs) or not."""
    linked = {"X-Linked-Etag": f'"{Digest.of(body).hex}"', "X-Linked-Size": str(len(body))}
    bytes_of = a_file(body, cut_at=cut_at)

    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(200, {"X-Repo-Commit": COMMIT, **(linked if is_large else {})}, body)
        return bytes_of(request) if "/resolve/" in request.path else Reply(404)

    return answer


@contextmanager
def remote_weights(folder: Path, server: RunningServer | None = None) -> Iterator[RemoteWeightsStore]:
    environ = {"OLLAMAOPS_CACHE_DIR": str(folder)}
    if server is not None:
        environ["HF_ENDPOINT"] = server.url
    with closing(RemoteWeightsStore(environ)) as found:
        yield found


def upload(sandbox: Sandbox, found: RemoteWeightsStore, ref: RemoteRef, digest: Digest = DIGEST) -> bool:
    with OllamaClient.connect(sandbox.url, host_name="box") as client:
        return upload_source(client, digest, found.source_of(ref, digest))


def gets(server: RunningServer) -> list[str]:
    return [request.path for request in server.requests if request.method == "GET"]


def test_a_file_of_known_digest_goes_straight_through_and_leaves_nothing_here(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with run_server(a_hub(cut_at=50_000)) as hub, Sandbox() as sandbox, remote_weights(cache, hub) as found:
        assert found.info_of(HUB, None) == FileInfo(digest=DIGEST, size_bytes=len(BODY))
        assert upload(sandbox, found, HUB)
        assert sandbox.store.read_blob(str(DIGEST)) == BODY
        assert not upload(sandbox, found, HUB)
        assert gets(hub) == [f"/org/repo/resolve/{COMMIT}/a.gguf"] * 3
    assert not cache.exists()


def test_a_file_of_unknown_digest_passes_through_the_cache_once(tmp_path: Path) -> None:
    told: list[tuple[RemoteRef, int, int]] = []
    with run_server(a_hub(is_large=False)) as hub, Sandbox() as sandbox:
        for _ in range(2):
            with remote_weights(tmp_path, hub) as found:
                info = found.info_of(HUB, None, on_progress=lambda *read: told.append(read))
                assert info == FileInfo(digest=DIGEST, size_bytes=len(BODY))
                upload(sandbox, found, HUB)
        assert [read for read in told if read[1] == len(BODY)] == [(HUB, len(BODY), len(BODY))]
        assert sandbox.store.read_blob(str(DIGEST)) == BODY
        assert gets(hub).count(f"/org/repo/resolve/{COMMIT}/a.gguf") == 1


def test_a_saved_plan_finds_its_file_again_by_its_digest(tmp_path: Path) -> None:
    with run_server(a_hub()) as hub, Sandbox() as sandbox, remote_weights(tmp_path, hub) as found:
        assert upload(sandbox, found, HUB)
        with pytest.raises(DigestMismatch, match="the digest there is"):
            found.source_of(HUB, Digest.of(b"another"))


class Untold:
    """A file system that tells no sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def info(self, path: str) -> dict[str, object]:
        return {}

    def ukey(self, path: str) -> str:
        return "one"

    def open(self, path: str, mode: str, *, block_size: int, cache_type: str) -> BinaryIO:
        return (self.folder / path).open("rb")


def test_a_file_whose_size_nobody_tells_is_read_to_its_end_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.gguf").write_bytes(BODY)
    ref = RemoteRef("s3://bucket/a.gguf")
    remote, told = RemoteWeights({}, bucket=Bucket(lambda: Untold(tmp_path))), list[tuple[int, int]]()
    with closing(RemoteWeightsStore({}, folder=tmp_path / "other", remote=remote)) as found:
        found.info_of(ref, None, on_progress=lambda _, *read: told.append(read))
        assert told == [(len(BODY), 0), (len(BODY), len(BODY))]
    with Sandbox() as sandbox, closing(RemoteWeightsStore({}, remote=remote)) as found:
        assert found.info_of(ref, DIGEST) == FileInfo(digest=DIGEST, size_bytes=0)
        assert upload(sandbox, found, ref)
        assert sandbox.store.read_blob(str(DIGEST)) == BODY
    assert len(list((tmp_path / "cache" / "ollamaops" / "weights").iterdir())) == 1


def test_a_stated_digest_is_enough_when_nobody_answers(tmp_path: Path) -> None:
    with run_server(lambda _: Reply(503)) as hub, remote_weights(tmp_path, hub) as found:
        assert found.info_of(HUB, DIGEST) == FileInfo(digest=DIGEST, size_bytes=0)
        with pytest.raises(ServerFault):
            found.info_of(HUB, None)


def test_a_stated_digest_that_is_not_what_lies_there_is_always_an_error(tmp_path: Path) -> None:
    with (
        run_server(a_hub(b"GGUFother")) as hub,
        remote_weights(tmp_path, hub) as found,
        pytest.raises(DigestMismatch),
    ):
        found.info_of(HUB, DIGEST)


def test_a_file_of_a_bucket_is_fetched_for_its_digest_and_uploaded_from_the_cache(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    bucket = f"bucket-{uuid4().hex}"
    memory = fsspec.filesystem("memory")
    memory.pipe(f"{bucket}/a.gguf", BODY)
    ref = RemoteRef(f"s3://{bucket}/a.gguf")
    remote = RemoteWeights({}, bucket=Bucket(lambda: cast("FileSystem", memory)))
    with Sandbox() as sandbox, closing(RemoteWeightsStore({}, folder=tmp_path, remote=remote)) as found:
        assert found.info_of(ref, None) == FileInfo(digest=DIGEST, size_bytes=len(BODY))
        assert isinstance(found.source_of(ref, DIGEST), LocalFile)
        memory.rm(bucket, recursive=True)
        assert upload(sandbox, found, ref)
        with pytest.raises(NotFound):
            found.info_of(RemoteRef(f"s3://{bucket}/b.gguf"), None)


def test_two_hosts_get_one_file_at_the_same_time(tmp_path: Path) -> None:
    with (
        run_server(a_hub()) as hub,
        Sandbox() as one,
        Sandbox() as two,
        remote_weights(tmp_path, hub) as found,
    ):
        found.info_of(HUB, None)
        workers = [threading.Thread(target=upload, args=(box, found, HUB)) for box in (one, two)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert one.store.read_blob(str(DIGEST)) == two.store.read_blob(str(DIGEST)) == BODY


def test_a_manifest_with_weights_elsewhere_converges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_server(a_hub()) as hub, Sandbox() as sandbox:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        web = f"{hub.url}/resolve/b.gguf"
        (tmp_path / "m.yaml").write_text(
            f"hosts: {{h: {{url: {sandbox.url}}}}}\n"
            "models:\n"
            "  - {name: hub, files: ['hf://org/repo/a.gguf']}\n"
            f"  - {{name: web, files: ['{web}'], sha256: {{'{web}': {DIGEST.hex}}}}}\n"
        )
        manifest = str(tmp_path / "m.yaml")
        assert run(["apply", "-y", "-f", manifest]) == 0
        assert "1 uploaded, 2 created; 1 host as declared" in capsys.readouterr().out
        assert run(["drift", "-f", manifest]) == 0
