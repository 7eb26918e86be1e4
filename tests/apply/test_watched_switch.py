"""A client that never stops asking, while the model that it asks is changed: it gets the old or the new, never none.

It is a thread with a connection of its own, as fast as the server answers, which is many times more often than ten
times a second. On all six versions, for each way in which a model is replaced.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import requests
from breadth import in_turn
from live_host import BASE, VERSIONS, LiveHost, a_build, a_host, a_model, assert_converged
from patience import PATIENCE_S

from ollamaops import exits
from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_rollbacks
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import NamePattern
from ollamaops.observe.run import RunOptions

pytestmark = in_turn("host")

OTHER = "qwen2.5:0.5b"
ENOUGH = 10


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        yield running


@dataclass
class Client:
    """Asks for the model's text and for a word of it, again and again."""

    url: str
    model: str
    seen: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        with requests.Session() as session:
            while not self.ended.is_set():
                self.seen += [self._show(session), self._generate(session)]
                if len(self.seen) >= ENOUGH:
                    self.enough.set()

    def _show(self, session: requests.Session) -> str:
        body = {"model": self.model, "name": self.model}
        answer = session.post(f"{self.url}/api/show", json=body, timeout=PATIENCE_S)
        return str(answer.json()["modelfile"]) if answer.ok else f"show: {answer.status_code} {answer.text}"

    def _generate(self, session: requests.Session) -> str:
        body = {"model": self.model, "prompt": "Which color?", "stream": False}
        answer = session.post(f"{self.url}/api/generate", json=body, timeout=PATIENCE_S)
        return str(answer.json().get("response", answer.text)) if answer.ok else f"generate: {answer.text}"

    @property
    def shown(self) -> list[str]:
        """What it was shown, each once in a row."""
        return [text for text, _ in itertools.groupby(self.seen[::2])]

    @property
    def told(self) -> list[str]:
        """What it was answered, each once in a row."""
        return [text for text, _ in itertools.groupby(self.seen[1::2])]


@contextmanager
def watching(host: LiveHost, model: str) -> Iterator[Client]:
    """Within the block a client asks; it has asked before the block begins, and goes on for a while after it."""
    client = Client(host.sandbox.url, model)
    thread = threading.Thread(target=client.watch, name="client")
    thread.start()
    try:
        assert client.enough.wait(PATIENCE_S)
        yield client
        client.enough.clear()
        assert client.enough.wait(PATIENCE_S)
    finally:
        client.ended.set()
        thread.join()


def text_of(host: LiveHost, model: str) -> str:
    return str(host.stranger.show(model)["modelfile"])


def a_bot(color: str, expected: str | None = None) -> list[ModelSpec]:
    expect = ({"prompt": "Which color?", "contains": expected or color},)
    build = a_build(BASE, system=f"Say {color}.")
    return [a_model(BASE), a_model("bot", build, expect=expect, keep_previous=1)]


def roll_back(host: LiveHost, models: list[ModelSpec]) -> int:
    host.targets = (NamePattern.parse("bot"),)
    tasks = host.tasks(models)
    with host.opened() as run:
        return apply_tasks(plan_rollbacks(tasks, run, 1), tasks, run).exit_code


def test_a_switch_and_a_rollback_show_the_old_or_the_new_and_nothing_else(host: LiveHost) -> None:
    assert_converged(host, host.apply(a_bot("red")))
    red = text_of(host, "bot")
    with watching(host, "bot") as client:
        assert_converged(host, host.apply(a_bot("blue")))
    blue = text_of(host, "bot")
    assert (client.shown, client.told) == ([red, blue], ["red", "blue"])
    with watching(host, "bot") as client:
        assert roll_back(host, a_bot("blue")) == exits.DONE
    assert (client.shown, client.told) == ([blue, red], ["blue", "red"])


def test_a_change_that_is_not_as_expected_is_never_seen(host: LiveHost) -> None:
    assert_converged(host, host.apply(a_bot("red")))
    red = text_of(host, "bot")
    with watching(host, "bot") as client:
        report = host.run(a_bot("blue", "green"))
    assert report.exit_code == exits.UNEXPECTED
    said = [str(result.outcome) for result in report.results]
    assert any(
        "no 'green' in an answer of 4 characters: 'blue'; the version that was" in text for text in said
    )
    assert (client.shown, client.told) == ([red], ["red"])


def test_a_pull_whose_previous_version_is_kept_shows_the_old_or_the_new(host: LiveHost) -> None:
    host.options = RunOptions(costs=False, ask_registry=False)
    for model in (BASE, OTHER):
        host.stranger.pull(model)
    host.stranger.copy(BASE, "as-pulled")
    new = text_of(host, "as-pulled").replace("as-pulled:latest", BASE)
    host.stranger.copy(OTHER, BASE)
    old = text_of(host, BASE)
    with watching(host, BASE) as client:
        assert_converged(host, host.apply([a_model(BASE, update="latest", keep_previous=1)]))
    assert client.shown == [old, new]
    assert not [answer for answer in client.told if answer.startswith("generate: ")]
    assert text_of(host, f"{BASE}-ollamaops-previous-1").replace("-ollamaops-previous-1", "") == old
