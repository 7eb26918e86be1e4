"""The order of models: what a model is made from comes before it.

Pure graph work over names. A cycle is reported by manifest/check.py with its places; here it only has to end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def in_order(nodes: Sequence[Node], needs: Callable[[Node], Iterable[Node]]) -> tuple[Node, ...]:
    """`nodes`, each after those of them that it needs; otherwise as given.

    What is not in `nodes` is left out, what comes twice comes once. In a cycle the one given first comes last.
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
