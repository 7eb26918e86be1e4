"""What a host looks like right now, as values; and what we remember of it.

observe/host.py fills these from the client, the ledger and the registry; diff.py and planner.py only read them.
The fact a reader would miss: `shown` holds only the models somebody had to look into, because a steady host is
judged by its tags alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import Features
from ollamaops.plan.loaded import Loaded
from ollamaops.state.facts import How


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedModel:
    """One line of `/api/tags`. `digest` is bare hex, as the server writes it."""

    name: ModelName
    digest: str
    size_bytes: int = 0
    modified_at: str = ""
    parent: str = ""
    quantization: str = ""
    is_cloud: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAnswer:
    """What the registry has for one pull: the tags digests that stand for it, its size, its layers.

    `error` says why it is not known; the rest is then empty. `answered` tells a registry that said no from one
    that could not be reached, `gone` that it said that there is no such model. `foreign`: what it has is no model.
    """

    digests: frozenset[str] = frozenset()
    registry_digest: str = ""
    layers: tuple[tuple[Digest, int], ...] = ()
    error: str = ""
    hint: str | None = None
    answered: bool = True
    gone: bool = False
    foreign: bool = False

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes of all layers and the config."""
        return sum(size for _, size in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the ledger knows of one model on one host: what we applied, and which digest came out."""

    fingerprint: str
    digest: str
    how: How
    base_digest: str | None = None
    blobs: tuple[str, ...] = ()
    verified: bool = True

    @property
    def is_ours(self) -> bool:
        """True when we pulled, created or copied it; an adopted model is somebody else's."""
        return self.how != "adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedHost:
    """Everything known of one host that answered. Mappings are keyed by name (case-folded by ModelName).

    `asides` are our own names beside the models, each with its tags digest; they are never among `models`.

    `pushed` maps (model, pushed name) to the digests of what was pushed there last: the one that tags showed, and
    that of the registry manifest if it was seen.

    `at` (aware), `in_use` (what is loaded right now) and `licenses` (texts of what would be pulled) are there for
    guard.py alone, and only when the policy has a rule about them. `loaded` is what `/api/ps` lists; None: nobody
    asked, because nothing is declared resident.
    """

    host: str
    features: Features
    models: Mapping[ModelName, ObservedModel]
    shown: Mapping[ModelName, Contents] = field(default_factory=dict)
    memory: Mapping[ModelName, Memory] = field(default_factory=dict)
    pushed: Mapping[tuple[ModelName, ModelName], frozenset[str]] = field(default_factory=dict)
    asides: Mapping[ModelName, str] = field(default_factory=dict)
    upstream: Mapping[ModelName, RegistryAnswer] = field(default_factory=dict)
    present_blobs: frozenset[Digest] = frozenset()
    loaded: tuple[Loaded, ...] | None = None
    at: datetime | None = None
    in_use: frozenset[ModelName] = frozenset()
    licenses: Mapping[ModelName, tuple[str, ...]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The server's version, as it says it."""
        return str(self.features.version)
