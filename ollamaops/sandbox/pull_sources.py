"""Where the bytes of a pull come from: the built-in models, or a registry over HTTP.

A blob arrives in steps that may become progress lines. A registry must redirect to another host name for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ollamaops.sandbox.builtin_models import BuiltinModels
from ollamaops.sandbox.layers import MANIFEST_TYPE, MODEL, Layer
from ollamaops.sandbox.model_name import Name
from ollamaops.sandbox.registry_http import RegistryError, RegistryHTTP, RegistryNotFound

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
