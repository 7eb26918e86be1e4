"""What a host looks like right now, what is loaded on it, and what we remember of it, as values.

observe/ fills these from the server, the ledger and the registry. `shown` has only the models that had to be looked
into: a steady host is judged by its tags. Models with the same weights share one runner, which `/api/ps` lists under
the name that was loaded first, so a model can be in memory without being listed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.ollama.features import Endpoint, Features
from ollamaops.ollama.listing import Listing
from ollamaops.plan.versions import owners_of
from ollamaops.state.records import ModelRecord

Clocks = Mapping[str, datetime]  # IANA name of a time zone → the moment of planning, as its clocks show it


class ObservedModel(Struct, frozen=True, kw_only=True):
    """One name of `/api/tags`. `digest` is bare hex, as the server writes it; joined by `+` where several entries
    have the name. `is_cloud`: it runs elsewhere; a stub says itself where, which is then in `stands_for`. `is_able`
    False: the server lists what models can do, and of this one nothing, as when it cannot read the weights."""

    name: ModelName
    digest: str
    size_bytes: int = 0
    modified_at: str = ""
    parent: str = ""
    quantization: str = ""
    is_cloud: bool = False
    stands_for: str = ""
    is_able: bool = True

    @property
    def digests(self) -> frozenset[str]:
        """The digests of all its entries; mostly one."""
        return split_digests(self.digest)


def join_digests(*digests: str) -> str:
    """The digests of a name that is listed several times, as one text; the same for the same contents."""
    return "+".join(sorted({each for digest in digests for each in split_digests(digest)}))


def split_digests(digest: str) -> frozenset[str]:
    """The digests in what `join_digests` gives."""
    return frozenset(digest.split("+"))


class RegistryAnswer(Struct, frozen=True, kw_only=True):
    """What the registry has for one pull: the tags digests that stand for it, its size, its layers.

    `error` says why it is not known; the rest is then empty. `answered` tells a registry that said no from one
    that could not be reached, `gone` that it said that there is no such model. `foreign`: what it has is not a model.
    A list of manifests has no sizes, because which of them a host takes is the host's choice.
    """

    digests: frozenset[str] = frozenset()
    registry_digest: str = ""
    layers: tuple[tuple[Digest, int], ...] = ()
    error: str = ""
    hint: str | None = None
    answered: bool = True
    gone: bool = False
    foreign: bool = False
    has_sizes: bool = True

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes of all layers and the config."""
        return sum(size for _, size in self.layers)


class ObservedHost(Struct, frozen=True, kw_only=True):
    """Everything known of one host that answered. Mappings are keyed by name (case-folded by ModelName).

    `unreadable` are models that were looked into and cannot be opened. `layers` maps tags digests to the weights
    layers of that content, as far as they are known; `gone` are those that are not on the host any more.
    `blobs_unseen` says why that could not be found out.

    `set_aside` are our own names beside the models, each with its tags digest; they are never among `models`.

    `pushed` maps (model, pushed name) to the digests of what was pushed there last: the one that tags showed, and
    that of the registry manifest if it was seen.

    `carried_templates` are those in the weights of what would be pulled, `template_changes` the digests, now and
    then, of the templates that make the prompts of what would be pulled anew.
    `lacks` are endpoints that the server does not have, of those that were looked for.
    `several_servers` is what tells that the address is not one server's; it is looked for before changes.

    `clocks`, `in_use` (what is loaded right now) and `licenses` (texts of what would be pulled) are there for
    guard.py alone, and only when the policy has a rule about them. `loaded` is what `/api/ps` lists; None: not
    asked, because nothing is declared resident.
    """

    host: str
    features: Features
    models: Listing[ObservedModel]
    shown: Mapping[ModelName, Contents] = field(default_factory=dict)
    unreadable: Mapping[ModelName, Unreadable] = field(default_factory=dict)
    layers: Mapping[str, tuple[Digest, ...]] = field(default_factory=dict)
    gone: frozenset[Digest] = frozenset()
    blobs_unseen: str = ""
    memory: Mapping[ModelName, ModelRecord] = field(default_factory=dict)
    pushed: Mapping[tuple[ModelName, ModelName], frozenset[str]] = field(default_factory=dict)
    set_aside: Mapping[ModelName, str] = field(default_factory=dict)
    upstream: Mapping[ModelName, RegistryAnswer] = field(default_factory=dict)
    present_blobs: frozenset[Digest] = frozenset()
    carried_templates: Mapping[ModelName, str] = field(default_factory=dict)
    template_changes: Mapping[ModelName, tuple[Digest, Digest]] = field(default_factory=dict)
    loaded: tuple[Loaded, ...] | None = None
    several_servers: str = ""
    clocks: Clocks | None = None
    in_use: frozenset[ModelName] = frozenset()
    licenses: Mapping[ModelName, tuple[str, ...]] = field(default_factory=dict)
    lacks: frozenset[Endpoint] = frozenset()

    @property
    def version(self) -> str:
        """The server's version, as it says it."""
        return str(self.features.version)

    @property
    def digests(self) -> Listing[str]:
        """The tags digest of every name on the host, ours beside the models included."""
        own = ((name, model.digest) for name, model in self.models.items())
        return Listing((*own, *self.set_aside.items()), folds_case=self.features.folds_case)


FOREVER_S = math.inf
_YEAR_S = 365 * 86400.0
_LONG_S = 50 * _YEAR_S  # servers write "for ever" as a date 292 years ahead


class Loaded(Struct, frozen=True, kw_only=True):
    """One line of `/api/ps`. `digest` is the tags digest (bare hex) of what was loaded, which may be replaced by now.

    `size_bytes` is all that it takes, `vram_bytes` what of it is on a GPU. `stays_s` is how long it stays if it is
    not used. `also` are models that would use this very runner, although it is listed under another name.
    """

    name: ModelName
    digest: str
    size_bytes: int = 0
    vram_bytes: int = 0
    context_length: int = 0
    expires_at: str = ""
    stays_s: float = FOREVER_S
    also: frozenset[ModelName] = frozenset()

    @property
    def is_forever(self) -> bool:
        """Whether it stays until it is evicted."""
        return self.stays_s == FOREVER_S

    def serves(self, name: ModelName, digest: str) -> bool:
        """Whether the model of that name and tags digest is in memory by this."""
        return self.digest == digest or name in self.also


class HostLoaded(Struct, frozen=True, kw_only=True):
    """What is in memory on one host. `digests` are the tags digests of its models, `declared` the `resident` of
    those that declare one."""

    host: str
    loaded: tuple[Loaded, ...] = ()
    digests: Mapping[ModelName, str] = field(default_factory=dict)
    declared: Mapping[ModelName, bool | float] = field(default_factory=dict)

    def resident_of(self, one: Loaded) -> bool | float | None:
        """What is declared for it: of its own name, else the longest of the names that share it; None: nothing."""
        own = self.declared.get(one.name)
        if own is not None:
            return own
        shared = [resident for name in one.also if (resident := self.declared.get(name)) is not None]
        return max(shared, key=lambda resident: FOREVER_S if resident is True else resident, default=None)

    def state_of(self, one: Loaded) -> Literal["current", "stale", "deleted"]:
        """Whether what was loaded is what the name stands for now; without the name, whether another has it."""
        now = self.digests.get(one.name)
        if now == one.digest or (now is None and one.digest in self.digests.values()):
            return "current"
        return "deleted" if now is None else "stale"

    @property
    def absent(self) -> tuple[ModelName, ...]:
        """What is declared resident and is not in memory, not even an older content of it."""
        wanted = (name for name, resident in self.declared.items() if resident)
        return tuple(name for name in wanted if not any(self._is_of(one, name) for one in self.loaded))

    def _is_of(self, one: Loaded, name: ModelName) -> bool:
        return one.name == name or one.serves(name, self.digests.get(name, ""))


def under_own_names(
    loaded: Iterable[Loaded], digests: Mapping[ModelName, str], declared: Collection[ModelName]
) -> tuple[Loaded, ...]:
    """What is loaded, each with every name of `digests` that has its content.

    What was loaded while it waited aside is listed by servers under that name for as long as it is in memory; here
    it goes by the name that it waited for, else by one that is `declared`, as long as one of them has the content.
    """
    found = []
    for one in loaded:
        same = sorted(name for name, digest in digests.items() if digest == one.digest)
        by_rank = sorted(same, key=lambda name: name not in declared)
        aside = one.name.is_aside
        name = owners_of(same).get(one.name, by_rank[0]) if aside and same else one.name
        found.append(replace(one, name=name, also=(one.also | frozenset(same)) - {name}))
    return tuple(found)


def read_stay(expires_at: str, now: datetime) -> float:
    """Seconds until `expires_at` (RFC 3339, as ps writes it), FOREVER_S when that is decades away; 0 when it is over.

    Text that cannot be read counts as for ever.
    """
    try:
        left_s = (datetime.fromisoformat(expires_at) - now).total_seconds()
    except (ValueError, TypeError):
        return FOREVER_S
    return FOREVER_S if left_s > _LONG_S else max(left_s, 0.0)
