"""The server's store on disk, in Ollama's own layout: `blobs/sha256-…` and `manifests/host/namespace/model/tag`.

A store is a folder that was empty, or that has our mark, and there is no link in it: so what is written and deleted
here is nobody else's, whoever prepared the folder.

Nothing protects a blob that no manifest uses: as on a real server, an upload can be pruned before the create that
wants it. Fault scripts use `remove_blob`, `prune`, `copy_model` and `disk_full` too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from ollamaops.sandbox.model_name import Name

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_BLOB_FILE = re.compile(r"sha256-[0-9a-fA-F]{64}")
_OURS = re.compile(r"sha256-[0-9A-Za-z_]+(?:-partial(?:-[0-9]+)?)?")  # blobs, uploads and downloads
MARK = ".ollamaops-sandbox"
_MARK_TEXT = "The models of a pretend server. ollamaops deletes here what no model uses.\n"
_life: ContextVar[int | None] = ContextVar("life of the server in which this request came", default=None)


class InvalidDigest(ValueError):
    """Not a digest to the server. `str()` is its answer."""

    def __init__(self) -> None:
        super().__init__("invalid digest format")


class Upload:
    """A blob on its way in: write, then `finish` under its own digest, or `abandon` without a trace."""

    def __init__(self, store: Store) -> None:
        self._store = store
        descriptor, name = tempfile.mkstemp(prefix="sha256-", dir=store.blobs)
        self._path, self._file = Path(name), os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; OSError when the disk is full."""
        self._store.check_space(self._path)
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> tuple[str, bool]:
        """Make the blob visible. Returns its digest, and whether it is new. A file that is there stays."""
        self._file.close()
        digest = f"sha256:{self._hash.hexdigest()}"
        if self._store.has_blob(digest):
            self._store.touch_blob(digest)
            self._path.unlink()
            return digest, False
        self._path.chmod(0o644)
        self._path.replace(self._store.blob_path(digest))
        return digest, True

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self.abandon()


class Store:
    """Blobs and manifests below `root`, which is made if need be. Methods may be called from any thread.

    OSError for a folder that is not ours to write and delete in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.blobs, self.manifests = self.root / "blobs", self.root / "manifests"
        _take(self.root)
        self.blobs.mkdir(exist_ok=True)
        self.manifests.mkdir(exist_ok=True)
        self.lock = threading.RLock()
        """Held while manifests and the blobs that they use change together."""
        self.disk_full = False
        """While true every write fails as on a full disk."""
        self._life = 0

    def enter(self) -> None:
        """Note in which life of the server this request came; it may not write in a later one. See `prune`."""
        _life.set(self._life)

    # -- blobs

    def blob_path(self, digest: str) -> Path:
        """Where the blob is or would be; for an empty digest the folder of blobs. InvalidDigest."""
        if not digest:
            return self.blobs
        if not _DIGEST.fullmatch(digest):
            raise InvalidDigest
        return self.blobs / digest.replace(":", "-")

    def has_blob(self, digest: str) -> bool:
        return self.blob_path(digest).exists()

    def blob_size(self, digest: str) -> int:
        """Bytes; FileNotFoundError when the blob is not there."""
        return self.blob_path(digest).stat().st_size

    def read_blob(self, digest: str) -> bytes:
        """All of a (small) blob."""
        return self.blob_path(digest).read_bytes()

    def begin_upload(self) -> Upload:
        """A new blob of any size. OSError when the disk is full."""
        self.check_space(self.blobs)
        return Upload(self)

    def add_blob(self, data: bytes) -> tuple[str, bool]:
        """Store `data`. Returns its digest, and whether it is new."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.has_blob(digest):
            self.touch_blob(digest)
            return digest, False
        with self.begin_upload() as upload:
            upload.write(data)
            return upload.finish()

    def touch_blob(self, digest: str) -> None:
        """Mark a blob as used now, which keeps it from the next prune for a while."""
        os.utime(self.blob_path(digest))

    def remove_blob(self, digest: str) -> bool:
        """Delete a blob, used or not. Returns whether it was there."""
        path = self.blob_path(digest)
        found = path.exists()
        path.unlink(missing_ok=True)
        return found

    def remove_unused_blob(self, digest: str) -> bool:
        """Delete a blob unless a manifest uses it. Returns whether it was deleted."""
        with self.lock:
            return digest not in self.used_digests() and self.remove_blob(digest)

    def check_space(self, path: Path) -> None:
        """OSError in a real server's words while `disk_full` is set."""
        if self.disk_full:
            raise OSError(28, "no space left on device", str(path))

    # -- manifests

    def manifest_path(self, name: Name) -> Path:
        return self.manifests / name.path

    def names(self) -> list[Name]:
        """The names of all manifests, readable or not, sorted."""
        found = (path.relative_to(self.manifests).parts for path in self.manifests.glob("*/*/*/*"))
        return sorted(name for name in (Name(*parts) for parts in found) if name.is_valid)

    def read_manifest(self, name: Name) -> bytes:
        """The bytes of a manifest. FileNotFoundError (or another OSError) when there is none.

        Servers (up to 0.33) write in place, so a reader may find half a manifest for some microseconds. With
        Python's threads these would be milliseconds, so here reading waits for writing.
        """
        with self.lock:
            return self.manifest_path(name).read_bytes()

    def write_manifest(self, name: Name, data: bytes) -> None:
        """Write or replace a manifest. OSError when the disk is full, or the request's server has died."""
        path = self.manifest_path(name)
        with self.lock:
            if _life.get() not in (None, self._life):
                raise OSError(errno.EINTR, "the server has restarted", str(path))
            self.check_space(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(path, how, 0o644), "wb") as file:
                file.write(data)

    def remove_manifest(self, name: Name) -> None:
        """Delete a manifest and the folders that it leaves empty. FileNotFoundError."""
        path = self.manifest_path(name)
        with self.lock:
            path.unlink()
            for folder in list(path.parents)[:3]:
                if any(folder.iterdir()):
                    break
                folder.rmdir()

    def copy_model(self, source: Name, target: Name) -> None:
        """Write the source's manifest under another name too, byte for byte. FileNotFoundError."""
        with self.lock:
            self.write_manifest(target, self.read_manifest(source))

    def modified_ns(self, name: Name) -> int:
        """When the manifest was written, in nanoseconds since 1970."""
        return self.manifest_path(name).stat().st_mtime_ns

    # -- what uses what

    def used_digests(self) -> set[str]:
        """The digests that any readable manifest refers to."""
        return {digest for name in self.names() for digest in self._digests_of(name) or ()}

    def _digests_of(self, name: Name) -> list[str] | None:
        try:
            return list(_digests_in(json.loads(self.read_manifest(name))))
        except (OSError, ValueError):
            return None

    def prune(self, grace_s: float = 0, *, stop_at_corrupt: bool = True) -> list[str]:
        """What a server does when it starts: remove the files in `blobs/` that nothing uses. A new life begins.

        Work of the life before may still run in a thread here, while a real server's work died with it. Such work
        may not write manifests any more, because their blobs may be gone.

        Files changed less than `grace_s` ago stay. With `stop_at_corrupt`, nothing is removed while a manifest is
        corrupt. Returns the names of the removed files.
        """
        with self.lock:
            self._life += 1
            if stop_at_corrupt and any(self._digests_of(name) is None for name in self.names()):
                return []
            used = {digest.replace(":", "-") for digest in self.used_digests()}
            limit = time.time() - grace_s
            ours = [path for path in self.blobs.iterdir() if _OURS.fullmatch(path.name) and path.is_file()]
            unused = [path for path in ours if path.name not in used or not _is_blob(path)]
            removed = [path for path in unused if path.stat().st_mtime <= limit]
            for path in removed:
                path.unlink()
            return sorted(path.name for path in removed)


def _take(root: Path) -> None:
    """Make the folder ours, unless it is; OSError where it is somebody else's, or has a link in it."""
    if root.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(root))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [path.name for path in root.iterdir()]
    if names and MARK not in names:
        raise OSError(
            errno.ENOTEMPTY, "other things are in it: a pretend server has a folder of its own", str(root)
        )
    if (link := _link_in(root)) is not None:
        raise OSError(errno.ELOOP, f"{link.relative_to(root)} in it is a link", str(root))
    (root / MARK).write_text(_MARK_TEXT)


def _link_in(folder: Path) -> Path | None:
    """A link below the folder, if there is one; none is followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                return Path(entry.path)
            if entry.is_dir() and (link := _link_in(Path(entry.path))) is not None:
                return link
    return None


def _is_blob(path: Path) -> bool:
    return _BLOB_FILE.fullmatch(path.name) is not None


def _digests_in(manifest: object) -> Iterator[str]:
    if not isinstance(manifest, dict):
        raise ValueError("not a manifest")  # a corrupt file, like one that is not JSON
    layers = manifest.get("layers")
    for layer in [manifest.get("config"), *(layers if isinstance(layers, list) else ())]:
        if isinstance(layer, dict) and isinstance(layer.get("digest"), str):
            yield layer["digest"]
