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


def find_broken(host: HostSession, desired: DesiredHost, observed: ObservedHost) -> Broken:
    """What is there and broken of the declared models and what they are made from. RemoteError, Cancelled.

    Every model on the host is shown, to know who shares a file, and one declared model of each set of weights loaded.
    """
    wanted = {*names_of_models(desired), *(model.made_from for model in desired.models if model.made_from)}
    found = dict(_look_into_all(host, observed))
    layers = {name: _layers_of(name, what, observed) for name, what in found.items()}
    unopened = {
        name: f"cannot be opened ({what.words})"
        for name, what in found.items()
        if isinstance(what, Unreadable) and what.is_damaged and not what.is_gone
    }
    opened = {name: layers[name] for name, what in found.items() if isinstance(what, Contents)}
    unloaded = _load_each(
        host, {name: files for name, files in opened.items() if name in wanted}, observed.gone
    )
    words = {name: why for name, why in {**unopened, **unloaded}.items() if name in wanted}
    if words:  # what cannot be opened either may share the file, and its own files are not known
        words |= {name: why for name, why in unopened.items() if not layers[name]}
    return Broken(words=words, layers=layers)


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
) -> dict[ModelName, str]:
    """Why models cannot be loaded, as far as their weights are to blame; each set of weights is loaded once."""
    words: dict[ModelName, str] = {}
    seen: set[frozenset[Digest]] = set()
    failed = 0
    for name, weights in sorted(models.items()):
        if weights in seen or weights & gone:
            continue
        seen.add(weights)
        failures = verify_model(host, name, (Expectation(),)).failures
        failed += bool(failures)
        if failures and _BROKEN_WEIGHTS.search(failures[0].message):
            words[name] = f"cannot be loaded ({failures[0].message})"
    if words and failed == len(seen) > 1:
        raise ProtocolError(
            f"{host.name}: none of its models can be loaded",
            host=host.name,
            hint="look at the server's log: not all of them will be broken",
        )
    return words
