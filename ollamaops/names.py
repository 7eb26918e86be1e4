"""Model names, digests and name patterns: parse, complete with defaults, compare as an Ollama server does.

Names are compared with case folding, since servers ≥ 0.5.2 take the spelling of any stored model that differs only in
case. `ModelName` keeps its spelling for people and for older servers, to which it matters (ollama/listing.py); `==`,
`hash` and order ignore it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, total_ordering
from typing import Literal

from msgspec import Struct

from ollamaops.errors import MAX_SERVER_TEXT, InvalidName, InvalidValue

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
DEFAULT_SCHEME = "https"
NEXT, PREVIOUS = "-ollamaops-next", "-ollamaops-previous"  # tags of ours beside a model's own
LEDGER_MODEL = "ollamaops-ledger"  # ours on every host: what is remembered of it there

SourceSuffix = Literal["none", "local", "cloud"]

_NAME_HINT = "write it like llama3.2:3b, me/model:tag or host/namespace/model:tag"
_DIGEST_HINT = "Ollama cannot address a model by digest; pin it with digest: beside the name"
_USER_HINT = "take out what stands before the '@'"
_DIGEST_END = re.compile(r"@sha[0-9]+[:-][^/@]*\Z")
_PATTERN_HINT = "write it like scratch/*, old-bot:* or *:golden"
_ASIDE = re.compile(rf"(?:{NEXT}|{PREVIOUS}(?:-[0-9]{{1,2}})?)\Z", re.IGNORECASE)
_MOST_OF_TAG = 80
# part → (most characters, what the characters after the first may be); Ollama's types/model/name.go
_PARTS = {
    "host": (350, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")),
    "namespace": (80, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")),
    "model": (80, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")),
    "tag": (80, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")),
}


@total_ordering
@dataclass(frozen=True, eq=False)
class ModelName:
    """A complete, valid model name. Equal, hashed and ordered by `key`; `scheme` is never part of that."""

    host: str
    namespace: str
    model: str
    tag: str
    scheme: str = DEFAULT_SCHEME

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """The name in `[[[scheme://]host/]namespace/]model[:tag]`, defaults filled in; else InvalidName."""
        _require_no_user(text, "a model name")
        path, tag = _split_tag(text)
        given = path.rsplit("/", 2)
        host, namespace, model = *(DEFAULT_HOST, DEFAULT_NAMESPACE)[: 3 - len(given)], *given
        scheme = ""
        if "://" in host:
            scheme, _, host = host.partition("://")
            host = host or DEFAULT_HOST
        name = cls(host, namespace, model, DEFAULT_TAG if tag is None else tag, scheme or DEFAULT_SCHEME)
        for part in _PARTS:
            _check_part(text, part, getattr(name, part))
        return name

    @cached_property
    def key(self) -> str:
        """The full name in lower case: equal keys are one model."""
        return self.full.lower()

    @property
    def full(self) -> str:
        """All four parts: `registry.ollama.ai/library/llama3:latest`."""
        return f"{self.host}/{self.repository}:{self.tag}"

    @property
    def display(self) -> str:
        """The short form of `/api/tags`: default host and namespace left out, the tag never."""
        if not self.is_default_registry:
            return self.full
        path = self.model if self.namespace.lower() == DEFAULT_NAMESPACE else self.repository
        return f"{path}:{self.tag}"

    @property
    def repository(self) -> str:
        """`namespace/model`, the path below `/v2/` on a registry."""
        return f"{self.namespace}/{self.model}"

    @property
    def registry_host(self) -> str:
        """The host (and port) of the registry that the name points to."""
        return self.host

    @property
    def is_default_registry(self) -> bool:
        return self.host.lower() == DEFAULT_HOST

    @property
    def source_suffix(self) -> SourceSuffix:
        """`local` for `x:local`, `cloud` for `x:cloud` and `x:…-cloud`: magic on servers ≥ 0.18.0."""
        tag = self.tag.lower()
        if tag == "local":
            return "local"
        return "cloud" if tag == "cloud" or tag.endswith("-cloud") else "none"

    @property
    def is_ledger(self) -> bool:
        """Whether the name is reserved for what we remember of a host: `ollamaops-ledger` with any tag."""
        return self.is_default_registry and self.repository.lower() == f"{DEFAULT_NAMESPACE}/{LEDGER_MODEL}"

    @property
    def is_aside(self) -> bool:
        """Whether the name is reserved for a version of a model that is not the current one; never a model's own."""
        return _ASIDE.search(self.tag) is not None

    def aside(self, suffix: str) -> ModelName:
        """The reserved name with that suffix (NEXT, PREVIOUS, PREVIOUS and `-2`); valid, and this model's alone."""
        kept = self.tag
        if len(kept) + len(suffix) > _MOST_OF_TAG:
            own = hashlib.sha256(kept.lower().encode()).hexdigest()[:8]
            kept = f"{kept[: _MOST_OF_TAG - len(suffix) - len(own) - 1]}-{own}"
        return replace(self, tag=kept + suffix)

    @property
    def base(self) -> ModelName:
        """The name without its magic suffix, as servers ≥ 0.18.0 read it: `x:local` is `x:latest`."""
        if self.source_suffix == "none":
            return self
        return replace(self, tag=self.tag[: -len("-cloud")] if "-" in self.tag else DEFAULT_TAG)

    @property
    def pull_name(self) -> ModelName:
        """The name that pull and delete of servers ≥ 0.18.0 really work on: `x:local` is `x:latest`."""
        return self.base if self.source_suffix == "local" else self

    def __str__(self) -> str:
        return self.display

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, ModelName) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.key < other.key if isinstance(other, ModelName) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)


def _split_tag(text: str) -> tuple[str, str | None]:
    """The path and the tag, which is what follows the last `:` after the last `/`."""
    if text.rfind(":") <= text.rfind("/"):
        return text, None
    path, _, tag = text.rpartition(":")
    return path, tag


def _check_part(text: str, part: str, value: str) -> None:
    limit, allowed = _PARTS[part]
    if len(value) <= limit and allowed.fullmatch(value):
        return
    hint = _DIGEST_HINT if "@" in text else _NAME_HINT
    raise InvalidName(f"{text[:MAX_SERVER_TEXT]!r} is not a model name: {_flaw(part, value)}", hint=hint)


def _require_no_user(text: str, kind: str) -> None:
    shown = hide_credentials(text)
    if shown != text:
        problem = f"{shown[:MAX_SERVER_TEXT]!r} is not {kind}"
        raise InvalidName(f"{problem}: a name holds no user and no password", hint=_USER_HINT)


def hide_credentials(text: str) -> str:
    """The text with `***` for all before the host where a user or password may be: `***@host/team/bot`.

    The digest in `bot@sha256:…`, and an `@` with neither `:` before it nor `/` behind it, mean something else.
    """
    if "@" not in text:
        return text
    digest = _DIGEST_END.search(text)
    bare = text[: digest.start()] if digest else text
    before, sign, behind = bare.rpartition("@")
    if not sign or (":" not in before and "/" not in behind):
        return text
    return f"***@{behind}{text[len(bare) :]}"


def _flaw(part: str, value: str) -> str:
    limit, allowed = _PARTS[part]
    if len(value) > limit:
        return f"the {part} has {len(value)} characters, {limit} are allowed"
    if not value:
        return f"the {part} is empty"
    match = allowed.match(value)
    if match is None and value[0] in "-.:":
        return f"the {part} {value!r} begins with {value[0]!r}"
    wrong = value[match.end() if match else 0]
    if part == "host" and wrong == "/":
        return "it has more parts than host, namespace and model"
    return f"the {part} {value!r} contains {wrong!r}"


class Digest(Struct, frozen=True, order=True):
    """A SHA-256 digest, lower case. `str()` is `sha256:` and 64 hex digits."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest in `sha256:<hex>`, `sha256-<hex>` (a blob's file) or bare hex; else InvalidValue."""
        match = re.fullmatch(r"(?:sha256[:-])?([0-9A-Fa-f]{64})", text)
        if match is None:
            raise InvalidValue(
                f"{text[:MAX_SERVER_TEXT]!r} is not a digest", hint="write sha256: and 64 hex digits"
            )
        return cls(match[1].lower())

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first 12 hex digits, as `ollama list` shows them."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


_PATTERN_PART = re.compile(r"(?:[A-Za-z0-9_.:*?-]|\[!?[A-Za-z0-9_.-]+\])+")


class NamePattern(Struct, frozen=True, order=True):
    """A glob over model names: `llama3`, `old-bot:*`, `scratch/*`, `*:golden`, `hf.co/*/*`.

    * The whole name is matched, case-folded, in its short form (`me/bot:v1`) or its full form.
    * `*`, `?`, `[abc]`, `[!abc]` stand for characters of one part of the name and never cross a `/` or the
      `:` before the tag. So `me/*` is one namespace of the default registry, and `*/*` are the models that
      have a namespace to show.
    * A `*` that is all there is before the tag stands for every model of every registry: `*`, `*:golden`.
    * Without a tag: `latest` when the last part has no wildcard (`llama3` is `llama3:latest`, as for the
      server), else any tag (`scratch/*`).
    * A pattern without any wildcard is a name, and means what the name means.
    """

    text: str
    segments: tuple[str, ...]
    tag: str

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """The pattern in `text`; InvalidName if it cannot match anything."""
        segments, tag = _pattern_parts(text)
        return cls(text, tuple(segment.lower() for segment in segments), tag.lower())

    @property
    def is_literal(self) -> bool:
        """Whether the pattern is the name of one model."""
        return not _has_wildcard(self.text)

    def matches(self, name: ModelName, *, exact_case: bool = False) -> bool:
        """Whether the pattern stands for this model; with `exact_case` as a server up to 0.5.1 compares names."""
        segments, tag = _pattern_parts(self.text) if exact_case else (self.segments, self.tag)
        forms = [form if exact_case else form.lower() for form in (name.display, name.full)]
        if not fnmatchcase(name.tag if exact_case else name.tag.lower(), tag):
            return False
        return segments == ("*",) or any(_path_matches(form, segments) for form in forms)

    def __str__(self) -> str:
        return self.text


def _pattern_parts(text: str) -> tuple[tuple[str, ...], str]:
    """(the parts of the path, the tag) as they are written; InvalidName if the pattern cannot match anything."""
    if not _has_wildcard(text):
        path, tag = _split_tag(ModelName.parse(text).full)
        return tuple(path.split("/")), tag or DEFAULT_TAG
    _require_no_user(text, "a pattern of names")
    path, tag = _split_tag(text)
    segments = path.split("/")
    if tag is None:
        tag = "*" if _has_wildcard(segments[-1]) else DEFAULT_TAG
    _check_pattern(text, [*segments, tag])
    if len(segments) == 2 and segments[0].lower() == DEFAULT_NAMESPACE:
        segments.insert(0, DEFAULT_HOST)  # the short form never shows `library/`
    return tuple(segments), tag


def _path_matches(form: str, segments: tuple[str, ...]) -> bool:
    parts = _split_tag(form)[0].split("/")
    return len(parts) == len(segments) and all(map(fnmatchcase, parts, segments))


def _check_pattern(text: str, parts: list[str]) -> None:
    """Raise InvalidName unless each part (of two to four, the tag last) can match a part of a name."""
    problem = f"{text[:MAX_SERVER_TEXT]!r} is not a pattern of names"
    host_shaped = [part for part in parts[-3:-2] if set(part) & set(".:")]
    if host_shaped:
        raise InvalidName(
            f"{problem}: no namespace contains '.' or ':'",
            hint=f"write {host_shaped[0]}/*/* for all of a registry",
        )
    if len(parts) > 4 or ":" in parts[-2] or not all(_PATTERN_PART.fullmatch(part) for part in parts):
        raise InvalidName(problem, hint=_PATTERN_HINT)


def _has_wildcard(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def new_id() -> str:
    """Twelve random hex digits: how a run is called, or a revision of a shared document."""
    return os.urandom(6).hex()
