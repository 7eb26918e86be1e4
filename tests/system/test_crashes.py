"""kill -9, fifty times and more, while everything changes at once and the network misbehaves.

The program runs in processes of its own against pretend servers that outlive it. It is killed at the boundaries of
actions, as their events are told, and at requests drawn with a seed: before they are served, in the middle of their
answers, and right after. The fact a reader would miss: the store is looked at before each request that the server
gets, so that not even one request long may a model be missing that others rely on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import requests
import uvicorn
import yaml
from fork_server import ForkServer, Run
from live_host import VERSIONS, WEIGHTS, OtherClient
from patience import PATIENCE_S
from starlette.types import Message, Receive, Scope, Send

from ollamaops.names import ModelName
from ollamaops.sandbox.app import App
from ollamaops.sandbox.fault_injection import FaultInjector, with_faults
from ollamaops.sandbox.fault_script import FaultScript, parse_faults
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

BASE, PINNED, PULLED, OUTDATED = "llama3.2:3b", "llama3.2:1b", "qwen3:0.6b", "qwen2.5:0.5b"
COLORS = {"red": "tiny-a.gguf", "blue": "tiny-b.gguf"}
# what others rely on: it may change from one version to the next, but it is there all the time
STANDING = (BASE, PINNED, "bot:latest", "child:latest", "weights:latest", "chat:latest")
BYSTANDERS = ("theirs:latest", "keep:golden", "scratch/x:latest")
KEPT = {"bot:latest-ollamaops-previous-1", "llama3.2:1b-ollamaops-previous-1"}
# what may go wrong besides being killed; each is survived within a run, or by the next one
FAULTS = (
    "{on: {endpoint: pull}, call: 1, do: {stall: {for: 100ms}}}",
    "{on: {endpoint: pull}, call: 1, do: {cut: looks-complete}}",
    "{on: {endpoint: blobs, method: POST}, call: 1, do: {reset: during}}",
    "{on: {endpoint: blobs, method: POST}, do: {bandwidth: 1MB/s}}",
    "{on: {endpoint: create}, call: 2, do: {cut: mid-line}}",
    "{on: {endpoint: create}, call: 1, do: {status: 503}}",
    "{on: {endpoint: copy}, call: 2, do: {reset: after}}",
    "{on: {endpoint: tags}, share: 0.1, do: {status: 500}}",
    "{on: {endpoint: generate}, call: 1, do: {reset: before}}",
    "{on: {endpoint: delete}, call: 1, do: {status: 502, html: true}}",
    "{on: {method: POST}, share: 0.05, do: {latency: 20ms, reset: after}}",
    "{on: {endpoint: ps}, call: 1, do: {status: 500}}",
)
BOUNDARIES = 36  # of actions and rounds, in the change from one color to the other
Moment = Literal["before", "during", "after", "event"]
MOMENTS: tuple[Moment, ...] = ("before", "during", "after")
# and how often each is asked at least in such a change
PATHS = (
    ("/api/copy", 8),
    ("/api/delete", 6),
    ("/api/create", 4),
    ("/api/pull", 2),
    ("/api/blobs", 2),
    ("", 100),
)


@dataclass(frozen=True)
class Death:
    """At the request of this number, counted from 1, of those to `path` (all): before it is served, during its answer
    or after that; or when the event of this number is told, of those that begin or end something."""

    moment: Moment = "event"
    number: int = 0
    path: str = ""

    def is_at(self, served: Sequence[str]) -> bool:
        """Whether the last of these requests is the one."""
        count = sum(path.startswith(self.path) for path in served)
        return served[-1].startswith(self.path) and count == self.number


@dataclass
class Watch:
    """Stands before a server: counts its requests, kills at one of them, looks at the store before each."""

    kill: Callable[[], None]
    look: Callable[[], None] = lambda: None
    death: Death = Death()
    served: list[str] = field(default_factory=list)
    faults: FaultScript = field(default_factory=lambda: FaultScript(()))
    inner: FaultInjector | None = None

    def wrap(self, app: App) -> Watch:
        """What `Sandbox(faults=…)` takes."""
        self.inner = with_faults(self.faults)(app)
        return self

    def attach(self, server: uvicorn.Server) -> None:
        assert self.inner is not None
        self.inner.attach(server)

    def arm(self, faults: Sequence[str], death: Death) -> None:
        """From now on these faults, and this death."""
        script = parse_faults("\n".join(f"- {fault}" for fault in faults) or "[]")
        self.faults.rules, self.faults.seen, self.faults.hits = script.rules, script.seen, script.hits
        self.death = death
        self.served.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.inner is not None
        self.look()
        self.served.append(scope["path"])
        death = self.death if self.death.is_at(self.served) else Death()

        async def die(moment: Moment) -> None:
            if moment == death.moment and self.death is death:  # and not the next run's
                self.death = Death()
                await asyncio.to_thread(self.kill)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.body":
                await die("during")
            await send(message)

        await die("before")
        await self.inner(scope, receive, watched)
        await die("after")


@dataclass
class World:
    """One server of one version, one manifest in two colors, one state folder, and the kennel."""

    folder: Path
    sandbox: Sandbox
    watch: Watch
    fork_server: ForkServer
    keeps_state_on_server: bool
    pin: str = ""
    unowned: set[str] = field(default_factory=set)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def stranger(self) -> OtherClient:
        return OtherClient(self.sandbox.url, self.sandbox.version)

    # the manifest

    def declare(self, color: str) -> None:
        """The same things in another color: everything of it changes, in every way that there is."""
        other = next(each for each in COLORS if each != color)
        shutil.copy(WEIGHTS / COLORS[color], self.folder / "weights.gguf")
        pong = {"prompt": "Reply with the word pong.", "matches": "^pong$"}
        colorful = {"prompt": "Which color?", "contains": color}
        moved = {"name": f"moved-{color}", "from": BASE, "system": "Move.", "moved_from": f"moved-{other}"}
        bot = {
            "name": "bot",
            "from": BASE,
            "system": f"Say {color}.",
            "expect": colorful,
            "keep_previous": 1,
        }
        document = {
            "state": "server" if self.keeps_state_on_server else "local",
            "hosts": {"gpu-1": {"url": self.sandbox.url}},
            "defaults": {"model": {"retries": 3}},
            "policy": {"prune": "owned", "protect": ["*:golden"], "ignore": ["scratch/*"]},
            "models": [
                BASE,
                PULLED,
                {"name": PINNED, "digest": f"sha256:{self.pin}", "expect": pong, "keep_previous": 1},
                bot,
                {"name": "child", "from": "bot", "parameters": {"temperature": 0.5}},
                {"name": "weights", "files": ["weights.gguf"], "staged": True},
                {"name": "chat", "copy": "bot", "resident": True},
                moved,
                {"name": f"only-{color}", "copy": BASE},
                {"name": "old-bot:*", "ensure": "absent"},
            ],
        }
        (self.folder / "ollamaops.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def meddle(self) -> None:
        """What somebody else does between two runs, so that there is something of every kind to do."""
        for name in self.unowned:
            self.stranger.delete(name)
        self.stranger.copy(OUTDATED, PINNED)
        self.stranger.copy("theirs", "old-bot:v1")
        if PULLED in self.stranger.tags():
            self.stranger.delete(PULLED)

    # running

    def run(
        self,
        command: str,
        *options: str,
        faults: Sequence[str] = (),
        death: Death = Death(),
    ) -> Run:
        """The program as users run it, with these faults, killed if it comes to that."""
        files = ["-f", str(self.folder / "ollamaops.yaml"), "--state-dir", str(self.folder / "state")]
        self.watch.arm(faults, death)
        shared = [*files, "--no-registry", "--log-format", "json", "-q"]
        last_event = death.number if death.moment == "event" else 0
        return self.fork_server.run([command, *options, *shared], last_event=last_event)

    def die_at_first(self) -> None:
        """Killed before anything is remembered: what was there under a declared name is still there, or is new."""
        before = self.stored()
        self.meddle()
        self.declare("blue")
        death = Death("event", 1 + 4 * VERSIONS.index(self.sandbox.version))
        assert self.run("apply", "-y", death=death).was_killed
        self.assert_state_is_readable()
        now = self.stored()
        assert before.keys() <= now.keys()
        assert {name: now[name] for name in BYSTANDERS} == {name: before[name] for name in BYSTANDERS}

    # what is there

    def stored(self) -> dict[str, str]:
        """The digest of every model's manifest, read from the disk, where nothing can hide anything."""
        root = self.sandbox.store.manifests
        found = {}
        with self.sandbox.store.lock:  # servers write in place: nobody wants to know what half a file is
            for path in root.glob("*/*/*/*"):
                *parts, tag = path.relative_to(root).parts
                name = ModelName.parse(f"{'/'.join(parts)}:{tag}").display
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def look(self) -> None:
        """Note what is missing or of no known version, right now."""
        now = self.stored()
        self.missing += [f"{name} is gone" for name in (*STANDING, *BYSTANDERS) if name not in now]
        known = {name: {one[name] for one in self.versions.values()} for name in STANDING}
        self.missing += [
            f"{name} is {digest[:12]}"
            for name, digest in now.items()
            if name in known and digest not in known[name] and not self._is_outdated(name, now)
        ]

    def _is_outdated(self, name: str, now: dict[str, str]) -> bool:
        """Whether the model is what somebody else put there."""
        return name == PINNED and now[name] == now.get(OUTDATED)

    def assert_state_is_readable(self) -> None:
        """The ledger and the history, whatever was being written."""
        ledger = Ledger(self.folder / "state")
        ledger.load("gpu-1")
        assert all(run.command for run in ledger.runs())
        if ledger.path.exists():
            with closing(sqlite3.connect(ledger.path)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    def assert_converged(self, color: str, run: Run, theirs: dict[str, str]) -> None:
        """As declared, nothing more to do, nothing of anybody else's touched, and nothing left behind."""
        other = next(each for each in COLORS if each != color)
        assert run.code == 0, run
        plan = self.run("plan", "-o", "json", "--detailed-exitcode")
        assert plan.code == 0, plan
        now = self.stored()
        assert {name: now.get(name) for name in STANDING} == self.versions[color]
        assert {name: now.get(name) for name in theirs} == theirs
        assert {name for name in now if "-ollamaops-" in name} == KEPT
        assert now["bot:latest-ollamaops-previous-1"] == self.versions[other]["bot:latest"]
        assert {f"moved-{color}:latest", f"only-{color}:latest", PULLED} <= now.keys()
        # killed between making a model and filing that: then it is not known to be ours, and stays
        told = json.loads("".join(plan.said))["hosts"][0]["unmanaged"]
        self.unowned = {f"only-{other}:latest"} & set(told)
        gone = {f"moved-{other}:latest", f"only-{other}:latest", "old-bot:v1"} - self.unowned
        assert not now.keys() & gone
        listed = requests.get(f"{self.sandbox.url}/api/ps", timeout=PATIENCE_S).json()["models"]
        tags = self.stranger.tags()
        assert any(
            model["digest"] == tags["chat:latest"] and model["expires_at"] > "2200" for model in listed
        )


@contextmanager
def a_world(
    version: str, folder: Path, fork_server: ForkServer, *, keeps_state_on_server: bool
) -> Iterator[World]:
    """A server on which the very first run was killed, then both colors have been applied in peace, and one is."""
    watch = Watch(fork_server.kill)
    with Sandbox(folder / "store", as_version=version, faults=watch.wrap) as sandbox:
        world = World(folder, sandbox, watch, fork_server, keeps_state_on_server)
        stranger = world.stranger
        for model in (BASE, PINNED, OUTDATED):
            stranger.pull(model)
        world.pin = stranger.tags()[PINNED]
        for bystander in BYSTANDERS:
            stranger.create(bystander, BASE, system="Mine.")
        stranger.create("bot", BASE, system="Nobody knows me.")
        world.die_at_first()
        for color in ("blue", "red"):
            world.meddle()
            world.declare(color)
            run = world.run("apply", "-y")
            assert run.code == 0, run
            now = world.stored()
            world.versions[color] = {name: now[name] for name in STANDING}
        watch.look = world.look
        yield world


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


def chosen_deaths(version: str) -> Iterator[list[Death]]:
    """A few moments of each kind: more on the oldest version, whose changes are quicker."""
    if version == VERSIONS[0]:
        yield [Death("event", 12)]
        yield [Death("during", 1, "/api/create")]
        yield [Death("before", 2, "/api/delete"), Death("event", 5)]
    else:
        yield [Death("during", 40), Death("after", 3, "/api/copy")]


def many_deaths(version: str) -> Iterator[list[Death]]:
    """At least nine. The versions share the boundaries; in some changes it dies twice."""
    number = VERSIONS.index(version)
    chance = random.Random(version)
    for cycle in range(2 * BOUNDARIES // len(VERSIONS)):
        deaths = [Death("event", 1 + (number + len(VERSIONS) * cycle) % BOUNDARIES)]
        if cycle % 3:
            path, count = chance.choice(PATHS)
            deaths.insert(0, Death(chance.choice(MOMENTS), chance.randint(1, count), path))
        yield deaths


@pytest.mark.parametrize(
    ("version", "choose", "least"),
    [(VERSIONS[0], chosen_deaths, 3), (VERSIONS[-1], chosen_deaths, 1)]
    + [pytest.param(version, many_deaths, 9, marks=pytest.mark.soak) for version in VERSIONS],
)
def test_whenever_it_is_killed_the_next_run_converges_and_nothing_is_lost(
    version: str,
    choose: Callable[[str], Iterator[list[Death]]],
    least: int,
    tmp_path: Path,
    fork_server: ForkServer,
) -> None:
    chance = random.Random(version)
    with a_world(version, tmp_path, fork_server, keeps_state_on_server=version == "0.32.15") as world:
        theirs = {name: world.stored()[name] for name in (*BYSTANDERS, OUTDATED)}
        kills = 0
        for cycle, deaths in enumerate(choose(version)):
            color = ("blue", "red")[cycle % 2]
            world.meddle()
            world.declare(color)
            for death in deaths:
                run = world.run("apply", "-y", faults=chance.sample(FAULTS, 3), death=death)
                kills += run.was_killed
                world.assert_state_is_readable()
            run = world.run("apply", "-y", faults=chance.sample(FAULTS, cycle % 2))
            world.assert_converged(color, run, theirs)
            assert world.missing == []
        assert kills >= least
