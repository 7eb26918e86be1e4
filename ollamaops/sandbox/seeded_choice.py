"""Deterministic chance: the same key always draws the same.

A `SeededChoice` is a value, not a generator. It has no state to advance; one *branches* it by name instead, so
that what one part of an answer draws never shifts what another part draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class SeededChoice:
    """A point in a tree of draws; equal keys draw equally, on every machine and Python version."""

    key: str

    def branch(self, *labels: object) -> SeededChoice:
        """The sub-tree under these labels."""
        return SeededChoice("\x1f".join((self.key, *map(str, labels))))

    def below(self, limit: int) -> int:
        """An integer in `range(limit)`; `limit` must be positive."""
        return self._bits() % limit

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def share(self) -> float:
        """A fraction in `[0, 1)`."""
        return (self._bits() >> 11) / (1 << 53)

    def one_of(self, items: Sequence[Item]) -> Item:
        """One of the items, which must not be empty."""
        return items[self.below(len(items))]

    def _bits(self) -> int:
        digest = hashlib.blake2b(self.key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big")
