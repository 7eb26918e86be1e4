"""Which part of a large product of cases `make test` runs. The others have the marker `soak`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import TypeVar
from zlib import crc32

import pytest

T = TypeVar("T")


def by_pairs(
    cases: Sequence[T], factors: Callable[[T], tuple[Hashable, ...]], each: Callable[[T], Hashable]
) -> list[object]:
    """All cases. So many are quick that each pair of values of two factors, and each value of `each`, is in one.

    Most mistakes need two things to come together, so the pairs find nearly all that the product finds.
    """
    pairs: list[set[Hashable]] = [{each(case), *combinations(enumerate(factors(case)), 2)} for case in cases]
    missing: set[Hashable] = set().union(*pairs)
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        rows[factors(case)[:2]].append(number)
    quick = set()
    for candidates in [*rows.values(), *([number] for number in range(len(cases)))]:
        best = max(candidates, key=lambda number: len(pairs[number] & missing))
        if pairs[best] & missing:
            quick.add(best)
            missing -= pairs[best]
    return [
        pytest.param(case, id=str(case), marks=() if number in quick else pytest.mark.soak)
        for number, case in enumerate(cases)
    ]


def in_turn(*arguments: str, count: int = 1) -> pytest.MarkDecorator:
    """For tests with many rows: quick is each row with `count` values of the argument, and these take turns.

    For the tests of a whole module there may be several names; each test has one of them, or none and is quick.
    """
    return pytest.mark.in_turn(*arguments, count=count)


def mark_what_is_not_its_turn(items: Iterable[pytest.Item]) -> None:
    """Add the marker `soak` to what `in_turn` leaves out."""
    tests: dict[tuple[pytest.Item | pytest.Collector | None, str], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and _argument(item):
            tests[item.parent, item.originalname].append(item)
    for (_, name), cases in tests.items():
        cases.sort(key=lambda case: tuple(case.callspec.indices.values()))  # whatever order they will run in
        rows: dict[tuple[int, ...], list[pytest.Function]] = defaultdict(list)
        for case in cases:
            rows[_row(case)].append(case)
        for number, row in enumerate(rows.values(), crc32(name.encode())):
            count = _marker(row[0]).kwargs["count"]
            chosen = {(number + each * len(row) // count) % len(row) for each in range(count)}
            for place, case in enumerate(row):
                if place not in chosen:
                    case.add_marker(pytest.mark.soak)


def _marker(case: pytest.Function) -> pytest.Mark:
    return case.get_closest_marker("in_turn") or pytest.mark.in_turn.mark


def _argument(case: pytest.Function) -> str:
    """The argument that takes turns; empty if none does."""
    given = case.callspec.params if hasattr(case, "callspec") else {}
    return next((name for name in _marker(case).args if name in given), "")


def _row(case: pytest.Function) -> tuple[int, ...]:
    """What else the case is made of; the cases of a test share these objects."""
    turning = _argument(case)
    return tuple(id(value) for name, value in case.callspec.params.items() if name != turning)
