"""Weights files: where they lie, on this disk or at an address, and what is known of them before any byte moves.

An address is shown, saved in plans and remembered as it is written, so one that can carry a secret (user, password,
query) is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from ollamaops.errors import InvalidValue
from ollamaops.names import Digest

Scheme = Literal["https", "http", "hf", "s3"]
SCHEMES: tuple[Scheme, ...] = ("https", "http", "hf", "s3")

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/?@(?P<revision>[^/@]+))?/(?P<path>.+)", re.ASCII)
_HUB_HINT = "write it as hf://organisation/repository/file.gguf, or …/repository@revision/file.gguf"


class RemoteRef(Struct, frozen=True, order=True):
    """Where weights lie, as the manifest says it. `str()` is exactly that."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def scheme(self) -> Scheme:
        return cast("Scheme", self.text.partition("://")[0].lower())

    @property
    def name(self) -> str:
        """The last part of the path, which is what the file is called."""
        return unquote(urlsplit(self.text).path.rpartition("/")[2])


Location = Path | RemoteRef
"""Where weights lie: on this disk, or at an address."""


class FileInfo(Struct, frozen=True, kw_only=True):
    """A weights file: its digest and size, and what its header says (empty when it is not a GGUF).

    `tensors` are `(name, shape)` pairs: they survive the rewriting that servers ≥ 0.30 do on import; `chat_template`
    is Jinja. `stated`: the digest is the one that the manifest states for a local file, which has not been read.
    """

    digest: Digest
    size_bytes: int
    stated: bool = False
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""
    is_projector: bool = False
    chat_template: str = ""
    tensors: frozenset[tuple[str, tuple[int, ...]]] = frozenset()


class Unavailable(Struct, frozen=True, kw_only=True):
    """Weights that no model can be made from, and why: nobody answers, or they are not what an entry states."""

    error: str
    hint: str | None = None


Weights = FileInfo | Unavailable


class HubFile(Struct, frozen=True):
    """A file of a repository at Hugging Face, or a mirror of it. `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str
    path: str


class RemoteFile(Struct, frozen=True, kw_only=True):
    """What was found at an address.

    `url` is where the bytes are fetched from. `digest` is None if it is not stated, `size_bytes` if the server
    does not tell. `version` (an ETag, a commit) changes whenever the bytes do, "" if the server has no such
    thing.
    """

    ref: RemoteRef
    url: str
    digest: Digest | None
    size_bytes: int | None
    version: str = ""


def is_remote(text: str) -> bool:
    """Whether a manifest's text is an address and not a path."""
    return _REMOTE.match(text) is not None


def parse_remote(text: str) -> RemoteRef:
    """The address. InvalidValue for one of another kind, one without a file name, or one that can carry a secret."""
    ref = RemoteRef(text)
    if ref.scheme not in SCHEMES:
        raise InvalidValue(
            f"'{ref.scheme}://' is not a place to fetch weights from",
            hint="use https://, http://, hf:// or s3://",
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or any(character.isspace() or not character.isprintable() for character in text):
        raise InvalidValue("the address cannot be read", hint="write it like https://host/folder/file.gguf")
    if "@" in parts.netloc:
        raise InvalidValue(
            "an address with a user or password in it", hint="take them out: they would be shown"
        )
    if "?" in text or "#" in text:
        raise InvalidValue(
            "an address with '?' or '#' in it",
            hint="take out what follows: it may be a secret, and would be shown",
        )
    if not ref.name:
        raise InvalidValue("the address names no file", hint="end it with the file's name")
    if ref.scheme == "hf":
        parse_hub(ref)
    return ref


def parse_hub(ref: RemoteRef) -> HubFile:
    """Repository, revision (`main` unless given) and path of an `hf://` address. InvalidValue if one is missing."""
    match = _HUB.fullmatch(ref.text.partition("://")[2])
    if match is None or any(part in ("", ".", "..") for part in match["path"].split("/")):
        raise InvalidValue("not a file of a repository", hint=_HUB_HINT)
    return HubFile(match["repo"], unquote(match["revision"] or "main"), unquote(match["path"]))
