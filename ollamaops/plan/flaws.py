"""Which models cannot work because a file of them on the host is gone or broken.

A server goes on listing such a model, and may show it from a cache (0.23.2 on), so `/api/tags` and memory prove
nothing about it. Whether a weights layer is there is asked layer by layer; what only reading it would tell is not
claimed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from ollamaops.manifest.types import Pull
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Unreadable
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.observed import ObservedHost, ObservedModel


class Flaw(Struct, frozen=True):
    """Why a model cannot work, in words. `is_gone`: files are missing, and making the model brings them back; a file
    that is there and broken has to be removed first."""

    words: str
    is_gone: bool


class Broken(Struct, frozen=True, kw_only=True):
    """What is broken on a host: `words` says how for each model that has a broken file; `gone` are those of which a
    file is missing, which come back without a deletion. `layers` has the weights layers of every name that is there,
    kept versions included."""

    words: Mapping[ModelName, str] = field(default_factory=dict)
    gone: Mapping[ModelName, Unreadable] = field(default_factory=dict)
    layers: Mapping[ModelName, frozenset[Digest]] = field(default_factory=dict)

    def sharers(self) -> tuple[frozenset[ModelName], frozenset[Digest]]:
        """Every name that has to go for the broken files to go, and those files as far as they are known."""
        files = frozenset(layer for name in self.words for layer in self.layers.get(name, ()))
        sharing = {name for name, layers in self.layers.items() if layers & files}
        return frozenset(sharing | self.words.keys()), files


def layers_of(own: ObservedModel, observed: ObservedHost) -> tuple[Digest, ...] | None:
    """The weights layers of the model, as far as the server prints them; None: not looked into yet."""
    return () if own.is_cloud else observed.layers.get(own.digest)


def layers_to_ask(desired: DesiredHost, observed: ObservedHost) -> frozenset[Digest]:
    """Every weights layer of what is declared, and of what that is made from, each once."""
    models = (observed.models.get(name) for name in names_of_models(desired))
    return frozenset(layer for own in models if own for layer in layers_of(own, observed) or ())


def names_of_models(desired: DesiredHost) -> Iterator[ModelName]:
    """Every name under which a declared model, or what it is made from, may be on the host."""
    for model in desired.models:
        former, source = model.spec.moved_from, model.spec.source
        yield model.name
        yield from (former,) if former else ()
        yield from (source.ref,) if isinstance(source, Pull) and source.ref != model.name else ()


def reason_unreadable(own: ObservedModel, observed: ObservedHost) -> Unreadable | None:
    """Why the model, or another name of the same content, cannot be opened; None: it can, or nobody tried."""
    found = (why for name, why in observed.unreadable.items() if observed.models[name].digest == own.digest)
    return next(found, None)


def find_flaw(own: ObservedModel | None, observed: ObservedHost) -> Flaw | None:
    """What is known to be broken in the model; None also when nothing is known."""
    if own is None or own.is_cloud:
        return None
    gone = [layer.short for layer in layers_of(own, observed) or () if layer in observed.gone]
    if gone:
        return Flaw(f"its weights are gone from the host ({', '.join(gone)})", is_gone=True)
    unreadable = reason_unreadable(own, observed)
    if unreadable is not None and unreadable.is_damaged:
        return Flaw(f"it cannot be opened ({unreadable.words})", is_gone=unreadable.is_gone)
    return None
