"""What answers tell of the number of servers that gave them."""

from __future__ import annotations

import pytest

from ollamaops.plan.one_server import (
    Row,
    Rows,
    contradiction,
    hosts_of_one_server,
    suspects,
    told_by_listings,
    told_by_versions,
)


def listed(*rows: str) -> Rows:
    """`name@time` or `name:digest@time` for each line."""
    parts = (row.partition("@") for row in rows)
    return frozenset(Row(name.partition(":")[0], name.partition(":")[2], time) for name, _, time in parts)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ("", None),
        ("AAA", None),
        ("AB", None),
        ("AAB", None),
        ("ABBB", None),
        ("ABA", None),  # a list may miss a model once
        ("AABAA", None),
        ("ABC", None),
        ("ABAB", ("A", "B")),
        ("AABBABB", ("A", "B")),
        ("ABCABC", ("A", "B")),
        ("CABAB", ("A", "B")),
    ],
)
def test_only_answers_that_take_turns_tell_of_several_servers(
    answers: str, found: tuple[str, str] | None
) -> None:
    assert contradiction(answers) == found


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (listed("a@1"), listed("a@1"), ""),
        (listed("a@1"), listed("a@1", "b@1"), "'b' is listed by one answer and not by the next"),
        (listed("a@1"), listed("a@2"), "'a' is another one in each answer"),
        (listed("a:x@1", "b@1"), listed("a:y@1", "b@1"), "'a' is another one in each answer"),
    ],
)
def test_the_difference_between_two_lists_is_named(one: Rows, other: Rows, told: str) -> None:
    assert told_by_listings([one, other, one, other]) == told
    assert told_by_listings([one, other, other]) == ""


def test_two_versions_in_turn_are_named() -> None:
    assert told_by_versions(["0.5.7", "0.6.8"] * 2) == "it is Ollama 0.5.7 and Ollama 0.6.8 in turn"
    assert told_by_versions(["0.5.7", "0.6.8", "0.6.8"]) == ""


def test_hosts_with_an_address_or_a_line_in_common_may_be_one_server() -> None:
    listings = {"a": listed("m@1"), "b": listed("m@1"), "c": listed(), "d": listed(), "e": listed("m@2")}
    assert suspects(listings, {"c": ["::1 80"], "d": ["::1 80", "10.0.0.1 80"]}) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ({"a": listed(), "b": listed()}, {"a": listed("m@1"), "b": listed("m@1")}, (("a", "b"),)),
        ({"a": listed(), "b": listed()}, {"a": listed("m@1"), "b": listed("m@2")}, ()),
        # two hosts from one disk image list the same from the start
        ({"a": listed("m@1"), "b": listed("m@1")}, {"a": listed("m@1"), "b": listed("m@1")}, ()),
        ({"a": listed(), "b": listed()}, {"a": listed("m@1")}, ()),
    ],
)
def test_what_is_new_on_two_hosts_at_the_same_moment_makes_them_one(
    before: dict[str, Rows], now: dict[str, Rows], found: tuple[tuple[str, ...], ...]
) -> None:
    assert hosts_of_one_server(before, now) == found
