"""A live host as the manifest that describes it, so that planning with that manifest finds nothing to do.

A model is written as derived from another one only if comparing it with that declaration finds no difference. Servers
do not say which of several names with one content was there first, so memory is asked, then the registry, then the
times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec import Struct, field

from ollamaops.errors import InvalidName
from ollamaops.manifest.graph import source_of
from ollamaops.manifest.parameters import same_parameter
from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull, Source
from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.plan.comparison import InSync
from ollamaops.plan.desired import build_model
from ollamaops.plan.diff import compare_build
from ollamaops.plan.observed import ObservedHost
from ollamaops.settings import Message, ParameterValue


class Imported(Struct, frozen=True, kw_only=True):
    """What to write: entries in an order in which they can be made, and what had to be left out, with the reason."""

    specs: tuple[ModelSpec, ...] = ()
    left_out: Mapping[ModelName, str] = field(default_factory=dict)


def import_host(observed: ObservedHost) -> Imported:
    """The entries for a host, all of whose models have been shown; `names_in_doubt` tells what else to ask."""
    left_out = {
        name: "servers from 0.18.0 on cannot address it, so no manifest may name it"
        for name in observed.models
        if name.source_suffix == "local"
    }
    left_out |= {name: f"its entry cannot be read: {why}" for name, why in observed.models.unreadable.items()}
    left_out |= dict.fromkeys(_hidden_stubs(observed), "a cloud stub, which its name does not say")
    names = sorted(name for name in observed.models if name not in left_out)
    parents = {name: _parent_of(name, observed, names) for name in names}
    originals = _originals(names, observed, parents)
    specs = [
        ModelSpec(name=name, source=_source_of(name, observed, parents[name], originals)) for name in names
    ]
    return Imported(specs=_without_circles(specs), left_out=left_out)


def _hidden_stubs(observed: ObservedHost) -> set[ModelName]:
    """Cloud stubs that no entry can mean: not by their own name, nor as a copy of one that says what it is."""
    stubs = {name: model.digest for name, model in observed.models.items() if model.is_cloud}
    open_ones = {digest for name, digest in stubs.items() if name.source_suffix == "cloud"}
    return {name for name, digest in stubs.items() if digest not in open_ones}


def names_in_doubt(observed: ObservedHost) -> tuple[ModelName, ...]:
    """The names that share their content with others, none of which is remembered as pulled.

    What a registry has for them, as `observed.upstream`, tells originals from copies.
    """
    sharing: dict[str, list[ModelName]] = {}
    for name, model in sorted(observed.models.items()):
        sharing.setdefault(model.digest, []).append(name)
    doubtful = (
        names
        for names in sharing.values()
        if len(names) > 1 and not any(_is_remembered(name, observed) for name in names)
    )
    return tuple(name for names in doubtful for name in names)


def _parent_of(name: ModelName, observed: ObservedHost, names: list[ModelName]) -> ModelName | None:
    contents = observed.shown.get(name)
    text = observed.models[name].parent or (contents.parent if contents else "")
    try:
        parent = ModelName.parse(text)
    except InvalidName:
        return None
    return next((known for known in names if known == parent and known != name), None)


def _originals(
    names: list[ModelName], observed: ObservedHost, parents: Mapping[ModelName, ModelName | None]
) -> dict[str, ModelName]:
    """For every digest the model that others with it are copies of.

    One whose name says that it runs in the cloud, else one that we pulled, else one that a registry has, else the
    oldest; then one with children, the shortest name.
    """
    used = set(parents.values())

    def order(name: ModelName) -> tuple[object, ...]:
        return (
            name.source_suffix != "cloud",
            not _is_remembered(name, observed),
            _strangeness(name, observed),
            _moment(observed.models[name].modified_at),
            name not in used,
            len(name.display),
            name,
        )

    best: dict[str, ModelName] = {}
    for name in sorted(names, key=order):
        best.setdefault(observed.models[name].digest, name)
    return best


def _is_remembered(name: ModelName, observed: ObservedHost) -> bool:
    """Whether we pulled what is there under this name."""
    memory = observed.memory.get(name)
    return memory is not None and memory.how == "pulled" and memory.digest == observed.models[name].digest


def _strangeness(name: ModelName, observed: ObservedHost) -> int:
    """How surely a registry does not have this: 0 has it, 1 has something of that name, 2 not known, 3 has not."""
    upstream = observed.upstream.get(name)
    if upstream is None:
        return 2
    if upstream.error:
        return 3 if upstream.gone else 2
    return 0 if observed.models[name].digest in upstream.digests else 1


def _moment(text: str) -> float:
    """Seconds since 1970 of a time that a server writes; what cannot be read was never."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return float("inf")


def _source_of(
    name: ModelName, observed: ObservedHost, parent: ModelName | None, originals: Mapping[str, ModelName]
) -> Source:
    original = originals[observed.models[name].digest]
    if original != name:
        return Copy(source=original)
    own = observed.shown.get(name)
    base = observed.shown.get(parent) if parent else None
    if parent is not None and own is not None and base is not None:
        build = _derive(own, base, parent)
        if build is not None and _is_exact(name, build, observed, own, base):
            return build
    return Pull(ref=name)


def _without_circles(specs: Iterable[ModelSpec]) -> tuple[ModelSpec, ...]:
    """The same entries; of models that were made from each other in turn one is written by its name alone."""
    kept: dict[ModelName, ModelSpec] = {spec.name: spec for spec in specs}
    for name in kept:
        step, passed = source_of(kept[name]), {name}
        while step is not None and step not in passed:
            passed.add(step)
            step = source_of(kept[step])
        if step == name:
            kept[name] = ModelSpec(name=name, source=Pull(ref=name))
    return tuple(kept.values())


def _derive(own: Contents, base: Contents, parent: ModelName) -> Build | None:
    """How `own` is made from its parent; None when that cannot be said with `from`."""
    licenses = _added_licenses(own.license_text, base.license_text)
    if licenses is None:
        return None
    return Build(
        base=parent,
        template=own.template if own.template != base.template else None,
        system=own.system if own.system != base.system else None,
        parameters=_changed_parameters(own.parameters, base.parameters),
        messages=tuple(Message(*pair) for pair in own.messages) if own.messages != base.messages else (),
        licenses=licenses,
        renderer=own.renderer if own.renderer != base.renderer else None,
        parser=own.parser if own.parser != base.parser else None,
        requires=own.requires if own.requires != base.requires else None,
    )


def _added_licenses(own: str, base: str) -> tuple[str, ...] | None:
    if own == base:
        return ()
    prefix = f"{base}\n" if base else ""
    return (own.removeprefix(prefix),) if own.startswith(prefix) else None


def _changed_parameters(
    own: Mapping[str, ParameterValue], base: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    changed = {
        name: _as_written(value)
        for name, value in own.items()
        if name not in base or not same_parameter(name, value, base[name])
    }
    return changed | {name: None for name, value in base.items() if name not in own and value is not None}


def _as_written(value: ParameterValue) -> ParameterValue:
    """Servers print every number as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_exact(name: ModelName, build: Build, observed: ObservedHost, own: Contents, base: Contents) -> bool:
    desired = build_model(ModelSpec(name=name, source=build), {})
    return isinstance(compare_build(observed.host, desired, own, base, observed.features), InSync)
