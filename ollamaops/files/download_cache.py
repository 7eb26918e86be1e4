"""A bounded folder of downloads, for weights that must be read here once because their digest is not stated anywhere.

The caller fetches the bytes and opens a download at an offset; several processes may share the folder. The name of a
download is made from the address and the version of what lies there, so that a partial download is only continued
with bytes of the same version.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

from ollamaops.errors import Cancelled, DigestMismatch, WeightsError
from ollamaops.files.digest import BLOCK_BYTES, CancelCheck, FileFacts, ProgressSink, stamp_of
from ollamaops.files.location import RemoteFile
from ollamaops.files.output import open_private
from ollamaops.names import Digest
from ollamaops.units import format_size

MAX_BYTES = 128 << 30
_PART = ".part"
_POLL_S = 0.1
_OURS = re.compile(r"[0-9a-f]{32}(?:\.part|-[0-9a-f]{64})")


class Readable(Protocol):
    """Bytes in order, b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


Open = Callable[[int], AbstractContextManager[Readable]]
"""offset → the bytes of the file from there on."""


class DownloadCache:
    """Downloads in `folder`, which need not exist, up to `max_bytes`: those unused for longest go first."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def fetch(
        self,
        file: RemoteFile,
        open_at: Open,
        *,
        on_progress: ProgressSink | None = None,
        cancel: CancelCheck | None = None,
    ) -> FileFacts:
        """The file on this disk, and its digest; fetched unless it is there, from where an earlier attempt ended.

        WeightsError when it does not fit or cannot be written, DigestMismatch when it is not what is stated,
        Cancelled, and what `open_at` and its reading raise.
        """
        try:
            with self._locked(file, cancel) as part:
                return self._find(file) or self._download(file, part, open_at, on_progress, cancel)
        except OSError as error:
            raise WeightsError(
                f"{file.ref}: cannot be kept in {self._folder}: {(error.strerror or 'unknown reason').lower()}",
                hint="state its digest under sha256:, then it goes straight to the servers",
            ) from error

    def _find(self, file: RemoteFile) -> FileFacts | None:
        if not (file.digest or file.version):
            return None  # it cannot be told whether it is still the same
        for path in self._folder.glob(f"{_key(file)}-*"):
            if not _is_ours(path):
                continue
            os.utime(path)
            return FileFacts(path, Digest(path.name.rpartition("-")[2]), stamp_of(path))
        return None

    def _part_of(self, file: RemoteFile) -> Path:
        return self._folder / f"{_key(file)}{_PART}"

    @contextmanager
    def _locked(self, file: RemoteFile, cancel: CancelCheck | None) -> Iterator[BufferedRandom]:
        """The unfinished file, locked by us. Another process may have finished or removed it before."""
        path = self._part_of(file)
        while True:
            with os.fdopen(open_private(path, os.O_RDWR | os.O_APPEND), "a+b") as part:
                _lock(part, path, cancel)
                if _is_at(part, path):
                    try:
                        yield part
                    finally:
                        part.flush()
                        if _is_at(part, path) and os.fstat(part.fileno()).st_size == 0:
                            path.unlink()
                    return

    def _download(
        self,
        file: RemoteFile,
        part: BufferedRandom,
        open_at: Open,
        on_progress: ProgressSink | None,
        cancel: CancelCheck | None,
    ) -> FileFacts:
        path = self._part_of(file)
        self._make_room(file, path, file.size_bytes or 0)
        sha256, done_bytes = _hash_of_start(part, is_wanted=bool(file.digest or file.version))
        with open_at(done_bytes) as source:
            while data := source.read(BLOCK_BYTES):
                if cancel is not None and cancel():
                    raise Cancelled(f"{file.ref}: the download was stopped")
                sha256.update(data)
                part.write(data)
                done_bytes += len(data)
                if done_bytes > self._max_bytes:
                    self._refuse(file, path, done_bytes)
                if on_progress is not None:
                    on_progress(done_bytes)
        digest = Digest(sha256.hexdigest())
        if file.digest not in (None, digest):
            path.unlink()
            raise _mismatch(file, digest)
        part.flush()
        final = path.replace(self._folder / f"{_key(file)}-{digest.hex}")
        self._make_room(file, final, done_bytes)
        return FileFacts(final, digest, stamp_of(final))

    def _make_room(self, file: RemoteFile, path: Path, size_bytes: int) -> None:
        """Remove what was longest unused until `size_bytes` at `path` fit in."""
        if size_bytes > self._max_bytes:
            self._refuse(file, path, size_bytes)
        others = sorted(self._others(path), key=lambda other: other[1].st_mtime_ns)
        used_bytes = sum(facts.st_size for _, facts in others)
        for other, facts in others:
            if used_bytes + size_bytes <= self._max_bytes:
                return
            if _remove_unless_open(other):
                used_bytes -= facts.st_size

    def _others(self, path: Path) -> Iterator[tuple[Path, os.stat_result]]:
        for other in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                if other != path and _is_ours(other):
                    yield other, other.stat()

    def _refuse(self, file: RemoteFile, path: Path, size_bytes: int) -> None:
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{file.ref}: {format_size(size_bytes)} do not fit into the download cache "
            f"of {format_size(self._max_bytes)}",
            hint="state its digest under sha256:, then it goes straight to the servers",
        )


def _key(file: RemoteFile) -> str:
    what = file.digest.hex if file.digest else f"{file.url}\n{file.version}"
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def _is_ours(path: Path) -> bool:
    """Whether this is a download, and neither a link nor somebody's file: those are neither used nor removed."""
    return _OURS.fullmatch(path.name) is not None and not path.is_symlink()


def _lock(part: BufferedRandom, path: Path, cancel: CancelCheck | None) -> None:
    """Wait until no other process or thread has the file. Cancelled."""
    while True:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if cancel is not None and cancel():
                raise Cancelled(f"{path.name}: waiting for another download was stopped") from None
            time.sleep(_POLL_S)


def _is_at(part: BufferedRandom, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    return False


def _hash_of_start(part: BufferedRandom, *, is_wanted: bool) -> tuple[hashlib._Hash, int]:
    """The hash of what an earlier attempt left, and how many bytes that is; nothing is left if it is not wanted."""
    if not is_wanted:
        part.truncate(0)
    part.seek(0)
    sha256, done_bytes = hashlib.sha256(), 0
    while data := part.read(BLOCK_BYTES):
        sha256.update(data)
        done_bytes += len(data)
    return sha256, done_bytes


def _remove_unless_open(path: Path) -> bool:
    """Remove a file unless it is being fetched; True if it is gone now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _mismatch(file: RemoteFile, found: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{file.ref}: the digest of what was fetched is {found}, the manifest states {file.digest}",
        hint="the file has changed, or the stated digest is wrong",
    )
