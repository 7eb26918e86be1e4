"""Creates whose end nobody heard, or that ended with an error although the model was made: the list tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from live_host import NoWaitToken, name
from scripted_host import Asked, Script, ScriptedHost, Wire, always, routes
from session_actions import DIGEST, OTHER, Session, at, create

from ollamaops.events import Interrupted, Succeeded

BASE = OTHER
MADE = "ef" * 32
PAGE = b"<html><head><title>504 Gateway Time-out</title></head></html>"
PRUNE_ERROR = f"remove /m/blobs/sha256-{DIGEST}: permission denied"
WRITING = {"status": "writing manifest"}


@dataclass
class Maker:
    """A server that makes `bot` some looks at its list after it was asked to."""

    answer: Script
    old: tuple[str, str] | None = None
    new: tuple[str, str] = (MADE, "2")
    looks_until_made: int | None = 0
    lists: Script | None = None
    creates: int = 0
    looks: int = 0

    def serve(self, asked: Asked, wire: Wire) -> None:
        if asked.path == "/api/create":
            self.creates += 1
            self.looks = 0
            self.answer(asked, wire)
        elif self.creates and self.lists is not None:
            self.lists(asked, wire)
        else:
            self.list(asked, wire)

    def list(self, asked: Asked, wire: Wire) -> None:
        is_made = self.creates and self.looks_until_made is not None and self.looks >= self.looks_until_made
        self.looks += 1
        models = {"base:latest": (BASE, "1"), "bot:latest": self.new if is_made else self.old}
        wire.json(
            {
                "models": [
                    {"name": model, "digest": known[0], "size": 1, "modified_at": known[1]}
                    for model, known in models.items()
                    if known is not None
                ]
            }
        )


@dataclass
class Clock:
    """Each create seems to take `seconds` until it is cut off."""

    seconds: float
    readings: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.readings.append(len(self.readings) * self.seconds)
        return self.readings[-1]


@contextmanager
def served(
    maker: Maker, folder: Path, *, version: str = "0.12.5", cut_after_s: float = 60
) -> Iterator[Session]:
    shown = always({"modelfile": "FROM x", "model_info": {}})
    table = {"/api/tags": maker.serve, "/api/create": maker.serve, "/api/show": shown}
    with ScriptedHost(routes(table, version)) as server, at(server.url, folder) as session:
        session.host.client.transport.clock = Clock(cut_after_s)
        yield session


def gateway_timeout(asked: Asked, wire: Wire) -> None:
    wire.answer(504, PAGE, "text/html")


LOST: dict[str, Script] = {
    "504": gateway_timeout,
    "524": lambda asked, wire: wire.answer(524),
    "reset": lambda asked, wire: wire.reset(),
}
QUANTIZED = create("bot", base=name("base"), quantize="Q4_K_M")


def waits(session: Session) -> list[float]:
    assert isinstance(session.host.cancel, NoWaitToken)
    return session.host.cancel.waits


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("version", ["0.5.7", "0.6.8", "0.12.5"])
@pytest.mark.parametrize(
    ("old", "new"), [(None, (MADE, "2")), ((DIGEST, "1"), (MADE, "2")), ((MADE, "1"), (MADE, "2"))]
)
def test_a_silent_create_that_a_proxy_gave_up_on_is_waited_for_and_not_sent_again(
    how: str, version: str, old: tuple[str, str] | None, new: tuple[str, str], tmp_path: Path
) -> None:
    maker = Maker(LOST[how], old=old, new=new, looks_until_made=7)
    with served(maker, tmp_path, version=version) as session:
        assert isinstance(session.do(QUANTIZED), Succeeded)
        assert (maker.creates, session.retries) == (1, 0)
        assert session.host.ledger.load(session.host.spec.url)[name("bot").key].digest == MADE
        assert any("goes on" in warning for warning in session.warnings)


def test_one_that_never_ends_is_a_failure_that_names_the_proxy(tmp_path: Path) -> None:
    maker = Maker(gateway_timeout, looks_until_made=None)
    with served(maker, tmp_path) as session:
        outcome = session.fail(QUANTIZED)
        assert outcome.error == (
            "gpu-1: create bot:latest: 504 Gateway Time-out (a web page, not from Ollama), "
            "and not made 1h00m later either"
        )
        assert "proxy_read_timeout" in str(outcome.hint)
        assert 3600 <= sum(waits(session)) < 3700
        assert (maker.creates, session.retries) == (1, 0)


def test_a_server_that_is_away_while_it_is_waited_for_has_given_up_the_create(tmp_path: Path) -> None:
    def away_once(asked: Asked, wire: Wire) -> None:
        if maker.creates == 1:
            maker.lists, maker.answer = None, always({"status": "success"})
            wire.answer(502)
        else:
            maker.list(asked, wire)

    maker = Maker(LOST["reset"], lists=away_once)
    with served(maker, tmp_path) as session:
        assert isinstance(session.do(QUANTIZED), Succeeded)
        assert (maker.creates, session.retries) == (2, 1)


def test_a_server_that_is_too_busy_to_list_is_waited_for(tmp_path: Path) -> None:
    def busy(asked: Asked, wire: Wire) -> None:
        maker.lists = None
        gateway_timeout(asked, wire)

    maker = Maker(gateway_timeout, lists=busy)
    with served(maker, tmp_path) as session:
        assert isinstance(session.do(QUANTIZED), Succeeded)
        assert maker.creates == 1


def test_a_wait_for_a_create_can_be_stopped(tmp_path: Path) -> None:
    class Impatient(NoWaitToken):
        def wait(self, timeout: float | None = None) -> bool:
            self.cancel()
            return True

    with served(Maker(gateway_timeout, looks_until_made=None), tmp_path) as session:
        session.change_run(cancel=Impatient())
        assert session.do(QUANTIZED) == Interrupted(started=True)


@pytest.mark.parametrize(
    ("recipe", "version", "cut_after_s"),
    [
        ({"quantize": "Q4_K_M"}, "0.12.5", 0.001),  # no proxy gives up so soon
        ({}, "0.12.5", 60),  # takes a moment only
        ({"quantize": "Q4_K_M"}, "0.12.11", 60),  # tells its progress, and stops when nobody listens
    ],
)
def test_any_other_create_that_was_cut_off_is_sent_again(
    recipe: dict[str, str], version: str, cut_after_s: float, tmp_path: Path
) -> None:
    def once(asked: Asked, wire: Wire) -> None:
        if maker.creates == 1:
            wire.reset()
        else:
            maker.looks_until_made = 0
            wire.json({"status": "success"})

    maker = Maker(once, looks_until_made=None)
    with served(maker, tmp_path, version=version, cut_after_s=cut_after_s) as session:
        assert isinstance(session.do(create("bot", base=name("base"), **recipe)), Succeeded)
        assert (maker.creates, session.retries) == (2, 1)


# errors after the model was made


def lines(*values: object) -> Script:
    return lambda asked, wire: wire.ndjson(values)


AFTERWARDS: dict[str, tuple[str, Script]] = {
    "0.12.11": ("0.12.11", lines(WRITING, {"error": PRUNE_ERROR})),
    "0.33.0": ("0.33.0", lines(WRITING, {"error": PRUNE_ERROR})),
    "silent": ("0.12.5", always({"error": PRUNE_ERROR}, 500)),
}


@pytest.mark.parametrize("case", AFTERWARDS)
def test_a_model_whose_old_layers_could_not_be_removed_is_made_all_the_same(
    case: str, tmp_path: Path
) -> None:
    version, answer = AFTERWARDS[case]
    maker = Maker(answer, old=(DIGEST, "1"))
    with served(maker, tmp_path, version=version) as session:
        assert isinstance(session.do(create("bot", base=name("base"))), Succeeded)
        assert (maker.creates, session.retries) == (1, 0)
        assert session.warnings == [f"made, although the server then said: {PRUNE_ERROR}"]


NOT_MADE: dict[str, tuple[Script, Callable[[], Maker]]] = {
    "the list shows the old one": (
        lines(WRITING, {"error": PRUNE_ERROR}),
        lambda: Maker(always({}), old=(DIGEST, "1"), looks_until_made=None),
    ),
    "nothing was written before the error": (
        lines({"error": PRUNE_ERROR}, WRITING, {"status": "success"}),
        lambda: Maker(always({}), old=(DIGEST, "1")),
    ),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_an_error_of_a_create_stays_one_when_nothing_shows_that_it_was_made(
    case: str, tmp_path: Path
) -> None:
    answer, a_maker = NOT_MADE[case]
    maker = a_maker()
    maker.answer = answer
    with served(maker, tmp_path, version="0.33.0") as session:
        assert session.fail(create("bot", base=name("base"))).error.endswith(PRUNE_ERROR)
        assert session.retries == create("bot").retries
