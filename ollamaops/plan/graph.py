"""The order of models: what a model is made from comes before it.

Pure graph work over names. A cycle is reported by manifest/check.py with its places; here it only has to end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def in_order(nodes: Sequence[Node], needs: Callable[[Node], Iterable[Node]]) -> tuple[Node, ...]:
    """`nodes`, each after those of them that it needs; otherwise as given. Members of a cycle keep their order."""
    known = set(nodes)
    done: dict[Node, None] = {}
    open_now: set[Node] = set()

    for start in nodes:
        stack: list[tuple[Node, bool]] = [(start, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                open_now.discard(node)
                done.setdefault(node)
            elif node not in done and node not in open_now:
                open_now.add(node)
                stack.append((node, True))
                wanted = [other for other in needs(node) if other in known and other not in done]
                stack.extend((other, False) for other in reversed(wanted) if other not in open_now)
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
