"""The reserved names beside a model's own, and the steps that settle them, from any state a killed run may leave."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.names import ModelName, NamePattern
from ollamaops.plan.versions import (
    Step,
    commit,
    discarded_of,
    kept_of,
    left_behind,
    next_of,
    owners_of,
    previous_of,
    revert,
    set_aside,
    sweep,
)

BOT, OLD = ModelName.parse("bot:v1"), ModelName.parse("old:v1")
NEXT, BEFORE, DROPPED = next_of(BOT), previous_of(BOT), discarded_of(BOT)
ONE, TWO, THREE = (kept_of(BOT, number) for number in (1, 2, 3))
State = Mapping[ModelName, str]


def follow(state: State, steps: tuple[Step, ...]) -> dict[ModelName, str]:
    """What the steps make of the host; a step that has nothing to work on fails, or that copies over the last name
    of a content, which no server would ever remove then."""
    now = dict(state)
    for step in steps:
        if step.target is None:
            del now[step.source]
        else:
            replaced = now.pop(step.target, now[step.source])
            assert replaced in now.values()
            now[step.target] = now[step.source]
    return now


class TestNames:
    def test_they_are_the_models_own_with_a_suffix(self) -> None:
        assert [str(name) for name in (NEXT, BEFORE, DROPPED, ONE, kept_of(BOT, 12))] == [
            "bot:v1-ollamaops-next",
            "bot:v1-ollamaops-previous",
            "bot:v1-ollamaops-previous-0",
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
        assert follow(state, commit(BOT, state, keep=keep)) == after

    def test_kept_versions_may_be_left_alone(self) -> None:
        state = {BOT: "a", BEFORE: "b", NEXT: "c", ONE: "d", DROPPED: "e"}
        assert follow(state, commit(BOT, state, keep=None)) == {BOT: "a", ONE: "d"}

    def test_names_are_used_as_the_host_spells_them(self) -> None:
        shouted = ModelName.parse("BOT:V1-OLLAMAOPS-NEXT")
        assert [step.source.display for step in commit(BOT, {BOT: "a", shouted: "b"}, keep=0)] == [
            shouted.display
        ]


class TestMakingRoom:
    @pytest.mark.parametrize(
        ("state", "after"),
        [
            ({}, {}),
            ({BOT: "a"}, {BOT: "a", BEFORE: "a"}),
            ({BOT: "a", BEFORE: "a"}, {BOT: "a", BEFORE: "a"}),
            ({BOT: "b", BEFORE: "a"}, {BOT: "b", BEFORE: "a", DROPPED: "b"}),
            ({BOT: "b", BEFORE: "a", DROPPED: "c"}, {BOT: "b", BEFORE: "a", DROPPED: "b"}),
        ],
    )
    def test_what_is_replaced_has_another_name_by_then(self, state: State, after: State) -> None:
        assert follow(state, set_aside(BOT, state)) == after
        assert set_aside(BOT, after) == ()

    @pytest.mark.parametrize(
        ("state", "after"),
        [
            ({}, {}),
            ({OLD: "a"}, {OLD: "a", BEFORE: "a"}),
            ({OLD: "a", BEFORE: "a"}, {OLD: "a", BEFORE: "a"}),
            ({OLD: "b", BEFORE: "a"}, {OLD: "b", BEFORE: "a"}),
            ({OLD: "a", BOT: "b"}, {OLD: "a", BOT: "b", BEFORE: "b"}),
        ],
    )
    def test_what_has_its_former_name_alone_is_there_under_another_by_then(
        self, state: State, after: State
    ) -> None:
        assert follow(state, set_aside(BOT, state, former=OLD)) == after
        assert set_aside(BOT, after, former=OLD) == ()


SLOTS = (BEFORE, *(kept_of(BOT, number) for number in range(1, 6)))


@given(
    st.dictionaries(st.sampled_from((*SLOTS, DROPPED, NEXT)), st.sampled_from("abcdef")),
    st.sampled_from("abcdef"),
    st.integers(0, 5),
    st.data(),
)
def test_finishing_can_be_cut_off_anywhere_and_begun_again(
    asides: dict[ModelName, str], current: str, keep: int, data: st.DataObject
) -> None:
    """Whatever is aside, the newest versions stay in their order, each once, and none is lost on the way."""
    state = {BOT: current, **asides}
    steps = commit(BOT, state, keep=keep)
    after = follow(state, steps)
    order = [state[slot] for slot in SLOTS if slot in state]
    wanted = [digest for digest in dict.fromkeys(order) if digest != current][:keep]
    assert [after[kept_of(BOT, i + 1)] for i in range(len(wanted))] == wanted
    assert set(after) == {BOT, *(kept_of(BOT, i + 1) for i in range(len(wanted)))}
    cut = data.draw(st.integers(0, len(steps)))
    half = follow(state, steps[:cut])
    assert follow(half, commit(BOT, half, keep=keep)) == after
    assert commit(BOT, after, keep=keep) == ()


class TestUndoing:
    @pytest.mark.parametrize(
        ("state", "after"),
        [
            ({BOT: "bad", BEFORE: "good", NEXT: "x", ONE: "k"}, {BOT: "good", ONE: "k"}),
            ({BEFORE: "good"}, {BOT: "good"}),
            ({BOT: "good", BEFORE: "good"}, {BOT: "good"}),
            ({BOT: "bad", NEXT: "x"}, {BOT: "bad"}),
            ({BOT: "bad"}, {BOT: "bad"}),
            ({BOT: "bad", BEFORE: "good", DROPPED: "bad"}, {BOT: "good"}),
            ({BOT: "bad", BEFORE: "good", DROPPED: "worse", NEXT: "x"}, {BOT: "good"}),
        ],
    )
    def test_what_waits_aside_comes_back(self, state: State, after: State) -> None:
        steps = revert(BOT, state)
        assert follow(state, steps) == after
        for cut in range(len(steps)):
            half = follow(state, steps[:cut])
            assert follow(half, revert(BOT, half)) == after
            assert BOT in half or BOT not in state

    def test_names_are_used_as_the_host_spells_them(self) -> None:
        bot, dropped = ModelName.parse("BOT:V1"), ModelName.parse("BOT:v1-ollamaops-PREVIOUS-0")
        steps = revert(BOT, {bot: "bad", dropped: "worse", BEFORE: "good"})
        assert [step.source.display for step in steps] == [
            *(dropped.display, bot.display, BEFORE.display),  # the way back
            *(BEFORE.display, dropped.display),
        ]


OTHER = ModelName.parse("other")


@given(
    st.dictionaries(
        st.sampled_from((BOT, NEXT, *SLOTS, OTHER, next_of(OTHER), kept_of(OTHER, 1))), st.sampled_from("abc")
    ),
    st.integers(-1, 2),
    st.frozensets(st.sampled_from((BOT, OTHER))),
    st.frozensets(st.sampled_from((BOT, OTHER))),
    st.sampled_from(((), (NamePattern.parse("bot:*"),))),
)
def test_tidying_deletes_nothing_but_names_of_ours_that_no_longer_serve(
    state: dict[ModelName, str],
    keep: int,
    stands: frozenset[ModelName],
    ours: frozenset[ModelName],
    ignored: tuple[NamePattern, ...],
) -> None:
    """No model, nothing beside what is ignored, and no kept version of a model that is somebody else's."""
    models = [a_bot(keep=keep)] if keep >= 0 else []
    steps = sweep(state, models, stands=stands, ours=ours, ignored=ignored)
    gone = set(left_behind(steps))
    assert all(name.is_aside for name in gone)
    assert not ignored or not gone & {NEXT, *SLOTS}
    if OTHER in state and OTHER not in ours:
        assert kept_of(OTHER, 1) not in gone
    after = follow(state, steps)
    assert state.keys() - {NEXT, *SLOTS, next_of(OTHER), kept_of(OTHER, 1)} <= after.keys()


def a_bot(*, keep: int) -> ModelSpec:
    return ModelSpec(name=BOT, source=Pull(ref=BOT), keep_previous=keep)


STATE: State = {BOT: "new", BEFORE: "old", NEXT: "x", ONE: "k"}


class TestTidying:
    def tidied(self, **how: object) -> dict[ModelName, str]:
        given: dict[str, object] = {"models": (), "stands": (), "ours": (), **how}
        return follow(STATE, sweep(STATE, **given))  # type: ignore[arg-type]  # by name

    def test_a_declared_model_that_is_verified_keeps_what_it_should(self) -> None:
        assert self.tidied(models=[a_bot(keep=2)], stands=[BOT]) == {BOT: "new", ONE: "old", TWO: "k"}
        assert self.tidied(models=[a_bot(keep=0)], stands=[BOT]) == {BOT: "new"}

    def test_a_declared_model_that_is_not_verified_gets_its_content_back(self) -> None:
        assert self.tidied(models=[a_bot(keep=1)]) == {BOT: "old", ONE: "k"}

    def test_a_pull_that_is_known_under_another_name_is_settled_where_it_lands(self) -> None:
        mirror = ModelSpec(name=ModelName.parse("mirror"), source=Pull(ref=BOT), keep_previous=1)
        assert self.tidied(models=[mirror], stands=[mirror.name]) == {BOT: "new"}
        assert self.tidied(models=[mirror]) == {BOT: "old", ONE: "k"}

    def test_an_undeclared_model_keeps_its_versions_unless_they_are_ours(self) -> None:
        assert self.tidied() == {BOT: "new", ONE: "k"}
        assert self.tidied(ours=[BOT]) == {BOT: "new"}

    def test_beside_an_ignored_model_nothing_is_touched(self) -> None:
        assert self.tidied(ignored=[NamePattern.parse("bot:*")]) == STATE

    def test_each_name_that_goes_is_told_once(self) -> None:
        steps = sweep(STATE, [a_bot(keep=1)], stands=[BOT], ours=())
        assert sorted(map(str, left_behind((*steps, *steps)))) == sorted(map(str, (NEXT, BEFORE)))

    def test_names_that_are_needed_on_the_way_only_are_not_told(self) -> None:
        state = {BOT: "bad", BEFORE: "good"}
        assert left_behind(sweep(state, [a_bot(keep=1)], stands=(), ours=())) == (BEFORE,)

    def test_what_belongs_to_nobody_goes(self) -> None:
        state = {NEXT: "x", ONE: "k", ModelName.parse("other"): "o"}
        assert follow(state, sweep(state, (), stands=(), ours=())) == {ModelName.parse("other"): "o"}
