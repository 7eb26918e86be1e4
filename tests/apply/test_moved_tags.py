"""Tags that move in a registry between a question and a pull: what is done, what is said, what is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from breadth import in_turn
from patience import PATIENCE_S
from pulled_models import WEIGHTS_A, WEIGHTS_B, World, entry, publish
from registry_fixture import RunningRegistry, run_registry
from starlette.types import ASGIApp, Receive, Scope, Send

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = [pytest.mark.registry, in_turn("moving")]
VERSIONS = ("0.5.7", "0.12.11", "0.33.0-rc2")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


class BeforePulls:
    """An app around the pretend server's that does something whenever a pull arrives."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.work: Callable[[], object] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/api/pull":
            self.work()
        await self.app(scope, receive, send)


class Moving:
    """A registry's tag that moves, a server that pulls it, and the program."""

    def __init__(self, registry: RunningRegistry, path: str, world: World, url: str) -> None:
        self.registry, self.path, self.world, self.url = registry, path, world, url
        self.doors: list[BeforePulls] = []

    def publish(self, word: str) -> None:
        publish(
            self.registry,
            self.path,
            model=WEIGHTS_B if word == "bad" else WEIGHTS_A,
            system=word.encode(),
        )

    def publish_at_next_pull(self, word: str) -> None:
        (door,) = self.doors
        door.work = lambda: self.publish(word)

    def let_be(self) -> None:
        (door,) = self.doors
        door.work = lambda: None

    @property
    def system(self) -> object:
        """What the server's model says; None without the model."""
        name = f"{self.registry.host}/{self.path}"
        return (
            requests.post(f"{self.url}/api/show", json={"model": name}, timeout=PATIENCE_S)
            .json()
            .get("system")
        )

    @property
    def saved(self) -> str:
        return str(self.world.folder / "plan.json")


@pytest.fixture(params=VERSIONS)
def moving(
    registry: RunningRegistry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Iterator[Moving]:
    doors: list[BeforePulls] = []

    def wrap(app: ASGIApp) -> BeforePulls:
        doors.append(BeforePulls(app))
        return doors[0]

    with Sandbox(as_version=request.param, faults=wrap) as sandbox:
        world = World(tmp_path, capsys, hosts={"gpu": {"url": sandbox.url}})
        path = f"moved-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
        found = Moving(registry, path, world, sandbox.url)
        found.doors = doors
        yield found


def declare(moving: Moving, **keys: object) -> None:
    moving.world.declare(entry(moving.registry, moving.path, **keys))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_saved_plan_is_refused_when_the_tag_has_moved_since(moving: Moving, is_there: bool) -> None:
    declare(moving, update="latest")
    if is_there:
        moving.publish("first")
        assert moving.world.run("apply", "-y")[0] == 0
    moving.publish("second")
    assert moving.world.run("plan", "--out", moving.saved)[0] == 0
    moving.publish("third")
    code, text = moving.world.run("apply", moving.saved)
    assert (code, moving.system) == (4, "first" if is_there else None), text
    assert "no longer fits" in text
    assert f"'{moving.registry.host}/{moving.path}' in its registry was " in text


def test_a_saved_plan_brings_what_it_said_or_leaves_what_was_there(moving: Moving) -> None:
    declare(moving, update="latest")
    moving.publish("first")
    assert moving.world.run("apply", "-y")[0] == 0
    moving.publish("second")
    assert moving.world.run("plan", "--out", moving.saved)[0] == 0
    moving.publish_at_next_pull("bad")
    code, text = moving.world.run("apply", moving.saved)
    assert (code, moving.system) == (3, "first"), text
    assert "the registry has changed: look at what is new, then plan again" in text


def test_what_a_moved_tag_brought_is_not_taken_for_what_was_asked_about(moving: Moving) -> None:
    declare(moving, update="latest")
    moving.publish("good")
    moving.publish_at_next_pull("bad")
    code, text = moving.world.run("apply", "-y")
    assert (code, moving.system) == (0, "bad"), text
    moving.let_be()
    moving.publish("good")
    assert moving.world.run("plan", "--detailed-exitcode")[0] == 2
    assert moving.world.run("apply", "-y")[0] == 0
    assert moving.system == "good"
    assert moving.world.run("plan", "--detailed-exitcode")[0] == 0


def test_what_is_made_from_a_base_that_comes_back_with_another_content_is_announced(moving: Moving) -> None:
    base = f"{moving.registry.host}/{moving.path}"
    moving.publish("first")
    models = (
        entry(moving.registry, moving.path, update="latest"),
        {"name": "bot", "from": base, "parameters": {"top_k": 3}},
        {"name": "alias", "copy": base},
    )
    moving.world.declare(*models)
    assert moving.world.run("apply", "-y")[0] == 0
    moving.publish("second")
    requests.delete(f"{moving.url}/api/delete", json={"model": base}, timeout=PATIENCE_S).raise_for_status()
    code, text = moving.world.run("plan", "--out", moving.saved)
    assert (code, "1 to pull, 2 to create" in text or "1 to pull, 1 to create" in text) == (0, True), text
    code, text = moving.world.run("apply", moving.saved)
    assert code == 0, text
    assert moving.world.run("plan", "--detailed-exitcode")[0] == 0
