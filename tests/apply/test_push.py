"""A push is done when the registry has what was pushed: seen there afterwards, and looked for again in later runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import requests
from live_host import BASE, LiveHost, a_build, a_host, a_model, assert_converged, ids, reasons
from patience import PATIENCE_S
from pulled_models import WEIGHTS_B, publish
from registry_fixture import MANIFEST_TYPE, Reply, Request, RunningRegistry, run_registry, run_server
from scripted_host import ScriptedHost, routes, streaming
from session_actions import DIGEST, Session, at, push, tagged

from ollamaops.events import Failed, Interrupted, Noted, Outcome, Succeeded
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import HostPlan, PushModel
from ollamaops.registry.client import RegistryClient

# with a real registry and pretend servers


@pytest.fixture(scope="module", params=[True, False], ids=["redirect", "no-redirect"])
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def redirecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("redirecting"), redirect=True) as running:
        yield running


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"team-{Digest.of(request.node.nodeid.encode()).short}/bot"


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(getattr(request, "param", "0.33.0-rc2")) as running:
        yield running


def built(ref: ModelName) -> ModelSpec:
    return a_model("bot", a_build(BASE, system="be kind"), push=ref, push_insecure=True)


def warnings(host: LiveHost) -> list[str]:
    return [event.message for event in host.events if isinstance(event, Noted)]


def manifest_at(registry: RunningRegistry, repository: str, tag: str) -> requests.Response:
    url = f"{registry.url}/v2/{repository}/manifests/{tag}"
    return requests.get(url, headers={"Accept": MANIFEST_TYPE}, timeout=PATIENCE_S)


def pushes(plan: HostPlan) -> list[str]:
    """What the registry is said to have in place of what is pushed."""
    assert all(isinstance(action, PushModel) for action in plan.actions)
    return [reason.observed for action in plan.actions for reason in action.because]


@pytest.mark.registry
@pytest.mark.parametrize("host", ["0.3.4", "0.12.11", "0.33.0-rc2"], indirect=True)
def test_what_was_pushed_is_seen_in_the_registry_and_kept_there_whoever_overwrites_or_removes_it(
    host: LiveHost, registry: RunningRegistry, repository: str
) -> None:
    ref = registry.name(f"{repository}:v1")
    models = [built(ref)]
    assert_converged(host, host.apply(models))
    assert warnings(host) == []
    assert host.plan(models).actions == ()
    pushed = manifest_at(registry, repository, "v1").content

    other = publish(registry, f"{repository}:v1", model=WEIGHTS_B)
    assert pushes(host.plan(models)) == [other.hex]
    host.options = RunOptions(costs=False, ask_registry=False)
    assert host.plan(models).actions == ()
    host.options = RunOptions(costs=False)
    assert_converged(host, host.apply(models))
    assert manifest_at(registry, repository, "v1").content == pushed

    url = f"{registry.url}/v2/{repository}/manifests/{Digest.of(pushed)}"
    requests.delete(url, timeout=PATIENCE_S).raise_for_status()
    assert pushes(host.plan(models)) == ["nothing"]
    assert_converged(host, host.apply(models))
    host.forget()
    assert host.plan(models).actions == ()


@pytest.mark.registry
@pytest.mark.parametrize("host", ["0.12.11", "0.33.0-rc2"], indirect=True)
def test_a_model_that_is_pulled_here_and_pushed_there_is_known_although_its_digest_changes(
    host: LiveHost, redirecting: RunningRegistry, repository: str
) -> None:
    """A registry's manifest has another layout than the one a server sends when it pushes the model on."""
    source = publish(redirecting, f"{repository}:v1", template=b"{{ .Prompt }}")
    ref = redirecting.name(f"{repository}-mirror:v1")
    pull = Pull(ref=redirecting.name(f"{repository}:v1"), insecure=True)
    models = [a_model("mario", pull, push=ref, push_insecure=True)]
    assert_converged(host, host.apply(models))
    assert Digest.of(manifest_at(redirecting, f"{repository}-mirror", "v1").content) != source
    assert host.plan(models).actions == ()
    host.forget()
    assert host.plan(models).actions == ()

    publish(redirecting, f"{repository}-mirror:v1", model=WEIGHTS_B)
    assert ids(host.plan(models).actions) == [f"push/{ref}"]
    assert_converged(host, host.apply(models))
    assert warnings(host) == []


@pytest.mark.registry
def test_what_the_registry_has_already_is_not_sent_when_the_model_had_to_be_made_again(
    host: LiveHost, redirecting: RunningRegistry, repository: str
) -> None:
    models = [built(redirecting.name(f"{repository}:v1"))]
    assert_converged(host, host.apply(models))
    host.stranger.delete("bot")
    assert reasons(host.plan(models)).keys() >= {"create/bot:latest", f"push/{models[0].push}"}
    report = host.apply(models)
    assert_converged(host, report)
    [outcome] = [result.outcome for result in report.results if isinstance(result.action, PushModel)]
    assert isinstance(outcome, Succeeded)
    assert not outcome.changed


@pytest.mark.registry
def test_a_registry_that_cannot_be_asked_from_here_is_told_of_and_what_we_remember_counts(
    host: LiveHost, redirecting: RunningRegistry, repository: str
) -> None:
    host.registries = {redirecting.host: "http://127.0.0.1:9"}
    models = [built(redirecting.name(f"{repository}:v1"))]
    assert_converged(host, host.apply(models))
    [warning] = warnings(host)
    assert warning.startswith("pushed, but not verified: ")
    plan = host.plan(models)
    assert plan.actions == ()
    [note] = plan.notes
    assert (note.unresolved, "whether that is still there is not known" in note.message) == (False, True)


@pytest.mark.registry
def test_without_registries_nothing_is_asked_and_that_is_told(
    host: LiveHost, redirecting: RunningRegistry, repository: str
) -> None:
    host.options = RunOptions(costs=False, ask_registry=False)
    host.registries = {redirecting.host: "no address at all"}
    models = [built(redirecting.name(f"{repository}:v1"))]
    assert_converged(host, host.apply(models))
    assert warnings(host) == ["pushed, but not verified: registries are not asked"]
    assert (host.plan(models).actions, host.plan(models).notes) == ((), ())


# with a registry that says whatever a test wants

WEIGHTS, CONFIG = Digest.of(b"weights"), Digest.of(b"config")
REF = "me/bot:v1"


def a_manifest(*, weights: Digest = WEIGHTS, indent: int | None = 2) -> bytes:
    """A registry manifest; with `indent` no server shows a digest that could be told from it."""
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": str(weights), "size": 7}
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": str(CONFIG), "size": 6}
    tree = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer]}
    return json.dumps(tree, indent=indent).encode()


OTHER = a_manifest(weights=Digest.of(b"other"))
GOOD, OLD, NONE = Reply(200, {}, a_manifest()), Reply(200, {}, OTHER), Reply(404)
SENT = streaming(
    {"status": "retrieving manifest"},
    {"status": f"pushing {WEIGHTS.hex[:12]}", "digest": str(WEIGHTS), "total": 7, "completed": 7},
    {"status": f"pushing {CONFIG.hex[:12]}", "digest": str(CONFIG), "total": 6, "completed": 6},
    {"status": "pushing manifest"},
    {"status": "success"},
)


@dataclass
class Pushed:
    """What became of one push. `digests` are those that were remembered; `sent` says that the server pushed."""

    session: Session
    outcome: Outcome
    digests: list[str]
    sent: bool
    looks: int


@contextmanager
def a_push(
    tmp_path: Path, *replies: Reply, digest: str = DIGEST, cancel: CancelToken | None = None
) -> Iterator[Pushed]:
    """Push to a registry that gives these replies, the last one for ever. Before the push it was asked once."""
    left = list(replies)

    def answer(request: Request) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    with run_server(answer) as server:
        ref = f"{server.host}/{REF}"
        listed = tagged({"bot:latest": digest, ref: digest})
        with (
            ScriptedHost(routes({"/api/tags": listed, "/api/push": SENT})) as host,
            at(host.url, tmp_path) as session,
        ):
            registries = RegistryCache(
                lambda: RegistryClient(endpoints={server.host: server.url}, timeout_s=PATIENCE_S)
            )
            session.change_run(registries=registries, options=RunOptions())
            if cancel is not None:
                session.change_run(cancel=cancel)
            outcome = session.do(push("bot", ref))
            known = session.host.ledger.load_pushes(host.url)
            sent = any(asked.path == "/api/push" for asked in host.asked)
            yield Pushed(
                session, outcome, list(chain.from_iterable(known.values())), sent, len(server.requests)
            )
            registries.close()


@pytest.mark.parametrize(
    "replies",
    [(OLD, GOOD), (NONE, NONE, NONE, NONE, GOOD), (OLD, OLD, OLD, GOOD)],
    ids=["at once", "after nothing", "after a cache ran out"],
)
def test_a_push_is_seen_by_its_blobs_also_when_a_cache_lags_behind(
    tmp_path: Path, replies: tuple[Reply, ...]
) -> None:
    with a_push(tmp_path, *replies) as pushed:
        assert isinstance(pushed.outcome, Succeeded)
        assert pushed.session.warnings == []
        assert pushed.digests == [DIGEST, Digest.of(a_manifest()).hex]


def test_a_push_of_what_the_registry_has_sends_nothing_and_is_remembered(tmp_path: Path) -> None:
    raw = a_manifest(indent=None)
    own = Digest.of(raw + b"\n").hex
    with a_push(tmp_path, Reply(200, {}, raw), digest=own) as pushed:
        assert (type(pushed.outcome), pushed.sent, pushed.looks) == (Succeeded, False, 1)
        assert pushed.digests == [own, Digest.of(raw).hex]


HAS_OTHER = f"the registry has {Digest.of(OTHER).hex[:12]}, which is other content"
BROKEN = f"manifest of REG/{REF}: the bytes have the digest {Digest.of(OTHER)}, not {WEIGHTS}"
LIES = {
    "other content": (OLD, f"was pushed as {DIGEST[:12]}, but {HAS_OTHER}"),
    "nothing": (NONE, "is not in the registry, although the server reported success"),
    "damaged": (
        Reply(200, {"Docker-Content-Digest": str(WEIGHTS)}, OTHER),
        f"was pushed, but REG: {BROKEN}",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_registry_that_has_something_else_fails_the_push_and_nothing_is_remembered(
    tmp_path: Path, lie: str
) -> None:
    reply, message = LIES[lie]
    with a_push(tmp_path, OLD, reply) as pushed:
        assert isinstance(pushed.outcome, Failed)
        error = re.sub(r"127\.0\.0\.1:\d+", "REG", pushed.outcome.error)
        assert error == f"gpu-1: 'REG/{REF}' {message}"
        assert pushed.outcome.hint
        assert (pushed.digests, pushed.sent) == ([], True)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_registry_that_does_not_say_leaves_a_push_done_and_not_verified(
    tmp_path: Path, status: int
) -> None:
    with a_push(tmp_path, Reply(status)) as pushed:
        assert isinstance(pushed.outcome, Succeeded)
        [warning] = pushed.session.warnings
        assert warning.startswith("pushed, but not verified: 127.0.0.1:")
        assert f"status {status}" in warning
        assert pushed.digests == [DIGEST]


def test_a_wish_to_stop_ends_the_looking(tmp_path: Path) -> None:
    class Stopped(CancelToken):
        def wait(self, timeout: float | None = None) -> bool:
            return True

    with a_push(tmp_path, OLD, cancel=Stopped()) as pushed:
        assert pushed.outcome == Interrupted(started=True)
        assert pushed.digests == []
