"""Weights in S3 and what speaks like it, through fsspec and s3fs, which are installed only when asked for.

s3fs finds credentials and endpoints as every S3 program does (AWS_PROFILE, AWS_ENDPOINT_URL, ~/.aws …). An S3 ETag is
not a SHA-256, so a file without a stated digest has to be read once before its digest is known.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from ollamaops.errors import AccessDenied, NotFound, RemoteError, ServerFault, WeightsError
from ollamaops.files.location import RemoteFile, RemoteRef
from ollamaops.names import Digest
from ollamaops.registry.download import Opened, Readable, RemoteStream

_BLOCK_BYTES = 8 << 20


class _SeekableFile(Readable, Protocol):
    def seek(self, offset: int, /) -> int: ...


class FileSystem(Protocol):
    """What is used of an fsspec file system."""

    def info(self, path: str) -> Mapping[str, object]: ...
    def ukey(self, path: str) -> str: ...
    def open(self, path: str, mode: str, *, block_size: int, cache_type: str) -> _SeekableFile: ...


def open_s3() -> FileSystem:
    """s3fs with its usual settings. WeightsError, with the way out, if it is not installed."""
    try:
        fsspec = importlib.import_module("fsspec")
        return cast("FileSystem", fsspec.filesystem("s3"))
    except ImportError as error:
        raise WeightsError(
            f"s3:// needs {error.name or 's3fs'}, which is not installed", hint="pip install 'ollamaops[s3]'"
        ) from error


class Bucket:
    """Finds and fetches files of buckets. `connect` makes the file system, when it is first needed."""

    def __init__(self, connect: Callable[[], FileSystem] = open_s3) -> None:
        self._connect = connect
        self._connected: FileSystem | None = None

    @property
    def _files(self) -> FileSystem:
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def resolve(self, ref: RemoteRef, known: Digest | None) -> RemoteFile:
        """Size and version of the file. NotFound, AccessDenied or another RemoteError."""
        path = _path_of(ref)
        files = self._files
        try:
            size, version = files.info(path).get("size"), files.ukey(path)
        except Exception as error:
            raise _failure(ref, error) from error
        return RemoteFile(
            ref=ref,
            url=ref.text,
            digest=known,
            size_bytes=size if isinstance(size, int) else None,
            version=version,
        )

    def open(self, file: RemoteFile, *, offset: int = 0, version: str = "") -> RemoteStream:
        """The bytes of the file from `offset` on; errors as for `resolve`, also while reading."""

        def open_at(start: int, _: str) -> Opened:
            try:
                source = self._files.open(
                    _path_of(file.ref), "rb", block_size=_BLOCK_BYTES, cache_type="readahead"
                )
                source.seek(start)
                found = self._files.ukey(_path_of(file.ref))
            except Exception as error:
                raise _failure(file.ref, error) from error
            return Opened(
                source=_Guarded(source, file.ref), start=start, version=found, size_bytes=file.size_bytes
            )

        return RemoteStream(str(file.ref), open_at, offset=offset, version=version or file.version)


class _Guarded:
    """A file of a bucket whose failures are ours."""

    def __init__(self, source: Readable, ref: RemoteRef) -> None:
        self._source = source
        self._ref = ref

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except Exception as error:
            raise _failure(self._ref, error) from error

    def close(self) -> None:
        self._source.close()


def _path_of(ref: RemoteRef) -> str:
    """`bucket/key`, as fsspec wants it."""
    return ref.text.partition("://")[2]


def _failure(ref: RemoteRef, error: Exception) -> RemoteError:
    """Our error. Only its kind is told: texts of botocore may carry requests and their signatures."""
    host = ref.text.partition("://")[2].partition("/")[0]
    match error:
        case FileNotFoundError():
            return NotFound(f"{ref}: not found", host=host, status=404, hint="check bucket and key")
        case PermissionError():
            hint = "check the credentials: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return AccessDenied(f"{ref}: access denied", host=host, status=403, hint=hint)
        case OSError():
            return ServerFault(f"{ref}: cannot be read: {type(error).__name__}", host=host)
        case _:
            hint = "check credentials, region and endpoint (AWS_PROFILE, AWS_ENDPOINT_URL)"
            return RemoteError(f"{ref}: cannot be read: {type(error).__name__}", host=host, hint=hint)
