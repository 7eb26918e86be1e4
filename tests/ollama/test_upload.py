"""Uploads: looked for first, streamed once, and honest about files that change."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE_S
from scripted_host import Asked, Script, ScriptedHost, Wire

from ollamaops.errors import (
    Cancelled,
    ConnectionLost,
    DigestMismatch,
    DiskFull,
    InvalidRequest,
    RemoteError,
    ServerFault,
    TimeoutExceeded,
    WeightsError,
)
from ollamaops.http.file_body import FileBlock
from ollamaops.http.session import TimeLimits
from ollamaops.names import Digest
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_blob
from ollamaops.ollama.wire import Progress

MIB = 1 << 20


class BlobHost:
    """A host that stores blobs as Ollama does: it hashes what comes and refuses a wrong digest."""

    def __init__(self, post: Script | None = None, limits: TimeLimits | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self._post = post or self.store
        # Whoever sets another event makes HEAD wait for it once the blob was sent.
        self.settled = threading.Event()
        self.settled.set()
        self._limits = limits
        self.host = ScriptedHost(self.serve, reads_body=False)

    def __enter__(self) -> BlobHost:
        self.host.__enter__()
        self.client = OllamaClient.connect(self.host.url, host_name="gpu-1", limits=self._limits)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.host.__exit__(None, None, None)

    def serve(self, asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            if any(earlier.method == "POST" for earlier in self.host.asked):
                self.settled.wait()
            there = asked.path.rpartition("/")[2] in self.blobs
            wire.head(200 if there else 404, Content_Length="0")
        else:
            self._post(asked, wire)

    def store(self, asked: Asked, wire: Wire) -> None:
        body = wire.read(int(asked.headers["Content-Length"]))
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if len(body) < int(asked.headers["Content-Length"]):
            wire.close()
            return
        self.blobs[found] = body
        wanted = asked.path.rpartition("/")[2]
        if found == wanted:
            wire.answer(201)
        else:
            text = f'digest mismatch, expected "{wanted}", got "{found}"'
            wire.json({"error": text}, 400)

    def send(self, path: Path, digest: Digest | None = None, **options: object) -> bool:
        data = path.read_bytes()
        return upload_blob(self.client, digest or Digest.of(data), path, len(data), **options)  # type: ignore[arg-type]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(bytes(range(256)) * (10 * MIB // 256) + b"rest")
    return path


def test_a_file_is_stored_under_its_digest_and_progress_reaches_the_whole(weights: Path) -> None:
    seen: list[Progress] = []
    with BlobHost() as host:
        assert host.send(weights, on_progress=seen.append) is True
        size, digest = weights.stat().st_size, str(Digest.of(weights.read_bytes()))
        assert host.blobs == {digest: weights.read_bytes()}
        assert host.host.paths() == [f"HEAD /api/blobs/{digest}", f"POST /api/blobs/{digest}"]
        assert host.host.asked[1].headers["Content-Length"] == str(size)
    counts = [progress.completed_bytes for progress in seen]
    assert counts == [*range(0, size, MIB), size]
    assert {(p.status, p.digest, p.total_bytes) for p in seen} == {("uploading", digest, size)}


def test_a_blob_that_is_there_is_not_sent_and_the_file_not_opened(tmp_path: Path) -> None:
    digest = Digest.of(b"x")
    with BlobHost() as host:
        host.blobs[str(digest)] = b"x"
        assert upload_blob(host.client, digest, tmp_path / "not-there", 1) is False
        assert len(host.host.asked) == 1


def test_an_empty_file_is_a_blob_too(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with BlobHost() as host:
        assert host.send(path) is True
        assert list(host.blobs.values()) == [b""]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(64 * MIB)

    def swallow(asked: Asked, wire: Wire) -> None:
        left = int(asked.headers["Content-Length"])
        while left:
            left -= len(wire.read(min(left, MIB)))
        wire.answer(201)

    with BlobHost(swallow) as host:
        tracemalloc.start()
        try:
            upload_blob(host.client, Digest.of(b""), path, 64 * MIB)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 * MIB


@pytest.mark.parametrize("how", [Wire.close, Wire.reset])
def test_a_blob_that_appeared_meanwhile_is_fine_although_the_pipe_broke(
    weights: Path, how: Callable[[Wire], None]
) -> None:
    """The server answers 200 before it reads the body; the sender sees a broken connection."""
    digest = str(Digest.of(weights.read_bytes()))

    def appear(asked: Asked, wire: Wire) -> None:
        host.blobs[digest] = b"from another client"
        if how is Wire.close:
            wire.answer(200)
        how(wire)

    with BlobHost(appear) as host:
        assert host.send(weights) is True
        assert host.blobs[digest] == b"from another client"


def test_a_connection_that_breaks_without_the_blob_is_an_error_worth_another_try(weights: Path) -> None:
    with BlobHost(lambda asked, wire: wire.reset()) as host, pytest.raises(ConnectionLost) as caught:
        host.send(weights)
    assert caught.value.transient
    assert [asked.method for asked in host.host.asked] == ["HEAD", "POST", "HEAD"]


SLOW = TimeLimits(stall_s=0.3, quiet_s=PATIENCE_S)


def test_a_server_that_is_still_busy_with_the_bytes_it_has_is_no_stalled_one(tmp_path: Path) -> None:
    """A buffering proxy has taken everything at once, and hands it on while nothing is heard."""
    weights = tmp_path / "small.gguf"
    weights.write_bytes(b"so small that the system takes it at once")

    def store_slowly(asked: Asked, wire: Wire) -> None:
        body = wire.read(int(asked.headers["Content-Length"]))
        done.wait(0.5)
        host.blobs[str(Digest.of(body))] = body
        wire.answer(201)

    done = threading.Event()
    with BlobHost(store_slowly, SLOW) as host:
        assert host.send(weights) is True
    assert [asked.method for asked in host.host.asked] == ["HEAD", "POST"]


def test_a_server_that_takes_no_more_bytes_has_stalled(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    gone = threading.Event()

    def take_nothing(asked: Asked, wire: Wire) -> None:
        gone.wait(PATIENCE_S)

    with BlobHost(take_nothing, SLOW) as host:
        with pytest.raises(TimeoutExceeded, match=r"nothing moved for 0\.3s$"):
            upload_blob(host.client, Digest.of(b""), path, 64 * MIB)
        gone.set()


def test_silence_after_the_last_byte_is_bounded_and_told_as_long_as_it_was(weights: Path) -> None:
    gone = threading.Event()

    def swallow(asked: Asked, wire: Wire) -> None:
        wire.read(int(asked.headers["Content-Length"]))
        gone.wait(PATIENCE_S)

    with BlobHost(swallow, TimeLimits(stall_s=PATIENCE_S, quiet_s=0.2)) as host:
        with pytest.raises(TimeoutExceeded, match=r"nothing moved for 0\.2s$"):
            host.send(weights)
        gone.set()
    assert [asked.method for asked in host.host.asked] == ["HEAD", "POST", "HEAD"]


@pytest.mark.parametrize("status", [None, 502, 504])
def test_a_blob_that_is_there_although_nobody_said_so_is_not_sent_again(
    weights: Path, status: int | None
) -> None:
    gone = threading.Event()

    def store(asked: Asked, wire: Wire) -> None:
        body = wire.read(int(asked.headers["Content-Length"]))
        host.blobs[str(Digest.of(body))] = body
        host.settled.set()
        if status is None:
            gone.wait(PATIENCE_S)
        else:
            wire.answer(status)

    with BlobHost(store, TimeLimits(stall_s=PATIENCE_S, quiet_s=0.2)) as host:
        host.settled.clear()
        assert host.send(weights) is True
        gone.set()
    assert [asked.method for asked in host.host.asked] == ["HEAD", "POST", "HEAD"]


def test_another_digest_than_stated_says_that_the_file_changed(weights: Path) -> None:
    with BlobHost() as host, pytest.raises(DigestMismatch) as caught:
        host.send(weights, Digest.of(b"something else"))
    assert str(caught.value).startswith("gpu-1: upload tiny.gguf: digest mismatch, expected ")
    assert (
        caught.value.hint == f"'{weights}' changed since its digest was computed, or a stated digest is wrong"
    )
    assert (caught.value.host, caught.value.status) == ("gpu-1", 400)


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (500, "write /m/blobs/sha256-1: no space left on device", DiskFull),
        (500, "unexpected EOF", ServerFault),
        (413, "", InvalidRequest),
        (400, "invalid digest format", InvalidRequest),
    ],
)
def test_a_refusal_before_the_body_is_read_is_heard(
    weights: Path, status: int, text: str, error: type[RemoteError]
) -> None:
    def refuse(asked: Asked, wire: Wire) -> None:
        wire.json({"error": text}, status)
        while wire.read(MIB):
            pass

    with BlobHost(refuse) as host, pytest.raises(error):
        host.send(weights)


def test_a_file_that_is_gone_or_unreadable_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "gone", "no such file or directory"), (tmp_path, "is a directory")):
        with BlobHost() as host, pytest.raises(WeightsError, match=f"^{path}: cannot be read: {why}$"):
            upload_blob(host.client, Digest.of(b"x"), path, 1)


def test_a_file_of_another_size_than_hashed_is_not_sent(weights: Path) -> None:
    with (
        BlobHost() as host,
        pytest.raises(WeightsError, match="it had 3 bytes when it was hashed and has 10485764"),
    ):
        upload_blob(host.client, Digest.of(b"x"), weights, 3)
    assert [asked.method for asked in host.host.asked] == ["HEAD"]


def while_sending(change: Callable[[], None]) -> Callable[[Progress], None]:
    """A listener that runs `change` once, when a part of the file is out."""
    done = threading.Event()

    def listen(progress: Progress) -> None:
        if progress.completed_bytes and not done.is_set():
            done.set()
            change()

    return listen


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(weights: Path) -> None:
    def shrink() -> None:
        with weights.open("r+b") as file:
            file.truncate(2 * MIB)

    with (
        BlobHost() as host,
        pytest.raises(WeightsError, match="it ends after 2097152 of 10485764 bytes") as caught,
    ):
        host.send(weights, on_progress=while_sending(shrink))
    assert host.blobs == {}
    assert caught.value.hint


def test_a_file_that_grows_while_it_is_sent_is_an_error(weights: Path) -> None:
    def grow() -> None:
        with weights.open("ab") as file:
            file.write(b"more")

    with (
        BlobHost() as host,
        pytest.raises(WeightsError, match="10485764 bytes when it was hashed and has 10485768"),
    ):
        host.send(weights, on_progress=while_sending(grow))
    assert host.blobs == {}


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_file_that_cannot_be_read_any_more_is_named(over_tls: bool, weights: Path) -> None:
    """Opened for writing only, a file fails as on a broken disk: when it is read."""
    with io.FileIO(weights, "a") as file:
        block = FileBlock(file, str(weights), 0, 10)
        here, there = socket.socketpair()
        with (
            here,
            there,
            pytest.raises(WeightsError, match=r"tiny\.gguf: cannot be read: input/output error"),
        ):
            block.read() if over_tls else block.send_to(here)


def test_a_file_that_ends_within_a_block_is_an_error(weights: Path) -> None:
    with io.FileIO(weights) as file:
        block = FileBlock(file, str(weights), 10 * MIB, MIB)
        here, there = socket.socketpair()
        with here, there:
            for send in (block.read, lambda: block.send_to(here)):
                with pytest.raises(WeightsError, match="it ends after 10485764 bytes"):
                    send()


def test_a_lost_connection_is_not_blamed_on_the_file(weights: Path) -> None:
    with io.FileIO(weights) as file:
        here, there = socket.socketpair()
        there.close()
        with here, pytest.raises(BrokenPipeError):
            FileBlock(file, str(weights), 0, MIB).send_to(here)


def test_an_upload_is_cancelled_on_the_way(weights: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.completed_bytes >= 3 * MIB:
            host.client.transport.cancel.cancel()

    with BlobHost() as host, pytest.raises(Cancelled):
        host.send(weights, on_progress=stop)
    assert host.blobs == {}


def test_two_threads_may_send_over_one_client(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(bytes([number]) * (3 * MIB))
    with BlobHost() as host:
        threads = [threading.Thread(target=host.send, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(host.blobs) == {str(Digest.of(path.read_bytes())) for path in paths}
