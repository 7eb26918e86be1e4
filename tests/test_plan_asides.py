"""The reserved names beside a model's own, and the steps that settle them, from any state a killed run may leave."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.names import ModelName, NamePattern
from ollamaops.plan.asides import (
    Step,
    finish,
    kept_of,
    left_behind,
    next_of,
    owners_of,
    previous_of,
    tidy,
    undo,
)

BOT = ModelName.parse("bot:v1")
NEXT, BEFORE = next_of(BOT), previous_of(BOT)
ONE, TWO, THREE = (kept_of(BOT, number) for number in (1, 2, 3))
State = Mapping[ModelName, str]


def follow(state: State, steps: tuple[Step, ...]) -> dict[ModelName, str]:
    """What the steps make of the host; a step that has nothing to work on fails."""
    now = dict(state)
    for step in steps:
        if step.target is None:
            del now[step.source]
        else:
            now[step.target] = now[step.source]
    return now


class TestNames:
    def test_they_are_the_models_own_with_a_suffix(self) -> None:
        assert [str(name) for name in (NEXT, BEFORE, ONE, kept_of(BOT, 12))] == [
            "bot:v1-ollamaops-next",
            "bot:v1-ollamaops-previous",
            "bot:v1-ollamaops-previous-1",
            "bot:v1-ollamaops-previous-12",
        ]

    @pytest.mark.parametrize("text", ["bot", "me/bot:v1", "hf.co/a/b:Q4_K_M", "x:local", "x:20b-cloud"])
    def test_they_are_valid_known_as_ours_and_never_magic(self, text: str) -> None:
        name = ModelName.parse(text)
        for aside in (next_of(name), previous_of(name), kept_of(name, 1), kept_of(name, 20)):
            assert ModelName.parse(aside.full) == aside
            assert aside.is_aside
            assert aside.source_suffix == "none"
        assert not name.is_aside

    @pytest.mark.parametrize(
        "tag", ["next", "x-ollamaops", "ollamaops-previous-", "x-ollamaops-previous-123"]
    )
    def test_what_only_looks_like_one_is_a_model(self, tag: str) -> None:
        assert not ModelName.parse(f"bot:{tag}").is_aside

    def test_long_tags_that_differ_at_their_end_do_not_share_a_name(self) -> None:
        one, other = (ModelName.parse("bot:" + "x" * 79 + end) for end in "ab")
        for of in (next_of, previous_of):
            assert of(one) != of(other)
            assert len(of(one).tag) == 80
            assert of(one) == of(ModelName.parse(one.full.upper()))

    def test_each_belongs_to_one_model(self) -> None:
        owners = owners_of([BOT, ModelName.parse("me/bot"), NEXT])
        assert {owners[NEXT], owners[BEFORE], owners[kept_of(BOT, 20)]} == {BOT}
        assert owners[next_of(ModelName.parse("me/bot"))] == ModelName.parse("me/bot")

    def test_what_is_to_be_kept_is_not_left_behind(self) -> None:
        assert left_behind([NEXT, ONE, TWO, BEFORE], {BOT: 1}) == (NEXT, TWO, BEFORE)
        assert left_behind([ONE], {}) == (ONE,)


class TestFinishing:
    @pytest.mark.parametrize(
        ("keep", "state", "after"),
        [
            (0, {BOT: "new", BEFORE: "old", NEXT: "new"}, {BOT: "new"}),
            (1, {BOT: "new", BEFORE: "old"}, {BOT: "new", ONE: "old"}),
            (1, {BOT: "new", BEFORE: "old", ONE: "older"}, {BOT: "new", ONE: "old"}),
            (2, {BOT: "new", BEFORE: "old", ONE: "older"}, {BOT: "new", ONE: "old", TWO: "older"}),
            (2, {BOT: "new", BEFORE: "new", ONE: "older"}, {BOT: "new", ONE: "older"}),
            (3, {BOT: "a", ONE: "a", TWO: "b", THREE: "c"}, {BOT: "a", ONE: "b", TWO: "c"}),
            (3, {BOT: "b", BEFORE: "a", ONE: "b", TWO: "c"}, {BOT: "b", ONE: "a", TWO: "c"}),
            (1, {BOT: "a", ONE: "b", TWO: "c"}, {BOT: "a", ONE: "b"}),
            (2, {BOT: "a", TWO: "c"}, {BOT: "a", ONE: "c"}),
            (1, {BOT: "a"}, {BOT: "a"}),
            (0, {ONE: "b", NEXT: "c"}, {}),
        ],
    )
    def test_the_newest_versions_stay(self, keep: int, state: State, after: State) -> None:
        assert follow(state, finish(BOT, state, keep=keep)) == after

    def test_kept_versions_may_be_left_alone(self) -> None:
        state = {BOT: "a", BEFORE: "b", NEXT: "c", ONE: "d"}
        assert follow(state, finish(BOT, state, keep=None)) == {BOT: "a", ONE: "d"}

    def test_names_are_used_as_the_host_spells_them(self) -> None:
        shouted = ModelName.parse("BOT:V1-OLLAMAOPS-NEXT")
        assert [step.source.display for step in finish(BOT, {BOT: "a", shouted: "b"}, keep=0)] == [
            shouted.display
        ]


SLOTS = (BEFORE, *(kept_of(BOT, number) for number in range(1, 6)))


@given(
    st.dictionaries(st.sampled_from(SLOTS), st.sampled_from("abcdef")),
    st.sampled_from("abcdef"),
    st.integers(0, 5),
    st.data(),
)
def test_finishing_can_be_cut_off_anywhere_and_begun_again(
    asides: dict[ModelName, str], current: str, keep: int, data: st.DataObject
) -> None:
    """Whatever is aside, the newest versions stay in their order, each once, and none is lost on the way."""
    state = {BOT: current, **asides}
    steps = finish(BOT, state, keep=keep)
    after = follow(state, steps)
    order = [state[slot] for slot in SLOTS if slot in state]
    wanted = [digest for digest in dict.fromkeys(order) if digest != current][:keep]
    assert [after[kept_of(BOT, i + 1)] for i in range(len(wanted))] == wanted
    assert set(after) == {BOT, *(kept_of(BOT, i + 1) for i in range(len(wanted)))}
    cut = data.draw(st.integers(0, len(steps)))
    half = follow(state, steps[:cut])
    assert follow(half, finish(BOT, half, keep=keep)) == after
    assert finish(BOT, after, keep=keep) == ()


class TestUndoing:
    @pytest.mark.parametrize(
        ("state", "after"),
        [
            ({BOT: "bad", BEFORE: "good", NEXT: "x", ONE: "k"}, {BOT: "good", ONE: "k"}),
            ({BEFORE: "good"}, {BOT: "good"}),
            ({BOT: "good", BEFORE: "good"}, {BOT: "good"}),
            ({BOT: "bad", NEXT: "x"}, {BOT: "bad"}),
            ({BOT: "bad"}, {BOT: "bad"}),
        ],
    )
    def test_what_waits_aside_comes_back(self, state: State, after: State) -> None:
        steps = undo(BOT, state)
        assert follow(state, steps) == after
        for cut in range(len(steps)):
            half = follow(state, steps[:cut])
            assert follow(half, undo(BOT, half)) == after


STATE: State = {BOT: "new", BEFORE: "old", NEXT: "x", ONE: "k"}


class TestTidying:
    def tidied(self, **how: object) -> dict[ModelName, str]:
        given: dict[str, object] = {"declared": {}, "proven": (), "ours": (), **how}
        return follow(STATE, tidy(STATE, **given))  # type: ignore[arg-type]  # by name

    def test_a_declared_model_that_is_proven_keeps_what_it_should(self) -> None:
        assert self.tidied(declared={BOT: 2}, proven=[BOT]) == {BOT: "new", ONE: "old", TWO: "k"}
        assert self.tidied(declared={BOT: 0}, proven=[BOT]) == {BOT: "new"}

    def test_a_declared_model_that_is_not_proven_gets_its_content_back(self) -> None:
        assert self.tidied(declared={BOT: 1}) == {BOT: "old", ONE: "k"}

    def test_an_undeclared_model_keeps_its_versions_unless_they_are_ours(self) -> None:
        assert self.tidied() == {BOT: "new", ONE: "k"}
        assert self.tidied(ours=[BOT]) == {BOT: "new"}

    def test_beside_an_ignored_model_nothing_is_touched(self) -> None:
        assert self.tidied(ignored=[NamePattern.parse("bot:*")]) == STATE

    def test_what_belongs_to_nobody_goes(self) -> None:
        state = {NEXT: "x", ONE: "k", ModelName.parse("other"): "o"}
        assert follow(state, tidy(state, declared={}, proven=(), ours=())) == {ModelName.parse("other"): "o"}
