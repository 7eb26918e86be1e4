"""Pulled from a registry, pinned to it, pushed to it: with a real docker-registry, on servers of every version."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    VERSIONS,
    WEIGHTS,
    LiveHost,
    a_build,
    a_copy,
    a_model,
    assert_converged,
    failures,
    ids,
    reasons,
)
from msgspec.structs import replace
from patience import PATIENCE_S
from registry_fixture import RunningRegistry, push_model, run_registry

from ollamaops.manifest.types import ModelSpec, Policy, Pull
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import Fact, HostPlan, Plan, PullModel
from ollamaops.registry.client import RegistryClient

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)


# registries


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


def _path(purpose: str, version: str, model: str) -> str:
    """A repository of the test's own."""
    return f"{purpose}-{re.sub('[^a-z0-9]', '-', version.lower())}/{model}"


def _tiny(file: str) -> list[tuple[str, bytes]]:
    return [("model", (WEIGHTS / file).read_bytes()), ("system", b"from the registry")]


def _config(registry: RunningRegistry, path: str) -> Pull:
    return Pull(ref=registry.name(path), insecure=True)


CONFIG = (
    b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"1","file_type":"F32",'
    b'"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
)


@pytest.mark.registry
@every_version
def test_a_model_is_pulled_from_a_registry_and_follows_it_when_asked_to(
    host: LiveHost, version: str, registry: RunningRegistry
) -> None:
    path = _path("team", version, "mario:v1")
    push_model(registry, path, _tiny("tiny-a.gguf"), config=CONFIG)
    pulled = a_model("mario", _config(registry, path), update="latest")
    derived = a_model("bot", a_build("mario", system="mine"))
    assert_converged(host, host.apply([pulled, derived]))
    assert host.plan([pulled, derived]).actions == ()
    host.forget()
    assert host.plan([pulled, derived]).actions == ()
    first = host.stranger.tags()

    push_model(registry, path, _tiny("tiny-b.gguf"), config=CONFIG)
    found = reasons(host.plan([pulled, derived]))
    ref = registry.name(path).display
    assert found == {
        f"pull/{ref}": ["content"],
        "copy/mario:latest": ["base"],
        "create/bot:latest": ["base"],
    } or (found.keys() == {f"pull/{ref}", "copy/mario:latest", "create/bot:latest"})
    assert_converged(host, host.apply([pulled, derived]))
    now = host.stranger.tags()
    assert all(now[model] != first[model] for model in (ref, "mario:latest", "bot:latest"))
    assert host.plan([pulled, derived]).actions == ()
    assert host.requests_sent == 2


@pytest.mark.registry
@every_version
def test_a_model_is_pushed_once_and_again_when_it_changes(
    host: LiveHost, version: str, registry: RunningRegistry
) -> None:
    ref = registry.name(_path("push", version, "bot:v1"))

    def models(system: str) -> list[ModelSpec]:
        return [a_model("bot", a_build(BASE, system=system), push=ref, push_insecure=True)]

    report = host.apply(models("one"))
    assert_converged(host, report)
    assert ids(result.action for result in report.results)[-2:] == [f"copy/{ref}", f"push/{ref}"]
    assert host.plan(models("one")).actions == ()

    assert_converged(host, host.apply(models("two")))
    with RegistryClient(timeout_s=PATIENCE_S) as client:
        fetched = client.manifest(ref, insecure=True)
        assert any(client.blob(ref, digest, 100, insecure=True) == b"two" for digest in _small(fetched.blobs))
    assert host.plan(models("two")).actions == ()


def _small(blobs: object) -> list[Digest]:
    assert isinstance(blobs, dict)
    return [digest for digest, size_bytes in blobs.items() if size_bytes < 100]


@pytest.mark.registry
def test_a_plan_knows_what_it_would_download_and_what_is_there_already(
    newest: LiveHost, registry: RunningRegistry
) -> None:
    shared, path = _tiny("tiny-a.gguf"), _path("costs", "here", "one:v1")
    push_model(registry, path, shared, config=CONFIG)
    push_model(registry, path.replace("v1", "v2"), [*shared, ("license", b"x" * 1000)], config=CONFIG)
    one, two = (a_model(tag, _config(registry, path.replace("v1", tag))) for tag in ("v1", "v2"))
    newest.options = RunOptions()
    size = sum(len(data) for _, data in shared) + len(CONFIG)

    [pull, _] = newest.plan([one]).actions
    assert (pull.cost.download_bytes, pull.cost.present_bytes) == (size, 0)
    assert_converged(newest, newest.apply([one]))
    pull = newest.plan([one, two]).actions[0]
    assert (pull.cost.download_bytes, pull.cost.present_bytes) == (1000, size)


# pins


@pytest.mark.registry
@pytest.mark.parametrize("version", ["0.12.11", "0.33.0-rc2"])
@pytest.mark.parametrize("was_there", [True, False])
def test_content_that_is_not_what_was_pinned_never_stays(
    host: LiveHost, version: str, registry: RunningRegistry, was_there: bool
) -> None:
    path = _path("pin", f"{version}-{was_there}", "mario:v1")
    good = Digest.of(push_model(registry, path, _tiny("tiny-a.gguf"), config=CONFIG))
    ref = registry.name(path)
    pinned = ModelSpec(name=ref, source=_config(registry, path), digest=good)
    if was_there:
        assert_converged(host, host.apply([replace(pinned, digest=None)]))
    before = host.stranger.tags()
    cases = host.tasks([replace(pinned, digest=Digest.of(b"what we want"))])
    push_model(registry, path, _tiny("tiny-b.gguf"), config=CONFIG)

    pull = _pull_blindly(ref, before.get(ref.display))
    report = host.carry_out(Plan(hosts=(HostPlan(host="gpu-1", actions=(pull,)),)), cases)

    said = failures(report)[f"pull/{ref}"]
    assert "which is not the pinned content" in said
    hint = "only the registry can tell" if version == "0.12.11" else "the registry has changed"
    assert hint in said
    assert host.stranger.tags() == before


def _pull_blindly(ref: ModelName, digest: str | None) -> PullModel:
    """What is planned when the registry cannot be asked from here."""
    wanted = Digest.of(b"what we want").hex
    return PullModel(
        host="gpu-1", model=ref, insecure=True, pin=(wanted,), expects=(Fact(ref, digest),), retries=0
    )


@pytest.mark.registry
@every_version
def test_a_pin_that_the_registry_meets_is_met(
    host: LiveHost, version: str, registry: RunningRegistry
) -> None:
    path = _path("met", version, "mario:v1")
    first = Digest.of(push_model(registry, path, _tiny("tiny-a.gguf"), config=CONFIG))
    pinned = a_model("mario", _config(registry, path), digest=first)
    assert_converged(host, host.apply([pinned]))
    assert host.plan([pinned]).actions == ()

    second = Digest.of(push_model(registry, path, _tiny("tiny-b.gguf"), config=CONFIG))
    assert host.plan([pinned]).actions == ()
    moved_on = replace(pinned, digest=second)
    assert_converged(host, host.apply([moved_on]))
    assert host.plan([moved_on]).actions == ()
    assert not any("previous" in model for model in host.stranger.tags())


@pytest.mark.parametrize("left", ["still the old content", "other content", "no content", "nobody's"])
def test_previous_content_that_a_killed_run_left_behind_is_no_drift_and_gets_settled(
    newest: LiveHost, left: str
) -> None:
    """The run was killed while it pulled a pinned model, whose content was kept under a name of ours."""
    stranger = newest.stranger
    stranger.pull(BASE)
    good = stranger.tags()[BASE]
    pinned = a_model(BASE, digest=Digest(good))
    stranger.pull("all-minilm")
    aside = "gone:1-ollamaops-previous" if left == "nobody's" else f"{BASE}-ollamaops-previous"
    stranger.copy(BASE, aside)
    if left == "other content":
        stranger.copy("all-minilm", BASE)
    if left == "no content":
        stranger.delete(BASE)
    newest.policy = Policy(prune=(NamePattern.parse("*"),), ignore=(NamePattern.parse("all-minilm"),))
    newest.registries = {"registry.ollama.ai": "http://127.0.0.1:9"}  # nobody can be asked

    plan = newest.plan([pinned])
    assert not any("previous" in action_id for action_id in ids(plan.actions))
    assert plan.unmanaged == ()
    report = newest.apply([pinned, a_model("alias", a_copy("all-minilm"))])
    tags = stranger.tags()
    assert aside not in tags
    assert tags[BASE] == good, report
