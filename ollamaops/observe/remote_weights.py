"""Weights at an address, for one run: what the plan has to know of them, and their bytes for an upload.

If digest and size are known, the bytes go straight from there to a server; otherwise they are downloaded first. What
was found when the plan was made is kept, commit included, so that the upload fetches exactly those bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from msgspec import Struct
from platformdirs import user_cache_path

from ollamaops.errors import DigestMismatch, RemoteError
from ollamaops.files.digest import CancelCheck, FileFacts
from ollamaops.files.download_cache import DownloadCache
from ollamaops.files.location import FileInfo, RemoteFile, RemoteRef
from ollamaops.http.file_body import LocalFile
from ollamaops.names import Digest
from ollamaops.ollama.upload import BlobSource
from ollamaops.registry.download import RemoteStream
from ollamaops.registry.web_weights import RemoteWeights

OnFetched = Callable[[RemoteRef, int, int], None]
"""Told a file, how many of its bytes are here, and how many it has (0: nobody says)."""


class RemoteWeightsStore:
    """Remote weights and the folder they pass through if they must. Safe with several threads.

    `folder` defaults to OLLAMAOPS_CACHE_DIR, else the user's cache folder; it is made when it is needed.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        folder: Path | None = None,
        remote: RemoteWeights | None = None,
    ) -> None:
        self._environ = environ
        self._folder = folder
        self._opened = remote
        self._lock = Lock()
        self._found: dict[RemoteRef, RemoteFile] = {}
        self._fetched: dict[RemoteRef, FileFacts] = {}

    def close(self) -> None:
        """Close the pooled connections."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _remote(self) -> RemoteWeights:
        """Made when it is first needed: most manifests name no weights elsewhere."""
        with self._lock:
            if self._opened is None:
                self._opened = RemoteWeights(self._environ)
            return self._opened

    def info_of(
        self,
        ref: RemoteRef,
        known: Digest | None,
        *,
        on_progress: OnFetched | None = None,
        cancel: CancelCheck | None = None,
    ) -> FileInfo:
        """Digest and size of what is there. The errors of RemoteWeights.resolve and DownloadCache.fetch.

        With a `known` digest a server that does not answer is no error: the size then counts as 0. `on_progress` is
        told of what has to come to this disk.
        """
        try:
            file = self._resolve(ref, known)
        except RemoteError as error:
            if known is None or isinstance(error, DigestMismatch):
                raise
            return FileInfo(digest=known, size_bytes=0)
        if file.digest is None:
            facts = self._fetch(file, cancel, on_progress)
            return FileInfo(digest=facts.digest, size_bytes=facts.size_bytes)
        return FileInfo(digest=file.digest, size_bytes=file.size_bytes or 0)

    def source_of(self, ref: RemoteRef, digest: Digest, *, cancel: CancelCheck | None = None) -> BlobSource:
        """Where an upload of the blob reads. DigestMismatch if something else lies there now; errors as above."""
        fetched = self._fetched.get(ref)
        if fetched is None or fetched.digest != digest:
            file = self._found.get(ref)
            if file is None or file.digest != digest:
                file = self._resolve(ref, digest)
            if file.size_bytes is not None:
                return _Streamed(self._remote, file, file.size_bytes)
            fetched = self._fetch(file, cancel)
        return LocalFile(fetched.path, fetched.size_bytes)

    def _resolve(self, ref: RemoteRef, known: Digest | None) -> RemoteFile:
        file = self._remote.resolve(ref, known)
        self._found[ref] = file
        return file

    def _fetch(
        self, file: RemoteFile, cancel: CancelCheck | None, on_progress: OnFetched | None = None
    ) -> FileFacts:
        def on_fetched(done_bytes: int) -> None:
            if on_progress is not None:
                on_progress(file.ref, done_bytes, file.size_bytes or 0)

        cache = DownloadCache(self._folder or _default_folder(self._environ))
        facts = cache.fetch(
            file,
            lambda offset: self._remote.open(file, offset=offset),
            on_progress=on_fetched,
            cancel=cancel,
        )
        if file.size_bytes is None and on_progress is not None:
            on_progress(file.ref, facts.size_bytes, facts.size_bytes)
        self._fetched[file.ref] = facts
        return facts


class _Streamed(Struct, frozen=True):
    """A remote file as the source of an upload; nothing of it is kept here."""

    remote: RemoteWeights
    file: RemoteFile
    size_bytes: int

    @property
    def name(self) -> str:
        return self.file.ref.name

    @property
    def place(self) -> str:
        return str(self.file.ref)

    def open(self) -> RemoteStream:
        """The bytes, from the first on; a cut connection is taken up again."""
        return self.remote.open(self.file)


def _default_folder(environ: Mapping[str, str]) -> Path:
    if named := environ.get("OLLAMAOPS_CACHE_DIR"):
        return Path(named)
    return user_cache_path("ollamaops") / "weights"
