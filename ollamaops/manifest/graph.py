"""Which model is made from which, and the order that follows: what a model is made from comes before it.

A circle is reported by crosscheck.py with its places; the functions here only have to end when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar, assert_never

from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull
from ollamaops.names import ModelName

Node = TypeVar("Node", bound=Hashable)


def in_order(nodes: Sequence[Node], needs: Callable[[Node], Iterable[Node]]) -> tuple[Node, ...]:
    """`nodes`, each after those of them that it needs; otherwise as given.

    What is not in `nodes` is left out, what comes twice comes once. In a cycle the first one given comes last.
    """
    known = set(nodes)
    done: dict[Node, None] = {}
    begun: set[Node] = set()

    def open_needs(node: Node) -> Iterator[Node]:
        return (other for other in needs(node) if other in known)

    for start in nodes:
        path = [(start, open_needs(start))] if start not in begun else []
        begun.add(start)
        while path:
            node, waiting = path[-1]
            following = next((other for other in waiting if other not in begun), None)
            if following is None:
                path.pop()
                done[node] = None
            else:
                begun.add(following)
                path.append((following, open_needs(following)))
    return tuple(done)


def with_needs(chosen: Iterable[Node], needs: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """`chosen` and everything that they need, directly or through others."""
    found: set[Node] = set()
    waiting = list(chosen)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(needs(node))
    return found


def source_of(spec: ModelSpec) -> ModelName | None:
    """The model that `spec` is built from or copied from, None for a pull and for plain weights."""
    match spec.source:
        case Build(base=base):
            return base
        case Copy(source=source):
            return source
        case Pull():
            return None
        case _:
            assert_never(spec.source)


def cloud_models(specs: Iterable[ModelSpec]) -> frozenset[ModelName]:
    """Models that are declared to run on ollama.com: by their own name, or by that of what they are pulled, copied or
    made from. A model that only turns out to be such a stub on a host is none of them."""
    origins = {
        spec.name: spec.source.ref if isinstance(spec.source, Pull) else source_of(spec) for spec in specs
    }
    return frozenset(
        name
        for name in origins
        if any(each.source_suffix == "cloud" for each in with_needs([name], partial(_origin, origins)))
    )


def _origin(origins: Mapping[ModelName, ModelName | None], name: ModelName) -> tuple[ModelName, ...]:
    origin = origins.get(name)
    return (origin,) if origin else ()


def base_is_insecure(spec: ModelSpec, source: ModelName) -> bool:
    """Whether the base is pulled over plain http. Ollama's own registry never is: `insecure` then means a push."""
    return spec.insecure and not source.is_default_registry
