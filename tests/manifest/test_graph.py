"""The order of things that need each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.manifest.graph import in_order, source_of, with_needs
from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull, Source
from ollamaops.names import ModelName

Graph = dict[int, list[int]]
GRAPHS: st.SearchStrategy[Graph] = st.dictionaries(
    st.integers(0, 7), st.lists(st.integers(0, 9), max_size=3), max_size=8
)
# what a node needs has a smaller number, so that there are no circles
TREES: st.SearchStrategy[Graph] = GRAPHS.map(
    lambda graph: {node: [other for other in needs if other < node] for node, needs in graph.items()}
)


@pytest.mark.parametrize(
    ("given_order", "needs", "expected"),
    [
        ("", {}, ""),
        ("abc", {}, "abc"),
        ("aba", {}, "ab"),
        ("ab", {"a": "b"}, "ba"),
        ("abc", {"a": "c", "c": "b"}, "bca"),
        ("abcd", {"a": "cd", "b": "c", "c": "d"}, "dcab"),
        ("ab", {"a": "x"}, "ab"),
        ("ab", {"a": "b", "b": "a"}, "ba"),
        ("a", {"a": "a"}, "a"),
    ],
)
def test_what_is_needed_comes_first_and_the_rest_stays_in_order(
    given_order: str, needs: dict[str, str], expected: str
) -> None:
    assert "".join(in_order(given_order, lambda node: needs.get(node, ""))) == expected


@given(GRAPHS, st.data())
def test_every_node_comes_exactly_once_whatever_needs_what(graph: Graph, data: st.DataObject) -> None:
    nodes = data.draw(st.permutations(sorted(graph)))
    assert sorted(in_order(nodes, lambda node: graph.get(node, []))) == sorted(graph)


@given(TREES, st.data())
def test_without_circles_everything_comes_after_what_it_needs(graph: Graph, data: st.DataObject) -> None:
    order = in_order(data.draw(st.permutations(sorted(graph))), graph.__getitem__)
    for node, needs in graph.items():
        assert all(order.index(other) < order.index(node) for other in needs if other in graph)


def test_a_long_chain_does_not_exhaust_the_stack() -> None:
    nodes = range(20_000)
    assert in_order(nodes, lambda node: [node + 1])[0] == nodes[-1]


@given(GRAPHS, st.sets(st.integers(0, 7)))
def test_chosen_nodes_come_with_everything_they_need_and_nothing_else(graph: Graph, chosen: set[int]) -> None:
    kept = with_needs(chosen, lambda node: graph.get(node, []))
    assert chosen <= kept
    for node in kept:
        assert set(graph.get(node, [])) <= kept
    for node in kept - chosen:
        assert any(node in graph.get(other, []) for other in kept - {node})


BASE = ModelName.parse("base")


@pytest.mark.parametrize(
    ("source", "made_from"),
    [(Build(base=BASE), BASE), (Build(), None), (Copy(source=BASE), BASE), (Pull(ref=BASE), None)],
)
def test_what_a_model_is_made_from(source: Source, made_from: ModelName | None) -> None:
    assert source_of(ModelSpec(name=ModelName.parse("bot"), source=source)) == made_from
