"""POST /api/pull and /api/push: models to and from registries (v2), and from the built-in models.

Models of registry.ollama.ai are built in; every other host is asked for real. A registry that answers a blob
itself cannot be pulled from, only one that redirects to another host name. A blob that is there is never looked
into again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

from ollamaops.sandbox.builtin_models import BuiltinModels
from ollamaops.sandbox.layers import MANIFEST_TYPE, MODEL, CorruptManifest, Layer, Manifest, parse_manifest
from ollamaops.sandbox.model_name import DEFAULT_HOST, Name, parse_name
from ollamaops.sandbox.registry_http import RegistryError, RegistryHTTP, RegistryNotFound
from ollamaops.sandbox.responses import SUCCESS, Line, Refusal, Work, failure, line, os_failure
from ollamaops.sandbox.stored_models import NoSuchModel, StoredModels

_TICK_S = 0.06
_CHUNK = 256 << 10
_TRIES = 6
_CATALOGUE_STEPS = 4

Steps = Iterator[tuple[int, int, bool]]
"""Bytes there, bytes in all, and whether this step must be shown."""
CheckSpace = Callable[[Path], None]


class Source(Protocol):
    """Where a model is pulled from."""

    def manifest(self) -> bytes:
        """The registry manifest's bytes. RegistryError."""

    def fetch(self, blob: Layer, partial: Path, check_space: CheckSpace) -> Steps:
        """Write a blob to `partial`, going on where it ends. RegistryError, OSError."""


class BuiltinSource:
    """The built-in models: a registry that answers from memory."""

    def __init__(self, builtin: BuiltinModels, name: Name, *, has_lines: bool) -> None:
        self._builtin, self._name = builtin, name
        self._has_lines = has_lines

    def manifest(self) -> bytes:
        found = self._builtin.manifest(f"{self._name.namespace}/{self._name.model}", self._name.tag)
        if found is None:
            raise RegistryNotFound
        return found

    def fetch(self, blob: Layer, partial: Path, check_space: CheckSpace) -> Steps:
        data = self._builtin.blob(blob.digest)
        step = max(1, -(-len(data) // _CATALOGUE_STEPS))
        is_shown = self._has_lines or blob.media_type == MODEL
        with partial.open("wb") as stream:
            for start in range(0, len(data), step):
                check_space(partial)
                yield start, len(data), is_shown and (start == 0 or blob.media_type == MODEL)
                stream.write(data[start : start + step])
        yield len(data), len(data), is_shown


class RegistrySource:
    """A registry that is asked over HTTP."""

    def __init__(self, http: RegistryHTTP, base: str, name: Name, no_redirect: str) -> None:
        self._http, self._base, self._tag, self._no_redirect = http, base, name.tag, no_redirect

    def manifest(self) -> bytes:
        url = f"{self._base}/manifests/{self._tag}"
        with self._http.ask("GET", url, headers={"Accept": MANIFEST_TYPE}) as reply:
            return reply.read()

    def fetch(self, blob: Layer, partial: Path, check_space: CheckSpace) -> Steps:
        url = f"{self._base}/blobs/{blob.digest}"
        with self._http.ask("HEAD", url) as reply:
            total = int(reply.headers.get("content-length", blob.size))
        yield 0, total, False
        with self._http.ask("GET", url, follow=False) as reply:
            target = reply.location()
            if not target:
                raise RegistryError(self._no_redirect)
        for attempt in range(_TRIES):
            try:
                yield from self._continue(target, partial, total, check_space)
                return
            except RegistryError as error:
                problem = error
                time.sleep(0.01 * 2**attempt)
        raise RegistryError(f"max retries exceeded: {problem}")

    def _continue(self, url: str, partial: Path, total: int, check_space: CheckSpace) -> Steps:
        have = partial.stat().st_size if partial.exists() else 0
        if have >= total:
            partial.touch()
            return
        plain = RegistryHTTP("Go-http-client/1.1")
        with (
            plain.ask("GET", url, headers={"Range": f"bytes={have}-{total - 1}"}) as reply,
            partial.open("ab" if reply.status == 206 else "wb") as stream,
        ):
            have = have if reply.status == 206 else 0
            while have < total:
                check_space(partial)
                data = reply.read_some(min(_CHUNK, total - have))
                stream.write(data)
                have += len(data)
                yield have, total, False


class Transfer:
    """Pulls and pushes for one store. `version` goes into the User-Agent."""

    def __init__(self, models: StoredModels, version: str, builtin: BuiltinModels | None = None) -> None:
        self._models, self._store, self._behavior = models, models.store, models.behavior
        self._user_agent = f"ollama/{version}"
        self.builtin = builtin or BuiltinModels()

    def pull_base(self, name: Name) -> Work:
        """The lines of pulling a base that a create lacks."""
        return self.pull(name, insecure=False)

    def pull(self, name: Name, *, insecure: bool) -> Work:
        """The lines of pulling `name`; `insecure` means plain http."""
        old = self._old_blobs(name)
        yield line("pulling manifest")
        try:
            source = self._source(name, insecure=insecure)
            manifest = parse_manifest(source.manifest())
        except (RegistryError, CorruptManifest) as error:
            raise failure(f"pull model manifest: {error}") from error
        try:
            fresh = yield from self._download(source, manifest)
            yield line("verifying sha256 digest")
            self._verify(fresh)
            yield line("writing manifest")
            raw = manifest.raw if self._behavior.raw_manifests else self._written(manifest)
            self._store.write_manifest(name, raw)
        except RegistryError as error:
            raise failure(str(error)) from error
        except OSError as error:
            raise os_failure(error, "write") from error
        yield from self._remove_unused(old - {blob.digest for blob in manifest.blobs})
        yield line(SUCCESS)

    def _written(self, manifest: Manifest) -> bytes:
        return manifest.pushed(names=self._behavior.layer_names)

    def _old_blobs(self, name: Name) -> set[str]:
        try:
            return {blob.digest for blob in self._models.manifest(name).blobs}
        except (NoSuchModel, CorruptManifest):
            return set()

    def _remove_unused(self, digests: set[str]) -> Work:
        if self._behavior.always_says_prune:
            yield line("removing any unused layers")
        elif digests:
            yield line("removing unused layers")
        for digest in sorted(digests):
            self._store.remove_unused_blob(digest)

    def _source(self, name: Name, *, insecure: bool) -> Source:
        if name.host.lower() == DEFAULT_HOST:
            return BuiltinSource(self.builtin, name, has_lines=self._behavior.fresh_blob_lines)
        http = RegistryHTTP(self._user_agent)
        return RegistrySource(
            http, _base_url(name, insecure=insecure), name, self._behavior.blob_without_redirect
        )

    def _download(self, source: Source, manifest: Manifest) -> Generator[Line, None, list[Layer]]:
        """Fetch the missing blobs. Returns them."""
        fresh: list[Layer] = []
        for blob in manifest.blobs:
            status = f"pulling {blob.digest[7:19]}"
            if self._store.has_blob(blob.digest):
                size = self._store.blob_size(blob.digest)
                yield line(status, digest=blob.digest, total=size, completed=size)
                continue
            partial = Path(f"{self._store.blob_path(blob.digest)}-partial")
            for completed, total in self._paced(source.fetch(blob, partial, self._store.check_space)):
                yield line(status, digest=blob.digest, total=total, completed=completed)
            partial.replace(self._store.blob_path(blob.digest))
            fresh.append(blob)
        return fresh

    def _paced(self, steps: Steps) -> Iterator[tuple[int, int]]:
        """The steps that become lines: the marked ones, and one every 60 ms."""
        shown_at, last = time.monotonic(), None
        for completed, total, is_marked in steps:
            last = (completed, total)
            if is_marked or time.monotonic() - shown_at >= _TICK_S:
                shown_at = time.monotonic()
                yield last
                last = None
        if last and self._behavior.fresh_blob_lines:
            yield last

    def _verify(self, blobs: Sequence[Layer]) -> None:
        for blob in blobs:
            found = _digest_of(self._store.blob_path(blob.digest))
            if found != blob.digest:
                self._store.remove_blob(blob.digest)
                raise failure(
                    f"digest mismatch, file must be downloaded again: want {blob.digest}, got {found}"
                )

    def push(self, name: Name, *, insecure: bool, is_http: bool) -> Work:
        """The lines of pushing `name`; `is_http` when the request's name said so."""
        yield line("retrieving manifest")
        if is_http and not insecure and self._behavior.push_checks_scheme:
            raise failure("insecure protocol http")
        try:
            manifest = self._models.manifest(name)
        except (NoSuchModel, CorruptManifest) as error:
            yield line("couldn't retrieve manifest")
            raise self._nothing_to_push(name) from error
        http = RegistryHTTP(self._user_agent)
        try:
            if name.host.lower() == DEFAULT_HOST:
                raise RegistryError("unauthorized: access denied")
            base = _base_url(name, insecure=insecure)
            for blob in manifest.blobs:
                yield from self._push_blob(http, base, blob)
            yield line("pushing manifest")
            body = self._written(manifest)
            with http.ask(
                "PUT", f"{base}/manifests/{name.tag}", headers={"Content-Type": MANIFEST_TYPE}, body=body
            ):
                pass
        except RegistryError as error:
            raise failure(str(error)) from error
        except OSError as error:
            raise os_failure(error) from error
        yield line(SUCCESS)

    def _nothing_to_push(self, name: Name) -> Refusal:
        if self._behavior.push_invalid and not name.is_valid:
            return failure(self._behavior.push_invalid.format(name.full))
        return failure(self._behavior.push_missing.format(self._store.manifest_path(name)))

    def _push_blob(self, http: RegistryHTTP, base: str, blob: Layer) -> Work:
        try:
            with http.ask("HEAD", f"{base}/blobs/{blob.digest}"):
                pass
        except RegistryNotFound:
            self._upload(http, base, blob)
        yield line(f"pushing {blob.digest[7:19]}", digest=blob.digest, total=blob.size, completed=blob.size)

    def _upload(self, http: RegistryHTTP, base: str, blob: Layer) -> None:
        mount = {}
        if blob.origin:
            origin = parse_name(blob.origin)
            mount = {"from": f"{origin.namespace}/{origin.model}", "mount": blob.digest}
        query = f"?{urlencode(mount)}" if mount else ""
        with http.ask("POST", f"{base}/blobs/uploads/{query}", body=b"") as reply:
            if reply.status == 201:
                return
            target = reply.location()
        end = max(blob.size - 1, 0)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(blob.size),
            "Content-Range": f"0-{end}",
        }
        with (
            self._store.blob_path(blob.digest).open("rb") as stream,
            http.ask("PATCH", target, headers=headers, body=stream) as reply,
        ):
            target = reply.location()
        joint = "&" if "?" in target else "?"
        with http.ask("PUT", f"{target}{joint}{urlencode({'digest': blob.digest})}", body=b""):
            pass


def _base_url(name: Name, *, insecure: bool) -> str:
    return f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
