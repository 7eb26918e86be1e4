"""A ledger on a host keeps what it is told although others write to it too, and its lock has one owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import ConnectionLost, InvalidRequest, RemoteError, StateError
from ollamaops.state.ledger_document import parse_document
from ollamaops.state.locks import LockOwner
from ollamaops.state.records import LedgerStore, ModelRecord
from ollamaops.state.server_ledger import ATTEMPTS, LOOKS_FOR_MISSING, PAUSE_S, SETTLE_S, ServerLedger

HOST = "http://gpu-1"
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
REVISIONS = count()


def a_record(*models: str, digest: str = "d") -> dict[str, ModelRecord]:
    return {model: ModelRecord(how="pulled", digest=digest) for model in models}


def an_owner(token: str, *, ends_in_s: int = 900) -> LockOwner:
    end = (NOW + timedelta(seconds=ends_in_s)).isoformat()
    return LockOwner(token=token, who=f"{token}@ci", process=7, since="10:00", expires_at=end)


@dataclass
class TextInMemory:
    """A text in memory. `before_write` is called once, right before the next write: somebody else is quicker."""

    host: str = "gpu-1"
    text: str = ""
    reads: int = 0
    writes: int = 0
    before_write: Callable[[], None] | None = None
    after_write: Callable[[], None] | None = None
    failures: list[RemoteError] = field(default_factory=list)

    def digest(self) -> str | None:
        return self.text or None

    def read(self) -> str | None:
        self.reads += 1
        return self.text

    def write(self, text: str) -> None:
        hook, self.before_write = self.before_write, None
        if hook:
            hook()
        if self.failures:
            raise self.failures.pop(0)
        self.writes += 1
        self.text = text
        hook, self.after_write = self.after_write, None
        if hook:
            hook()


def a_ledger(store: TextInMemory, *, writing: bool = True, pauses: list[float] | None = None) -> ServerLedger:
    return ServerLedger(
        store,
        writing=writing,
        now=lambda: NOW,
        pause=(pauses if pauses is not None else []).append,
        new_revision=lambda: f"r{next(REVISIONS)}",
    )


def stored(store: TextInMemory) -> list[str]:
    """The models that the text on the host knows."""
    return sorted(parse_document(store.text).models)


# a store of records


def test_what_is_told_is_there_for_the_next_controller_under_its_own_name_of_the_host() -> None:
    store = TextInMemory()
    ledger: LedgerStore = a_ledger(store)
    ledger.remember(HOST, a_record("a"))
    ledger.remember(HOST, a_record("b", "c"))
    ledger.remember_push(HOST, "a", "reg/a", ["d1", "d2"])
    ledger.forget(HOST, "b")
    other = a_ledger(store, writing=False)
    assert other.load("http://gpu-1.vpn") == a_record("a", "c")
    assert other.load_pushes("x") == {("a", "reg/a"): ("d1", "d2")}


def test_an_empty_host_knows_nothing_and_reading_writes_nothing() -> None:
    store = TextInMemory()
    assert a_ledger(store).load(HOST) == {}
    assert a_ledger(store).load_pushes(HOST) == {}
    assert (store.reads, store.writes) == (0, 0)


def test_a_store_that_may_not_write_learns_for_itself_alone() -> None:
    store = TextInMemory()
    a_ledger(store).remember(HOST, a_record("a"))
    reader = a_ledger(store, writing=False)
    reader.remember(HOST, a_record("b"))
    reader.forget(HOST, "a")
    assert list(reader.load(HOST)) == ["b"]
    reader.settle()
    assert stored(store) == ["a"]


def test_what_is_known_already_is_not_written_again_and_not_read_again() -> None:
    store = TextInMemory()
    ledger = a_ledger(store)
    ledger.remember(HOST, a_record("a"))
    for _ in range(3):
        ledger.remember(HOST, a_record("a"))
        ledger.forget(HOST, "never-known")
        ledger.load(HOST)
    ledger.settle()
    assert (store.writes, store.reads) == (1, 1)


def test_many_facts_are_one_write() -> None:
    store = TextInMemory()
    a_ledger(store).remember(HOST, a_record(*(f"m{number}" for number in range(50))))
    assert (store.writes, len(stored(store))) == (1, 50)


# other writers


def test_a_write_that_came_between_look_and_write_is_put_back_by_its_writer() -> None:
    store = TextInMemory()
    ours, theirs = a_ledger(store), a_ledger(store)
    store.before_write = lambda: theirs.remember(HOST, a_record("theirs"))
    ours.remember(HOST, a_record("ours"))
    assert stored(store) == ["ours"]
    theirs.settle()
    assert stored(store) == ["ours", "theirs"]
    ours.settle()
    assert list(ours.load(HOST)) == list(theirs.load(HOST)) == ["ours", "theirs"]


def test_a_write_that_is_overwritten_at_once_is_noticed_and_done_again() -> None:
    store = TextInMemory()
    ours, theirs = a_ledger(store), a_ledger(store)
    theirs.remember(HOST, a_record("theirs"))
    stale = store.text

    def overwrite() -> None:
        store.text = stale

    store.after_write = overwrite
    ours.remember(HOST, a_record("ours"))
    assert stored(store) == ["ours", "theirs"]


def test_before_its_next_write_a_store_notices_what_was_lost() -> None:
    store = TextInMemory()
    ours = a_ledger(store)
    ours.remember(HOST, a_record("one"))
    store.text = ""  # somebody deleted the model
    assert list(ours.load(HOST)) == ["one"]
    ours.remember(HOST, a_record("two"))
    assert stored(store) == ["one", "two"]


class Flickering(TextInMemory):
    """Lists and shows nothing the first few times, as a server does while somebody rewrites the model."""

    blinks = 0

    def digest(self) -> str | None:
        return super().digest() if self._is_seen() else None

    def read(self) -> str | None:
        return super().read() if self._is_seen() else None

    def _is_seen(self) -> bool:
        self.blinks -= 1
        return self.blinks < 0


@pytest.mark.parametrize("blinks", range(LOOKS_FOR_MISSING))
def test_a_ledger_that_is_missing_for_a_moment_loses_nothing(blinks: int) -> None:
    store = Flickering()
    ledger = a_ledger(store)
    ledger.remember(HOST, a_record("a"))
    a_ledger(store).remember(HOST, a_record("theirs"))
    store.blinks = blinks
    ledger.remember(HOST, a_record("b"))
    assert stored(store) == ["a", "b", "theirs"]
    store.blinks = min(blinks, 1)
    assert sorted(a_ledger(store).load(HOST)) == ["a", "b", "theirs"]


CHANGES = st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("xyz"), st.booleans()), max_size=12)


@given(CHANGES)
def test_two_controllers_that_interrupt_each_other_lose_nothing(
    changes: list[tuple[str, str, bool]],
) -> None:
    """Each writes models of its own; where the flag is set, the other one writes in between."""
    store = TextInMemory()
    ledgers = {who: a_ledger(store) for who in "AB"}
    expected: dict[str, str] = {}

    def write(who: str, model: str, digest: str) -> None:
        ledgers[who].remember(HOST, a_record(f"{who}-{model}", digest=digest))
        expected[f"{who}-{model}"] = digest

    for number, (who, model, is_interrupted) in enumerate(changes):
        if is_interrupted:
            other = "B" if who == "A" else "A"

            def interrupt(other: str = other, number: int = number) -> None:
                write(other, "w", f"between {number}")

            store.before_write = interrupt
        write(who, model, f"d{number}")
        store.before_write = None
    for ledger in (*ledgers.values(), *ledgers.values()):
        ledger.settle()
    found = a_ledger(store).load(HOST)
    assert {model: record.digest for model, record in found.items()} == expected


def test_a_host_that_is_always_written_to_by_somebody_else_is_an_error_in_numbers() -> None:
    store = TextInMemory()
    a_ledger(store).remember(HOST, a_record("theirs"))
    stale = store.text

    class Contested(TextInMemory):
        def write(self, text: str) -> None:
            super().write(text)
            self.text = stale

    contested = Contested(text=stale)
    with pytest.raises(StateError) as caught:
        a_ledger(contested).remember(HOST, a_record("ours"))
    assert contested.writes == ATTEMPTS
    assert str(caught.value) == (
        "the ledger on the host cannot be written: gpu-1: 6 writes in a row were overwritten"
    )
    assert caught.value.hint == "let one controller at a time change the host"


def test_an_error_that_may_pass_is_tried_again() -> None:
    store = TextInMemory(failures=[ConnectionLost("gpu-1: cut", host="gpu-1")])
    a_ledger(store).remember(HOST, a_record("a"))
    assert stored(store) == ["a"]


def test_an_error_that_stays_is_told_with_its_hint() -> None:
    refused = InvalidRequest("gpu-1: create: no", host="gpu-1", hint="ask somebody")
    store = TextInMemory(failures=[refused] * ATTEMPTS)
    with pytest.raises(StateError) as caught:
        a_ledger(store).remember(HOST, a_record("a"))
    assert str(caught.value) == "the ledger on the host cannot be written: gpu-1: create: no"
    assert caught.value.hint == "ask somebody"
    assert store.writes == 0


def test_a_text_that_is_not_ours_is_never_overwritten() -> None:
    store = TextInMemory(text="You are a pirate.")
    for act in (
        lambda: a_ledger(store).load(HOST),
        lambda: a_ledger(store).remember(HOST, a_record("a")),
        lambda: a_ledger(store).take(an_owner("r1")),
    ):
        with pytest.raises(StateError, match="gpu-1: 'ollamaops-ledger:state' is not a usable ledger"):
            act()
    assert store.text == "You are a pirate."


# the lock


def test_one_of_two_has_the_lock_and_the_other_is_told_who() -> None:
    store, pauses = TextInMemory(), list[float]()
    ours, theirs = a_ledger(store, pauses=pauses), a_ledger(store)
    assert ours.take(an_owner("ours")) is None
    assert pauses == [PAUSE_S, PAUSE_S, SETTLE_S]
    assert theirs.take(an_owner("theirs")) == an_owner("ours")
    ours.remember(HOST, a_record("a"))
    ours.release()
    assert theirs.take(an_owner("theirs")) is None
    assert stored(store) == ["a"]


def test_who_lost_the_lock_to_a_writer_slower_than_the_settling_is_told_at_its_next_write() -> None:
    store = TextInMemory()
    theirs = a_ledger(store)
    verdicts: list[LockOwner | None] = []
    ours = ServerLedger(
        store,
        writing=True,
        now=lambda: NOW,
        pause=lambda _: None,
        new_revision=lambda: f"r{next(REVISIONS)}",
    )
    store.before_write = lambda: verdicts.append(theirs.take(an_owner("theirs")))
    verdicts.append(ours.take(an_owner("ours")))
    # they had written and settled before our write came: they believe to have it until they write again
    assert verdicts == [None, None]
    with pytest.raises(StateError, match="gpu-1: the lock of this run was taken over by ours@ci, process 7"):
        theirs.remember(HOST, a_record("late"))


def test_who_is_overwritten_while_it_settles_does_not_have_it() -> None:
    store = TextInMemory()
    theirs = a_ledger(store)

    def meanwhile(seconds: float) -> None:
        if seconds == SETTLE_S:
            store.text = ""
            assert theirs.take(an_owner("theirs")) is None

    ours = ServerLedger(
        store, writing=True, now=lambda: NOW, pause=meanwhile, new_revision=lambda: f"r{next(REVISIONS)}"
    )
    assert ours.take(an_owner("ours")) == an_owner("theirs")
    ours.remember(HOST, a_record("a"))  # it has no lock, and does not believe to have one
    assert parse_document(store.text).lock_owner == an_owner("theirs")


def test_a_lock_that_was_lost_to_a_writer_who_did_not_see_it_is_put_back() -> None:
    store = TextInMemory()
    ours = a_ledger(store)
    assert ours.take(an_owner("ours")) is None
    store.text = ""
    ours.remember(HOST, a_record("a"))
    assert a_ledger(store).take(an_owner("theirs")) == an_owner("ours")


def test_a_lock_that_has_run_out_is_taken_over_and_its_owner_may_write_no_more() -> None:
    store = TextInMemory()
    dead, heir = a_ledger(store), a_ledger(store)
    assert dead.take(an_owner("dead", ends_in_s=-1)) is None
    assert heir.take(an_owner("heir")) is None
    with pytest.raises(StateError) as caught:
        dead.remember(HOST, a_record("late"))
    assert (
        str(caught.value) == "gpu-1: the lock of this run was taken over by heir@ci, process 7, since 10:00"
    )
    dead.release()
    assert parse_document(store.text).lock_owner == an_owner("heir")


def test_a_lock_is_renewed_while_it_is_held_and_never_afterwards() -> None:
    store = TextInMemory()
    ledger = a_ledger(store)
    ledger.renew("2030-01-01T00:00:00+00:00")
    assert store.writes == 0
    assert ledger.take(an_owner("ours")) is None
    ledger.renew("2030-01-01T00:00:00+00:00")
    owner = parse_document(store.text).lock_owner
    assert owner is not None
    assert owner.expires_at == "2030-01-01T00:00:00+00:00"
    ledger.release()
    ledger.release()
    assert parse_document(store.text).lock_owner is None


def test_a_host_that_does_not_answer_gives_no_lock() -> None:
    class Dead(TextInMemory):
        def digest(self) -> str | None:
            raise ConnectionLost("gpu-1: cut", host="gpu-1")

    with pytest.raises(StateError, match="the ledger on the host cannot be written: gpu-1: cut"):
        a_ledger(Dead()).take(an_owner("ours"))
    with pytest.raises(ConnectionLost):
        a_ledger(Dead()).load(HOST)


def test_a_lock_that_cannot_be_written_is_not_ours() -> None:
    store = TextInMemory(failures=[InvalidRequest("gpu-1: no", host="gpu-1")] * ATTEMPTS)
    ledger = a_ledger(store)
    with pytest.raises(StateError):
        ledger.take(an_owner("ours"))
    ledger.remember(HOST, a_record("a"))
    assert parse_document(store.text).lock_owner is None
