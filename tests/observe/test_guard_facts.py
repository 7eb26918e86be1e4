"""Licenses of what would be pulled: asked of the registry when the policy names licenses, and only then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_host import BASE, LiveHost, a_build, a_host, a_model
from pulled_models import publish
from registry_fixture import RunningRegistry, run_registry

from ollamaops.manifest.types import ModelSpec, Policy, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.observe.host import licenses_of
from ollamaops.observe.registries import MAX_KEPT_BYTES
from ollamaops.observe.run import RunOptions

pytestmark = pytest.mark.registry
MIT = b"MIT License\n\nCopyright"
LLAMA = b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n\xff"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def host() -> Iterator[LiveHost]:
    with a_host(policy=Policy(licenses=("MIT",))) as host:
        yield host


def a_pull(registry: RunningRegistry, path: str) -> ModelSpec:
    name: ModelName = registry.name(path)
    return a_model(name.full, Pull(ref=name, insecure=True))


def said(host: LiveHost, model: ModelSpec) -> list[str]:
    return [f"{refusal.rule}: {refusal.message}" for refusal in host.plan([model]).refusals]


def test_a_pull_of_an_allowed_license_is_allowed_and_of_another_one_refused(
    host: LiveHost, registry: RunningRegistry
) -> None:
    publish(registry, "free/one:v1", license=MIT)
    publish(registry, "bound/one:v1", license=LLAMA)
    publish(registry, "silent/one:v1")
    free, bound, silent = (a_pull(registry, f"{path}/one:v1") for path in ("free", "bound", "silent"))
    assert said(host, free) == []
    assert said(host, silent) == []
    (refusal,) = said(host, bound)
    assert refusal == (
        f"licenses: '{bound.name}' has the license 'LLAMA 3.2 COMMUNITY LICENSE AGREEMENT', "
        "which policy.allow.licenses does not name"
    )
    host.options = RunOptions(costs=False, force=frozenset({"licenses"}))
    assert said(host, bound) == []


def test_what_is_there_already_is_not_asked_about(host: LiveHost, registry: RunningRegistry) -> None:
    publish(registry, "there/one:v1", license=LLAMA)
    model = a_pull(registry, "there/one:v1")
    host.policy = Policy()
    assert host.apply([model]).verified
    host.policy = Policy(licenses=("MIT",))
    assert said(host, model) == []


def test_a_registry_that_does_not_answer_or_know_is_no_reason_to_refuse(
    host: LiveHost, registry: RunningRegistry
) -> None:
    assert said(host, a_pull(registry, "nowhere/one:v1")) == []
    gone = ModelName.parse("127.0.0.1:9/a/b")
    assert said(host, a_model(gone.full, Pull(ref=gone, insecure=True))) == []


def test_a_text_that_cannot_be_had_or_is_too_long_is_not_known(
    host: LiveHost, registry: RunningRegistry
) -> None:
    publish(registry, "long/one:v1", license=b"x" * (MAX_KEPT_BYTES + 1))
    publish(registry, "lost/one:v1", license=b"soon to be gone")
    registry.stored_blob(Digest.of(b"soon to be gone")).unlink()
    with host.opened() as run:
        for path in ("long/one:v1", "lost/one:v1"):
            assert licenses_of(run.registries, registry.name(path), insecure=True) == ()


def test_the_license_of_a_base_on_the_host_counts_for_what_is_made_from_it(host: LiveHost) -> None:
    host.stranger.create_from_file("base", "tiny-a.gguf")
    host.stranger.create("licensed", "base", license="Secret License\nno use")
    host.stranger.create("bot", "licensed", system="old")
    assert said(host, a_model("bot", a_build("licensed", system="new"))) == [
        "licenses: 'bot:latest' has the license 'Secret License', which policy.allow.licenses does not name"
    ]
    assert said(host, a_model("bot", a_build("base", system="new"))) == []


def test_declared_licenses_are_checked_before_anything_is_made(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    bot = a_model("bot", a_build(BASE, licenses=("MIT", "Top secret")))
    assert said(host, bot) == [
        "licenses: 'bot:latest' has the license 'Top secret', which policy.allow.licenses does not name"
    ]
