"""What a server lists, by name, compared as that server compares names: up to 0.5.1 upper and lower case matter.

A store that came from elsewhere may have two names that differ only in case on any server. Servers from 0.5.2 on take
them for one model and answer with either, so nobody can tell which of them a request will reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from ollamaops.names import ModelName

T = TypeVar("T")
Other = TypeVar("Other")


class Listing(Mapping[ModelName, T]):
    """One answer of `/api/tags`. Of names that are one model to the server, the first in order of spelling counts.

    `unreadable` are the models that are listed, but not in a way that can be understood, each with the reason;
    `unnamed` such reasons of entries without a name that a request could use.
    """

    def __init__(
        self,
        entries: Iterable[tuple[ModelName, T]] = (),
        *,
        folds_case: bool = True,
        unreadable: Mapping[ModelName, str] | None = None,
        unnamed: tuple[str, ...] = (),
    ) -> None:
        self._folds_case = folds_case
        self._by_spelling = {name.full: (name, value) for name, value in entries}
        self._by_key: dict[str, tuple[ModelName, T]] = {}
        for entry in self._by_spelling.values():
            first = self._by_key.setdefault(self._key(entry[0]), entry)
            if entry[0].full < first[0].full:
                self._by_key[self._key(entry[0])] = entry
        self.unreadable = unreadable or {}
        self.unnamed = unnamed

    def _key(self, name: ModelName) -> str:
        return name.key if self._folds_case else name.full

    def __getitem__(self, name: ModelName) -> T:
        return self._by_key[self._key(name)][1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, ModelName) and self._key(name) in self._by_key

    def __iter__(self) -> Iterator[ModelName]:
        return (name for name, _ in self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"Listing({dict(self)!r})"

    def select(self, is_wanted: Callable[[ModelName], bool]) -> Listing[T]:
        """Without the names that are not wanted."""
        return Listing(
            (entry for entry in self._by_spelling.values() if is_wanted(entry[0])),
            folds_case=self._folds_case,
            unreadable={name: why for name, why in self.unreadable.items() if is_wanted(name)},
            unnamed=self.unnamed,
        )

    def map(self, change: Callable[[T], Other]) -> Listing[Other]:
        """The same names with other values."""
        return Listing(
            ((name, change(value)) for name, value in self._by_spelling.values()),
            folds_case=self._folds_case,
            unreadable=self.unreadable,
            unnamed=self.unnamed,
        )

    def namesakes(self, name: ModelName) -> tuple[T, ...]:
        """What is listed under names that differ from `name`, or from the one that counts for it, only in case."""
        own = self._by_key.get(self._key(name))
        like = (entry for entry in self._by_spelling.values() if entry[0] == name)
        return tuple(entry[1] for entry in like if entry is not own)
