"""Where the checks of a manifest put what they find: every Problem, with the place of the node it is about.

Decides how a Problem is worded for a value that must not be shown. The fact a reader would miss: a value that
came from `${env:NAME}` may be a secret, so no message that holds it may pass; `read` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ollamaops.errors import InvalidName, InvalidValue, Problem
from ollamaops.manifest.document import Node, Scalar
from ollamaops.manifest.types import Place

T = TypeVar("T")


class Findings:
    """Collects problems. One instance goes through all the checks of one load."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, at: Node | Place, message: str, hint: str | None = None) -> None:
        """One more problem, at a node or a place."""
        place = at if isinstance(at, Place) else at.place
        self.problems.append(Problem(place.path, place.line, place.column, message, hint))

    def extend(self, problems: Iterable[Problem]) -> None:
        self.problems.extend(problems)

    def read(self, node: Scalar, parse: Callable[[str], T]) -> T | None:
        """`parse(node.text)`, or None and a problem if it raises InvalidName or InvalidValue."""
        try:
            return parse(node.text)
        except (InvalidName, InvalidValue) as error:
            message = (
                str(error) if node.secret_as is None else f"what {node.shown} stands for cannot be read here"
            )
            self.add(node, message, error.hint)
            return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?`, or nothing when no known word is near."""
    from difflib import get_close_matches

    folded = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f": did you mean '{folded[near[0]]}'?" if near else ""
