"""The rules between the entries of models: what may not be declared together, and what is probably a mistake.

Two entries that contradict each other are fine as long as no host gets both, so the rules are applied to each set of
models that meet on a host. Messages show names as they are written, because `${env:NAME}` may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ollamaops.errors import Problem, did_you_mean
from ollamaops.manifest.check import name_at
from ollamaops.manifest.document import Node, Scalar, Table
from ollamaops.manifest.graph import source_of
from ollamaops.manifest.hosts import is_size, labels_of, matches
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import AbsentSpec, Copy, HostSpec, ModelSpec, Pull
from ollamaops.names import ModelName, NamePattern

_NAMING = ("name", "pull", "from", "copy", "moved_from")
# types/model/capability.go of Ollama 0.33
CAPABILITIES = frozenset(
    ("completion", "tools", "insert", "vision", "embedding", "thinking", "image", "audio")
)
_ORDERING = frozenset((">", ">=", "<", "<="))


class Written(dict[str, str]):
    """Names that came from `${env:}` → how the manifest writes them. `say` gives the form that a message may show."""

    @classmethod
    def of(cls, entries: Iterable[Table]) -> Written:
        """The names in the models' entries."""
        nodes = [node for entry in entries for node in _naming_nodes(entry)]
        texts = [node for node in nodes if isinstance(node, Scalar) and node.secret_as is not None]
        found = cls((node.text, node.shown) for node in texts)
        found.update((name.key, node.shown) for node in texts if (name := name_at(node)) is not None)
        return found

    def say(self, name: ModelName | NamePattern) -> str:
        return self.get(name.key if isinstance(name, ModelName) else name.text, str(name))


def _naming_nodes(entry: Table) -> Iterator[Node | None]:
    yield from map(entry.get, _NAMING)
    push = entry.get("push")
    yield push.get("name") if isinstance(push, Table) else push


def check_models(
    models: Sequence[ModelSpec], absent: Sequence[AbsentSpec], hosts: Sequence[HostSpec], written: Written
) -> Iterator[Problem]:
    """Contradictions between entries on some host. A problem of many hosts is reported once, for the first."""
    seen: set[tuple[str, str]] = set()
    for here, gone, host in _meetings(models, absent, hosts):
        for problem in _check_meeting(here, gone, host, written):
            if (key := (problem.place, problem.message.replace(host.name, "*"))) not in seen:
                seen.add(key)
                yield problem


def _check_meeting(
    models: Sequence[ModelSpec], absent: Sequence[AbsentSpec], host: HostSpec, written: Written
) -> Iterator[Problem]:
    yield from _check_duplicates(models, host, written)
    yield from _check_circles(models, written)
    yield from _check_needs(models, absent, written)
    yield from _check_moves(models, written)
    yield from _check_pins(models, written)
    yield from _check_pushes(models, written)


def _meetings(
    models: Sequence[ModelSpec], absent: Sequence[AbsentSpec], hosts: Sequence[HostSpec]
) -> Iterable[tuple[list[ModelSpec], list[AbsentSpec], HostSpec]]:
    """Each different set of entries that some host gets, with the first host that gets it."""
    sets: dict[tuple[int, ...], tuple[list[ModelSpec], list[AbsentSpec], HostSpec]] = {}
    for host in hosts:
        labels = labels_of(host)
        here = [model for model in models if matches(model.where, labels)]
        gone = [entry for entry in absent if matches(entry.where, labels)]
        sets.setdefault(tuple(map(id, (*here, *gone))), (here, gone, host))
    return sets.values()


def _check_duplicates(models: Sequence[ModelSpec], host: HostSpec, written: Written) -> Iterator[Problem]:
    first: dict[str, ModelSpec] = {}
    for model in models:
        other = first.setdefault(model.name.key, model)
        if other is not model:
            what = f"'{written.say(model.name)}' is declared twice for host {host.name}"
            message = f"{what}: the first one is at {other.place}"
            yield problem_at(
                model.place, message, "keep one of them, or give each a where: so that no host gets both"
            )


def _check_circles(models: Sequence[ModelSpec], written: Written) -> Iterator[Problem]:
    by_name = {model.name.key: model for model in models}
    done: set[str] = set()
    for model in models:
        path: list[str] = []
        key = model.name.key
        while key in by_name and key not in done and key not in path:
            path.append(key)
            needed = source_of(by_name[key])
            key = needed.key if needed else ""
        if key in path:
            circle = [by_name[step] for step in path[path.index(key) :]]
            names = " → ".join(written.say(one.name) for one in [*circle, circle[0]])
            message = f"models are made from each other in a cycle: {names}"
            yield problem_at(circle[0].place, message, "let one of them be pulled, or made from another base")
        done.update(path)


def _check_needs(
    models: Sequence[ModelSpec], absent: Sequence[AbsentSpec], written: Written
) -> Iterator[Problem]:
    """Nothing that is declared, or that a declared model is made from, may be removed or renamed away."""
    say = written.say
    declared = {model.name.key: model for model in models}
    needed = {name.key: (name, model) for model in models if (name := source_of(model)) is not None}
    for entry in absent:
        gone = f"'{say(entry.pattern)}' is declared absent, but"
        for model in models:
            if entry.pattern.matches(model.name):
                message = f"{gone} '{say(model.name)}' is declared at {model.place}"
                yield problem_at(entry.place, message, "keep one of the two")
        for name, model in needed.values():
            if name.key not in declared and entry.pattern.matches(name):
                message = f"{gone} '{say(model.name)}' at {model.place} is made from it"
                yield problem_at(entry.place, message, "to only rename it, use moved_from:")


def _check_moves(models: Sequence[ModelSpec], written: Written) -> Iterator[Problem]:
    """A name that a model gives up is free, and only one model can have taken its content along."""
    say = written.say
    declared = {model.name.key: model for model in models}
    needed = {name.key: model for model in models if (name := source_of(model)) is not None}
    movers: dict[str, ModelSpec] = {}
    for model in models:
        if model.moved_from is None:
            continue
        old = model.moved_from
        was = f"'{say(model.name)}' was '{say(old)}'"
        if (other := declared.get(old.key)) is not None and other is not model:
            message = f"{was}, which is itself declared at {other.place}"
            yield problem_at(
                model.place, message, "an old name cannot stay: leave out moved_from:, or that entry"
            )
        elif (user := needed.get(old.key)) is not None:
            message = f"{was}, but '{say(user.name)}' at {user.place} is made from that"
            yield problem_at(model.place, message, "name the new one there")
        elif (first := movers.setdefault(old.key, model)) is not model:
            message = f"{was}, and so was '{say(first.name)}' at {first.place}"
            yield problem_at(model.place, message, "let one of them be a copy of the other")


def _check_pins(models: Sequence[ModelSpec], written: Written) -> Iterator[Problem]:
    """A registry has one content under a name, so what is pulled from there has one digest."""
    pinned: dict[str, ModelSpec] = {}
    for model in models:
        if not isinstance(model.source, Pull) or model.digest is None:
            continue
        first = pinned.setdefault(model.source.ref.key, model)
        if first.digest != model.digest:
            ref, other = written.say(model.source.ref), written.say(first.name)
            message = f"'{ref}' has another digest for '{other}' at {first.place}: it is pulled once for both"
            yield problem_at(model.place, message, "keep one of the two digests")


def _check_pushes(models: Sequence[ModelSpec], written: Written) -> Iterator[Problem]:
    """What is pushed has its target's name on the host too, and whoever pulls that name gets it."""
    say = written.say
    contents = _contents(models)
    first: dict[str, ModelSpec] = {}
    for model in models:
        if model.push is None:
            continue
        what = f"'{say(model.name)}' is pushed to '{say(model.push)}'"
        content, other = contents[model.name.key], first.setdefault(model.push.key, model)
        if contents[other.name.key] != content:
            message = f"{what}, and so is '{say(other.name)}' at {other.place}"
            yield problem_at(model.place, message, "push one of them to another name")
        if contents.get(model.push.key, _pulled(model.push)) == content:
            continue
        for user, use in _uses(models, model.push):
            message = f"{what}, but '{say(user.name)}' at {user.place} {use}"
            yield problem_at(model.place, message, "push it to another name")


def _uses(models: Sequence[ModelSpec], name: ModelName) -> Iterator[tuple[ModelSpec, str]]:
    """The models that rely on what `name` is without the push, each with the words for a message."""
    for model in models:
        if model.name == name:
            yield model, "is another model of that name"
        elif isinstance(model.source, Pull) and model.source.ref == name:
            yield model, "is pulled from there"
        elif source_of(model) == name:
            yield model, "is made from that"


def _contents(models: Sequence[ModelSpec]) -> dict[str, str]:
    """The key of each model → a word for its content: equal words are surely one content."""
    declared = {model.name.key: model for model in models}
    return {model.name.key: _content(model, declared) for model in models}


def _content(model: ModelSpec, declared: Mapping[str, ModelSpec]) -> str:
    """Copies are followed to what they are copies of; in a cycle, back to where they began."""
    passed = {model.name.key}
    while isinstance(model.source, Copy):
        source = model.source.source
        if source.key not in declared:
            return _pulled(source)
        if source.key in passed:
            break
        passed.add(source.key)
        model = declared[source.key]
    return _pulled(model.source.ref) if isinstance(model.source, Pull) else model.name.key


def _pulled(ref: ModelName) -> str:
    return f"pulled from {ref.key}"


def warn_of_models(
    models: Sequence[ModelSpec], hosts: Sequence[HostSpec], written: Written
) -> Iterator[Problem]:
    """What is legal and probably a mistake: a model for no host, and values that no host has, or not yet."""
    for model in models:
        if not any(matches(model.where, labels_of(host)) for host in hosts):
            name = written.say(model.name)
            message = f"'{name}' matches no host: none has the labels that its where: asks for"
            yield problem_at(model.place, message, "correct where:, or the labels of a host")
    yield from _warn_of_labels(models, hosts)
    yield from _warn_of_capabilities(models)


def _warn_of_labels(models: Sequence[ModelSpec], hosts: Sequence[HostSpec]) -> Iterator[Problem]:
    """A label that is not a size never meets `vram>=24GiB`."""
    asked = {
        condition.key
        for model in models
        for condition in model.where
        if condition.operator in _ORDERING and is_size(condition.values[0])
    }
    for host in hosts:
        for key in sorted(asked & labels_of(host).keys()):
            if not is_size(labels_of(host)[key]):
                what = f"label '{key}' of host '{host.name}' is not a number or a size"
                message = f"{what}, but where: compares it with one"
                yield problem_at(host.place, message, "write it like 24GiB")


def _warn_of_capabilities(models: Sequence[ModelSpec]) -> Iterator[Problem]:
    """A capability that no server up to 0.33 lists; a newer one may."""
    for model in models:
        for expectation in model.expect:
            listed = expectation.get("capabilities")
            for name in listed if isinstance(listed, list) else ():
                if name not in CAPABILITIES:
                    message = f"expect: no Ollama up to 0.33 lists the capability '{name}'"
                    yield problem_at(model.place, message + did_you_mean(str(name), CAPABILITIES))
