"""What a host lists as its models: `/api/tags` → a Listing.

A server may list one name several times, with another digest each time: manifest lists (announced for servers after
0.33) have a child for each runner. Such a model has the digests of all its entries. An entry that cannot be
understood makes only its own model unknown.
"""

from __future__ import annotations

from typing import NamedTuple

from ollamaops.errors import InvalidName, cut_text
from ollamaops.names import ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.features import Features
from ollamaops.ollama.listing import Listing
from ollamaops.ollama.wire import TaggedModel
from ollamaops.plan.observed import join_digests

MOST_OF_NAME = 40


class Seen(NamedTuple):
    """A model as the host lists it: its name as the host spells it, its tags digest (bare hex), its size, when its
    manifest was written, in the server's words; what it was made from, and what it is quantized to.

    `stands_for` is empty, or what a cloud stub sends prompts to. `is_able` False: the server lists what models can
    do, and of this one nothing.
    """

    name: ModelName
    digest: str
    size_bytes: int
    modified_at: str
    parent: str = ""
    quantization: str = ""
    stands_for: str = ""
    is_able: bool = True

    @property
    def is_cloud(self) -> bool:
        return bool(self.stands_for)


def read_tags(client: OllamaClient) -> Listing[Seen]:
    """Every model that has a name requests can use, as one answer of `/api/tags` lists it."""
    folds_case = client.features().folds_case
    entries: dict[str, Seen] = {}
    unreadable: dict[ModelName, str] = {}
    unnamed: list[str] = []
    for tagged in client.list_models():
        try:
            name = ModelName.parse(tagged.name)
        except InvalidName:
            what = f"{cut_text(tagged.name, MOST_OF_NAME)!r} is not a model name" if tagged.name else ""
            unnamed.append(what or getattr(tagged, "why", ""))
            continue
        if isinstance(tagged, TaggedModel):
            seen, before = _seen(name, tagged, client.features()), entries.get(name.full)
            entries[name.full] = _merge(before, seen) if before else seen
        else:
            unreadable[name] = tagged.why
    return Listing(
        ((seen.name, seen) for seen in entries.values() if seen.name not in unreadable),
        folds_case=folds_case,
        unreadable=unreadable,
        unnamed=tuple(unnamed),
    )


def _seen(name: ModelName, tagged: TaggedModel, features: Features) -> Seen:
    return Seen(
        name=name,
        digest=tagged.digest.hex,
        size_bytes=tagged.size_bytes,
        modified_at=tagged.modified_at,
        parent=tagged.parent_model,
        quantization=tagged.quantization_level,
        stands_for=_stands_for(tagged),
        is_able=bool(tagged.capabilities) or not features.lists_capabilities,
    )


def _stands_for(tagged: TaggedModel) -> str:
    if not tagged.is_cloud_stub:
        return ""
    return " at ".join(filter(None, (tagged.remote_model or tagged.name, tagged.remote_host)))


def _merge(one: Seen, other: Seen) -> Seen:
    """Two entries of one name. Entries of one content are one model."""
    digest = join_digests(one.digest, other.digest)
    if digest in (one.digest, other.digest):
        return one if digest == one.digest else other
    return one._replace(
        digest=digest,
        size_bytes=one.size_bytes + other.size_bytes,
        modified_at=max(one.modified_at, other.modified_at),
        stands_for=one.stands_for or other.stands_for,
        is_able=one.is_able or other.is_able,
    )
