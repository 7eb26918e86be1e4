"""How a problem of a manifest is made: with the place of the node it is about, and without any secret.

A value that came from `${env:NAME}` may be a secret, and so may what a parser says about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ollamaops.errors import InvalidName, InvalidValue, Problem
from ollamaops.manifest.document import Node, Scalar
from ollamaops.manifest.types import Place

T = TypeVar("T")


def problem_at(at: Node | Place, message: str, hint: str | None = None) -> Problem:
    """A problem at a node or a place."""
    place = at if isinstance(at, Place) else at.place
    return Problem(place.path, place.line, place.column, message, hint)


def parse_scalar(node: Scalar, parse: Callable[[str], T]) -> T | Problem:
    """`parse(node.text)`, or the problem if it raises InvalidName or InvalidValue."""
    try:
        return parse(node.text)
    except (InvalidName, InvalidValue) as error:
        message = (
            str(error) if node.secret_as is None else f"what {node.shown} stands for cannot be read here"
        )
        return problem_at(node, message, error.hint)
