"""The SHA-256 of local weights, computed in constant memory and, as long as a file does not change, only once.

A file that changed less than two seconds before it was hashed may change again without a visible trace, because
timestamps are coarse. Its digest is not remembered; git's index calls the same problem "racy". Any later change
shows in the stamp, whose ctime no program can set back.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.errors import Cancelled, StateError, WeightsError
from ollamaops.files.regular_file import open_weights, require_regular, unreadable
from ollamaops.files.sniff import LFS_PREFIX, pointer_instead_of_weights
from ollamaops.names import Digest

BLOCK_BYTES = 1 << 20
HASHED_BYTES = 4 << 20
RACY_NS = 2_000_000_000
_NO_FILES_SIZE = -1
_NOTICE_S = 0.2


class FileStamp(Struct, frozen=True):
    """What a file looks like from outside. Equal stamps, some time after the last change, mean equal bytes."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class FileFacts(Struct, frozen=True):
    """A file and the digest of the bytes that it had while it looked like `stamp`."""

    path: Path
    digest: Digest
    stamp: FileStamp

    @property
    def size_bytes(self) -> int:
        return self.stamp.size_bytes

    def is_current(self) -> bool:
        """Whether the file still looks as it did. WeightsError if the file can no longer be read."""
        return stamp_of(self.path) == self.stamp


class DigestCache(Protocol):
    """Remembers digests between runs. `get` must know the whole stamp, `has_seen` only the path."""

    def get(self, stamp: FileStamp) -> Digest | None: ...

    def has_seen(self, path: Path) -> bool: ...

    def put(self, stamp: FileStamp, digest: Digest) -> None: ...


ProgressSink = Callable[[int], None]
CancelCheck = Callable[[], bool]
Clock = Callable[[], int]


def stamp_of(path: Path) -> FileStamp:
    """How the file looks now. WeightsError if it is missing, unreadable or not a regular file."""
    try:
        require_regular(path)
        return _stamp(path, path.stat())
    except OSError as error:
        raise unreadable(path, error) from error


def hash_file(
    path: Path, *, on_progress: ProgressSink | None = None, cancel: CancelCheck | None = None
) -> FileFacts:
    """The digest of a file, read once in blocks of 4 MiB.

    `on_progress` is told the bytes read so far; `cancel` is asked before each block. WeightsError if the file is
    missing, unreadable, not a regular file, a git-lfs pointer, or changed while it was read; Cancelled.
    """
    with open_weights(path) as file:
        before = _stamp(path, os.fstat(file.fileno()))
        digest = _digest_of_open(file, path, on_progress, cancel)
        after = _stamp(path, os.fstat(file.fileno()))
    if not before == after == stamp_of(path):
        raise WeightsError(
            f"{path}: changed while it was read",
            hint="wait until the download or conversion that writes it has ended, then run again",
        )
    return FileFacts(path, digest, after)


def digest_of(
    path: Path,
    cache: DigestCache,
    *,
    on_progress: ProgressSink | None = None,
    cancel: CancelCheck | None = None,
    clock_ns: Clock = time.time_ns,
) -> FileFacts:
    """The digest of a file, from the cache if the file looks as it did when it was hashed, else by hashing it.

    Errors as for `hash_file`. A cache that cannot be written (read-only state folder) is not an error here.
    """
    stamp = stamp_of(path)
    known = cache.get(stamp)
    if known is not None:
        return FileFacts(path, known, stamp)
    started_ns = clock_ns()
    facts = hash_file(path, on_progress=on_progress, cancel=cancel)
    if not is_racy(facts.stamp, started_ns):
        with suppress(StateError):
            cache.put(facts.stamp, facts.digest)
    return facts


def require_digest(facts: FileFacts, stated: Digest) -> None:
    """WeightsError unless the file has the digest that the manifest states."""
    if facts.digest != stated:
        raise WeightsError(
            f"{facts.path}: its digest is {facts.digest.short}, and the manifest states {stated.short}",
            hint="bring back the file that was meant, or correct its digest under sha256:",
        )


def believe(stamp: FileStamp, digest: Digest, cache: DigestCache, *, since_ns: int) -> None:
    """Remember the digest that a server computed of a file that was sent to it from `since_ns` on.

    If the file may have changed meanwhile, only its path is remembered, and it is hashed next time.
    """
    is_sure = stamp_of(Path(stamp.path)) == stamp and not is_racy(stamp, since_ns)
    with suppress(StateError):
        cache.put(stamp if is_sure else replace(stamp, size_bytes=_NO_FILES_SIZE), digest)


def is_racy(stamp: FileStamp, hashed_at_ns: int) -> bool:
    """Whether the file changed so shortly before it was hashed that a further change could go unnoticed."""
    return any(abs(hashed_at_ns - changed_ns) < RACY_NS for changed_ns in (stamp.mtime_ns, stamp.ctime_ns))


def hash_files(
    paths: Iterable[Path],
    *,
    cache: DigestCache | None = None,
    workers: int | None = None,
    on_progress: Callable[[Path, int], None] | None = None,
    cancel: CancelCheck | None = None,
) -> Mapping[Path, FileFacts]:
    """The facts of several files, hashed in parallel, in the order of `paths`.

    `workers` defaults to the number of processors, at most four. The first failure stops the others and is
    raised; errors as for `hash_file`. `on_progress` is called from several threads.
    """
    stop = Event()

    def stopped() -> bool:
        return stop.is_set() or (cancel is not None and cancel())

    def facts_of(path: Path) -> FileFacts:
        def sink(done_bytes: int) -> None:
            if on_progress is not None:
                on_progress(path, done_bytes)

        try:
            if cache is None:
                return hash_file(path, on_progress=sink, cancel=stopped)
            return digest_of(path, cache, on_progress=sink, cancel=stopped)
        except BaseException:
            stop.set()
            raise

    distinct = tuple(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=workers or min(4, os.cpu_count() or 1)) as pool:
        try:
            pending = [pool.submit(facts_of, path) for path in distinct]
            # Python runs a signal's handler between two steps of the main thread. A signal that comes just before
            # a wait begins would be noticed only at its end, so no wait here is long.
            while wait(pending, timeout=_NOTICE_S).not_done:
                pass
            failures = [error for future in pending if (error := future.exception()) is not None]
        except BaseException:  # Ctrl-C while waiting
            stop.set()
            raise
    if failures:
        raise min(failures, key=lambda error: isinstance(error, Cancelled))
    return {path: future.result() for path, future in zip(distinct, pending, strict=True)}


def _digest_of_open(
    file: FileIO, path: Path, on_progress: ProgressSink | None, cancel: CancelCheck | None
) -> Digest:
    sha256 = hashlib.sha256()
    block = bytearray(HASHED_BYTES)
    view = memoryview(block)
    done_bytes = 0
    while True:
        if cancel is not None and cancel():
            raise Cancelled(f"{path}: hashing was stopped")
        count = file.readinto(block)
        if not count:
            return Digest(sha256.hexdigest())
        if done_bytes == 0 and block.startswith(LFS_PREFIX):
            raise pointer_instead_of_weights(path)
        sha256.update(view[:count])
        done_bytes += count
        if on_progress is not None:
            on_progress(done_bytes)


def _stamp(path: Path, facts: os.stat_result) -> FileStamp:
    return FileStamp(
        path=os.path.abspath(path),  # noqa: PTH100 - Path.resolve would follow links
        size_bytes=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        ctime_ns=facts.st_ctime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
    )
