"""Names of which a host's list does not say enough to act on: (what is not known, the way out).

Nothing is planned for a model that has to do with such a name, and nothing is written where another name stands that
differs from it only in case: up to 0.4.2 servers refuse that, up to 0.5.1 they write over the other one, and later
ones over either.
"""

from __future__ import annotations

from collections.abc import Iterator

from ollamaops.manifest.types import Pull
from ollamaops.names import ModelName
from ollamaops.ollama.features import Endpoint
from ollamaops.plan.actions import CopyModel, CreateModel, HostPlan, PullModel
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.observed import ObservedHost

Obstacle = tuple[str, str]

_KEEP_ONE = "keep one: remove the file of the other below manifests/ on the server"


def find_unclear(model: DesiredModel, observed: ObservedHost, *, is_pushed: bool) -> Obstacle | None:
    """Why nothing can be said of the model; None if that can be."""
    for name in _names_of(model, is_pushed=is_pushed):
        unclear = _find_unclear_name(name, observed)
        if unclear is not None:
            what, way_out = unclear
            return what if name == model.name else f"needs '{name}': {what}", way_out
    own = observed.models.get(model.name)
    if model.recipe is not None and own is not None and len(own.digests) > 1:
        return (
            f"listed with {len(own.digests)} contents, and only one of them can be shown",
            "declare it as a pull, or delete it: it is then made again",
        )
    return None


def _names_of(model: DesiredModel, *, is_pushed: bool) -> Iterator[ModelName]:
    """Every name on the host that the model is made from, or that is written for it."""
    spec = model.spec
    yield spec.name
    if isinstance(spec.source, Pull):
        yield spec.source.ref
    yield from (name for name in (model.made_from, spec.moved_from) if name)
    if spec.push and is_pushed:
        yield spec.push


def _find_unclear_name(name: ModelName, observed: ObservedHost) -> Obstacle | None:
    if name in observed.models.unreadable:
        return (
            f"its entry in the host's list of models cannot be read: {observed.models.unreadable[name]}",
            "it is left alone: look at what stands before the server, or delete the model there",
        )
    own = observed.models.get(name)
    contents = {other.digest for other in observed.models.namesakes(name)}
    if own is not None and observed.features.folds_case and contents - {own.digest}:
        return (
            f"{_spellings(name, observed)}, with different contents, and the server answers with either",
            _KEEP_ONE,
        )
    return None


def find_obstacle(
    name: ModelName, observed: ObservedHost, endpoint: Endpoint | None = None
) -> Obstacle | None:
    """Why nothing can be written under the name: the server has no such endpoint, or it would harm another model."""
    if endpoint in observed.lacks:
        return (
            f"this server has no /api/{endpoint}, so it only pulls and deletes models",
            "leave this host out with where:, or run Ollama there",
        )
    others = observed.models.namesakes(name)
    if not others:
        return None
    if observed.features.folds_case:
        return f"{_spellings(name, observed)}, and the server writes to either", _KEEP_ONE
    return (
        f"'{others[0].name}' is there: to this server another model, beside which it makes no '{name}'",
        f"write the name as the host has it, delete '{others[0].name}' there, or upgrade the server to 0.5.2",
    )


def endpoints_of(plan: HostPlan, observed: ObservedHost) -> frozenset[Endpoint]:
    """The endpoints that the plan needs and that a server may be without."""
    found: set[Endpoint] = set()
    for action in plan.actions:
        match action:
            case CreateModel():
                found.add("create")
            case CopyModel():
                found.add("copy")
            case PullModel(pin=pin, verify=verify, keep=keep) if pin or verify or keep:
                found |= {"copy"} if action.model in observed.models else set()
            case _:
                pass
    return frozenset(found)


def _spellings(name: ModelName, observed: ObservedHost) -> str:
    names = [observed.models[name].name, *(other.name for other in observed.models.namesakes(name))]
    return "in the host's store as " + " and ".join(sorted(f"'{each.full}'" for each in names))
