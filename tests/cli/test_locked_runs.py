"""Plans and runs held to a lock: what is there is judged by the lock alone, what is pulled is what was reviewed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from patience import PATIENCE_S
from pulled_models import WEIGHTS_B, World, entry, publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

NOWHERE = "localhost:1"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def mario(registry: RunningRegistry, request: pytest.FixtureRequest) -> str:
    """`team…/mario:v1`, published for this test alone."""
    path = f"team-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
    publish(registry, path, template=b"{{ .Prompt }}", license=b"MIT")
    return path


@pytest.fixture(params=["0.12.11", "0.33.0"])
def host(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A server that writes pulled manifests anew, and one that keeps them."""
    with Sandbox(as_version=request.param) as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"gpu-1": {"url": host.url}})


def tags(host: Sandbox) -> dict[str, str]:
    models = requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()["models"]
    return {model["name"]: model["digest"] for model in models}


@pytest.fixture
def applied(world: World, registry: RunningRegistry, mario: str) -> World:
    """Locked, pulled, and forgotten: the next run knows nothing but the lock."""
    world.declare(entry(registry, mario))
    assert world.run("lock")[0] == 0
    assert world.run("apply", "-y")[0] == 0
    world.forget()
    return world


def unreachable(world: World, registry: RunningRegistry, mario: str, host: Sandbox) -> None:
    """The same model, lock and host, but a registry that is gone."""
    copied = requests.post(
        f"{host.url}/api/copy",
        json={"source": f"{registry.host}/{mario}", "destination": f"{NOWHERE}/{mario}"},
        timeout=PATIENCE_S,
    )
    assert copied.status_code == 200
    world.lock.write_text(world.lock.read_text().replace(registry.host, NOWHERE))
    world.declare({"name": f"{NOWHERE}/{mario}", "insecure": True})


def test_the_locked_content_is_in_sync_without_asking_the_registry(
    applied: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    unreachable(applied, registry, mario, host)
    code, text = applied.run("drift")
    assert (code, "1 model on 1 host is as declared" in text) == (0, True), text


def test_other_content_is_pulled_from_a_registry_that_has_the_locked_one(
    applied: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    old = tags(host)
    publish(registry, mario, model=WEIGHTS_B)
    assert applied.run("lock", "--update")[0] == 0
    code, text = applied.run("plan", "--detailed-exitcode")
    assert code == 2
    assert f"~ {registry.host}/{mario} on gpu-1: pull: content " in text
    assert applied.run("apply", "-y")[0] == 0
    assert tags(host) != old
    assert applied.run("plan", "--detailed-exitcode", "--locked")[0] == 0


def test_what_is_known_to_differ_from_the_lock_is_never_pulled(
    world: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    world.declare(entry(registry, mario))
    world.run("lock")
    publish(registry, mario, model=WEIGHTS_B)
    for command in (["plan"], ["apply", "-y"]):
        code, text = world.run(*command)
        assert code == 3
        assert "but the registry now has " in text
    assert tags(host) == {}


def test_what_turns_out_to_differ_from_the_lock_leaves_the_old_model_in_place(
    applied: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    before = tags(host)
    publish(registry, mario, model=WEIGHTS_B)
    applied.run("lock", "--update")
    publish(registry, mario, model=WEIGHTS_B, system=b"Not what was reviewed.")
    code, text = applied.run("apply", "-y", "--no-registry")
    assert code == 3
    assert "pinned" in text
    assert tags(host) == before


def test_a_model_that_only_has_to_be_there_is_pulled_as_locked_and_then_left_alone(
    world: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    world.declare(entry(registry, mario, update="missing"))
    world.run("lock")
    publish(registry, mario, model=WEIGHTS_B)
    assert world.run("apply", "-y")[0] == 3
    assert world.run("apply", "-y", "--no-registry")[0] == 3
    assert tags(host) == {}
    world.run("lock", "--update")
    assert world.run("apply", "-y")[0] == 0
    publish(registry, mario)
    world.run("lock", "--update")
    assert world.run("drift")[0] == 0


def test_a_base_that_nobody_declares_is_pulled_as_locked(
    world: World, registry: RunningRegistry, mario: str, host: Sandbox
) -> None:
    ref = f"{registry.host}/{mario}"
    world.declare({"name": "bot", "from": ref, "system": "hi", "insecure": True})
    assert world.states("lock") == {ref: "added"}
    publish(registry, mario, model=WEIGHTS_B)
    code, _ = world.run("apply", "-y")
    assert code == 3
    assert tags(host) == {}
    world.run("lock", "--update")
    assert world.run("apply", "-y", "--locked")[0] == 0
    assert set(tags(host)) == {ref, "bot:latest"}


class TestAnIncompleteLock:
    @pytest.fixture
    def incomplete(self, world: World, registry: RunningRegistry, mario: str) -> World:
        """A lock without the one model that is declared."""
        world.declare()
        assert world.run("lock")[0] == 0
        world.declare(entry(registry, mario))
        return world

    def test_is_warned_of_and_the_model_is_pulled_when_it_is_missing(
        self, incomplete: World, registry: RunningRegistry, mario: str, host: Sandbox
    ) -> None:
        ref = f"{registry.host}/{mario}"
        code, text = incomplete.run("plan")
        assert code == 0
        assert f"'{ref}' is not in the lock file: taken as update: missing" in text
        assert f"+ {ref} on gpu-1: pull, not there" in text
        assert incomplete.run("apply", "-y")[0] == 0
        publish(registry, mario, model=WEIGHTS_B)
        assert incomplete.run("drift")[0] == 0

    @pytest.mark.parametrize("command", [["plan", "--locked"], ["apply", "-y", "--locked"]])
    def test_is_refused_when_the_lock_is_required(
        self, incomplete: World, registry: RunningRegistry, mario: str, host: Sandbox, command: list[str]
    ) -> None:
        code, text = incomplete.run(*command)
        assert code == 4
        assert f"refused by locked: '{registry.host}/{mario}' is not in the lock file" in text
        assert "ollamaops lock" in text
        assert tags(host) == {}

    def test_may_be_forced(self, incomplete: World, host: Sandbox) -> None:
        assert incomplete.run("apply", "-y", "--locked", "--force", "locked")[0] == 0
        assert len(tags(host)) == 1

    def test_without_a_file_is_refused_as_well(self, incomplete: World) -> None:
        incomplete.lock.unlink()
        assert incomplete.run("plan", "--locked")[0] == 4
        assert incomplete.run("plan")[0] == 0

    def test_does_not_matter_to_a_model_with_a_digest_of_its_own(
        self, incomplete: World, registry: RunningRegistry, mario: str
    ) -> None:
        digest = publish(registry, mario)
        incomplete.declare(entry(registry, mario, digest=str(digest)))
        assert incomplete.run("apply", "-y", "--locked")[0] == 0


def test_a_saved_plan_is_refused_once_the_lock_says_something_else(
    world: World, registry: RunningRegistry, mario: str, tmp_path: Path
) -> None:
    world.declare(entry(registry, mario))
    world.run("lock")
    saved = str(tmp_path / "plan.json")
    assert world.run("plan", "--locked", "--out", saved)[0] == 0
    publish(registry, mario, model=WEIGHTS_B)
    world.run("lock", "--update")
    assert world.run("apply", saved)[0] == 4


def test_a_saved_plan_is_applied_as_it_is_locked_or_not(
    world: World, registry: RunningRegistry, mario: str, tmp_path: Path, host: Sandbox
) -> None:
    world.declare(entry(registry, mario))
    world.run("lock")
    saved = str(tmp_path / "plan.json")
    assert world.run("plan", "--locked", "--out", saved)[0] == 0
    assert world.run("apply", saved)[0] == 0
    assert len(tags(host)) == 1
