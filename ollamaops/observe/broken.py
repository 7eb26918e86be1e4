"""Finding the models whose files are on a host and broken, for a repair: look into all, load what is declared.

Servers tell of a broken file only where they read it: its header when they show or make a model, the rest when they
load one. A model that is in memory already is not read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from ollamaops.errors import ProtocolError
from ollamaops.names import Digest, ModelName
from ollamaops.observe.contents import read_contents
from ollamaops.observe.session import HostSession
from ollamaops.observe.verify import verify_model
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.expectations import Expectation
from ollamaops.plan.flaws import Broken, names_of_models
from ollamaops.plan.observed import ObservedHost

# what servers and llama.cpp say of weights that are cut or altered, not of those that they are too old for
_BROKEN_WEIGHTS: Final = re.compile(
    r"unable to load model|corrupt|incomplete|not within the file bounds|unexpected EOF"
    r"|(?:bad|invalid)(?: file)? magic|does not support (?:generate|chat|embed)",
    re.IGNORECASE,
)

# that a model which is listed and shown has a file less
_GONE: Final = re.compile(r"^model .* not found", re.IGNORECASE)


def find_broken(host: HostSession, desired: DesiredHost, observed: ObservedHost) -> Broken:
    """What is there and broken of the declared models and what they are made from. RemoteError, Cancelled.

    Every model on the host is shown, to know who shares a file, and each that is declared or made from is loaded.
    """
    wanted = {*names_of_models(desired), *(model.made_from for model in desired.models if model.made_from)}
    found = dict(_look_into_all(host, observed))
    layers = {name: _layers_of(name, what, observed) for name, what in found.items()}
    unopened = {
        name: what for name, what in found.items() if isinstance(what, Unreadable) and what.is_damaged
    }
    loadable = {
        name: layers[name]
        for name, what in found.items()
        if name in wanted and isinstance(what, Contents) and _is_loadable(what)
    }
    damage = {**unopened, **_load_each(host, loadable, observed.gone)}
    words = {
        name: _words_of(what, name in unopened)
        for name, what in damage.items()
        if not what.is_gone and name in wanted
    }
    if words:  # what cannot be opened either may share the file, and its own files are not known
        unknown = (name for name, what in unopened.items() if not (what.is_gone or layers[name]))
        words |= {name: _words_of(unopened[name], True) for name in unknown}
    return Broken(
        words=words, gone={name: what for name, what in damage.items() if what.is_gone}, layers=layers
    )


def _words_of(what: Unreadable, is_unopened: bool) -> str:
    return f"cannot be {'opened' if is_unopened else 'loaded'} ({what.words})"


def _look_into_all(
    host: HostSession, observed: ObservedHost
) -> Iterator[tuple[ModelName, Contents | Unreadable]]:
    """What is in every name on the host, kept versions included; what runs in a cloud has no files."""
    cloud = {name for name, model in observed.models.items() if model.is_cloud}
    for name, digest in observed.digests.items():
        if name not in cloud:
            show = partial(host.client.show, name)
            yield name, read_contents(partial(host.with_retries, show), digest, observed.features)


def _layers_of(name: ModelName, what: Contents | Unreadable, observed: ObservedHost) -> frozenset[Digest]:
    """Its weights layers: as they are shown, else as they were when it could be."""
    if isinstance(what, Contents):
        return frozenset(what.weights_layers)
    return frozenset(observed.layers.get(observed.digests[name], ()))


def _is_loadable(what: Contents) -> bool:
    """Whether the server loads it for words or vectors, as far as it says; a broken one may be said to do nothing."""
    return not what.capabilities or not {"completion", "embedding"}.isdisjoint(what.capabilities)


def _load_each(
    host: HostSession, models: Mapping[ModelName, frozenset[Digest]], gone: frozenset[Digest]
) -> dict[ModelName, Unreadable]:
    """Which models cannot be loaded, as far as their files are to blame. None is asked whose weights are known to be
    broken or gone."""
    found: dict[ModelName, Unreadable] = {}
    broken: set[Digest] = set(gone)
    loaded = False
    for name, weights in sorted(models.items()):
        if weights & broken:
            continue
        failures = verify_model(host, name, (Expectation(),)).failures
        loaded |= not failures
        said = failures[0].message if failures else ""
        if _GONE.search(said):  # a small file: its weights are asked for themselves
            found[name] = Unreadable(said, is_damaged=True, is_gone=True)
        elif _BROKEN_WEIGHTS.search(said):
            found[name] = Unreadable(said, is_damaged=True)
            broken |= weights
    if len(found) > 1 and not loaded:
        raise ProtocolError(
            f"{host.name}: none of its models can be loaded",
            host=host.name,
            hint="look at the server's log: not all of them will be broken",
        )
    return found
