"""Model names as a server reads them: parts, defaults, validity, spelling on disk, and source suffixes.

Up to 0.4.2 names are exact paths. Later each part of a name takes the spelling of any stored model that has
that part in another case. From 0.18.0 on `x:local` means `x`, and `x:cloud` runs on ollama.com.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, order=True, slots=True)
class Name:
    """Four parts, not checked; `is_valid` tells."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def is_valid(self) -> bool:
        return (
            _HOST.fullmatch(self.host) is not None
            and _NAMESPACE.fullmatch(self.namespace) is not None
            and _MODEL.fullmatch(self.model) is not None
            and _MODEL.fullmatch(self.tag) is not None
        )

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """How tags, ps and show print it: defaults left out, the tag never."""
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def path(self) -> str:
        """Where the manifest is, below `manifests/`."""
        return f"{self.host}/{self.namespace}/{self.model}/{self.tag}"

    @property
    def folded(self) -> str:
        """Equal for names that differ only in case."""
        return self.full.lower()


def parse_name(text: str) -> Name:
    """The name in `[[[scheme://]host/]namespace/]model[:tag]` with defaults; perhaps not a valid one."""
    path, tag = text, DEFAULT_TAG
    if ":" in text[text.rfind("/") + 1 :]:
        path, _, tag = text.rpartition(":")
    parts = path.rsplit("/", 2)
    host, namespace, model = (DEFAULT_HOST, DEFAULT_NAMESPACE, "")[: 3 - len(parts)] + tuple(parts)
    return Name(host.partition("://")[2] if "://" in host else host, namespace, model, tag)


def adopt_spelling(name: Name, stored: Iterable[Name]) -> Name:
    """`name` with each part spelled as in a stored name that has it in another case (servers ≥ 0.5.2)."""
    parts = [name.host, name.namespace, name.model, name.tag]
    others = [(other.host, other.namespace, other.model, other.tag) for other in sorted(stored)]
    for index, part in enumerate(parts):
        for other in others:
            if other[index].lower() == part.lower():
                parts[index] = other[index]
    return Name(*parts)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a name in a request points to after its source suffix is taken off (servers ≥ 0.18.0)."""

    name: str
    """The name to look up here."""
    source: str = ""
    """`local`, `cloud` or nothing."""

    @property
    def is_cloud(self) -> bool:
        return self.source == "cloud"

    @property
    def is_local(self) -> bool:
        return self.source == "local"


class BothSuffixes(ValueError):
    """`x:cloud:local`: the server refuses to choose."""


def strip_source(text: str) -> Reference:
    """Take `:local`, `:cloud` or `-cloud` off a name. BothSuffixes when two of them are there."""
    base, suffix = _split_source(text)
    if not suffix:
        return Reference(text)
    if _split_source(base)[1]:
        raise BothSuffixes(f'use either :local or :cloud, not both: "{text}"')
    return Reference(base, suffix)


def pull_target(text: str) -> str:
    """The name that pull and delete use for `text`: `x:local` is `x`, a cloud model keeps its own tag."""
    reference = strip_source(text)
    if not reference.is_cloud:
        return reference.name
    has_tag = ":" in reference.name[reference.name.rfind("/") + 1 :]
    return f"{reference.name}{'-cloud' if has_tag else ':cloud'}"


def _split_source(text: str) -> tuple[str, str]:
    head, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, ""
    lowered = tag.lower()
    if lowered in {"local", "cloud"}:
        return head, lowered
    if lowered.endswith("-cloud") and len(tag) > len("-cloud"):
        return text[: -len("-cloud")], "cloud"
    return text, ""
