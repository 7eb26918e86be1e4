"""Weights in buckets, tried with fsspec's file system in memory in place of S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import cast
from uuid import uuid4

import pytest

from ollamaops.errors import AccessDenied, NotFound, OllamaopsError, RemoteError, ServerFault, WeightsError
from ollamaops.files.location import RemoteRef, parse_remote
from ollamaops.names import Digest
from ollamaops.registry.s3_weights import Bucket, FileSystem, open_s3
from ollamaops.registry.web_weights import RemoteWeights

fsspec = pytest.importorskip("fsspec")
BODY = bytes(range(256)) * 100_000


@pytest.fixture
def ref() -> Iterator[RemoteRef]:
    """A file in a bucket of its own."""
    bucket = f"bucket-{uuid4().hex}"
    memory = fsspec.filesystem("memory")
    memory.pipe(f"{bucket}/folder/a.gguf", BODY)
    yield parse_remote(f"s3://{bucket}/folder/a.gguf")
    memory.rm(bucket, recursive=True)


def in_memory() -> FileSystem:
    return cast("FileSystem", fsspec.filesystem("memory"))


def weights() -> RemoteWeights:
    return RemoteWeights({}, bucket=Bucket(in_memory))


def test_a_file_of_a_bucket_has_a_size_and_a_version_but_no_digest(ref: RemoteRef) -> None:
    with weights() as remote:
        found = remote.resolve(ref)
        assert (found.digest, found.size_bytes, found.url) == (None, len(BODY), str(ref))
        assert found.version
        stated = remote.resolve(ref, Digest.of(BODY))
        assert (stated.digest, stated.version) == (Digest.of(BODY), found.version)


@pytest.mark.parametrize("offset", [0, 1, 9 << 20])
def test_a_file_of_a_bucket_is_read_from_any_byte_on(ref: RemoteRef, offset: int) -> None:
    with weights() as remote, remote.open(remote.resolve(ref), offset=offset) as stream:
        assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == BODY[offset:]


def test_a_file_that_was_replaced_since_it_was_looked_at_is_refused(ref: RemoteRef) -> None:
    with weights() as remote:
        found = remote.resolve(ref)
        fsspec.filesystem("memory").pipe(str(ref).removeprefix("s3://"), BODY + b"more")
        with pytest.raises(WeightsError, match="changed while it was fetched"):
            remote.open(found)


def test_a_file_that_is_not_there_is_named() -> None:
    with weights() as remote, pytest.raises(NotFound) as caught:
        remote.resolve(parse_remote("s3://nowhere/a.gguf"))
    assert (str(caught.value), caught.value.host) == ("s3://nowhere/a.gguf: not found", "nowhere")


def test_without_fsspec_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(WeightsError) as caught:
        open_s3()
    assert str(caught.value) == "s3:// needs fsspec, which is not installed"
    assert caught.value.hint == "pip install 'ollamaops[s3]'"


class Broken:
    """A file system, and the files on it, that fail in one way."""

    def __init__(self, error: Exception, *, opens: bool = False) -> None:
        self.error, self.opens, self.is_closed = error, opens, False

    def info(self, path: str) -> dict[str, object]:
        if self.opens:
            return {"size": 3}
        raise self.error

    def ukey(self, path: str) -> str:
        return "one"

    def open(self, path: str, mode: str, *, block_size: int, cache_type: str) -> Broken:
        if self.opens:
            return self
        raise self.error

    def seek(self, offset: int, /) -> int:
        return offset

    def read(self, size: int, /) -> bytes:
        raise self.error

    def close(self) -> None:
        self.is_closed = True


FAILURES: list[tuple[Exception, type[OllamaopsError], str]] = [
    (PermissionError("Signature=secret"), AccessDenied, "s3://b/a.gguf: access denied"),
    (OSError("Signature=secret"), ServerFault, "s3://b/a.gguf: cannot be read: OSError"),
    (LookupError("Signature=secret"), RemoteError, "s3://b/a.gguf: cannot be read: LookupError"),
]


@pytest.mark.parametrize("error, kind, message", FAILURES)
def test_whatever_s3fs_lets_through_becomes_our_error_without_its_text(
    error: Exception, kind: type[OllamaopsError], message: str
) -> None:
    ref = parse_remote("s3://b/a.gguf")
    remote = RemoteWeights({}, bucket=Bucket(lambda: Broken(error)))
    with remote, pytest.raises(RemoteError) as caught:
        remote.resolve(ref)
    assert (type(caught.value), str(caught.value)) == (kind, message)


def test_failures_of_opening_and_reading_are_ours_too() -> None:
    ref = parse_remote("s3://b/a.gguf")
    broken = Broken(PermissionError(), opens=True)
    with RemoteWeights({}, bucket=Bucket(lambda: broken)) as remote:
        with remote.open(remote.resolve(ref)) as stream, pytest.raises(AccessDenied):
            stream.read(10)
        assert broken.is_closed
        file = remote.resolve(ref)
        broken.opens = False
        with pytest.raises(AccessDenied):
            remote.open(file)
