"""Models that share weights: servers list one of them in memory for all, and it may be any of them that is in use."""

from __future__ import annotations

import pytest
import requests
from breadth import in_turn
from live_host import BASE, VERSIONS, LiveHost, a_build, a_copy, a_model, assert_converged, name
from patience import PATIENCE_S

from ollamaops.manifest.types import ModelSpec, Policy

pytestmark = in_turn("version")
every_version = pytest.mark.parametrize("version", VERSIONS)


def models(two: bool | None, one: bool | None = None, system: str = "s") -> list[ModelSpec]:
    return [
        a_model("one", a_build(BASE, parameters={"num_ctx": 512}), resident=one),
        a_model("two", a_copy("one"), resident=two),
        a_model("three", a_build("one", system=system)),
    ]


def use(host: LiveHost, model: str) -> None:
    body = {"model": model, "prompt": "hi", "stream": False, "keep_alive": "10m"}
    requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S).raise_for_status()


def in_memory(host: LiveHost) -> list[str]:
    return [
        one["name"] for one in requests.get(f"{host.sandbox.url}/api/ps", timeout=PATIENCE_S).json()["models"]
    ]


@every_version
def test_a_model_in_use_under_another_name_is_busy(host: LiveHost) -> None:
    assert_converged(host, host.apply(models(None)))
    for used in ("one", "three"):
        use(host, used)
    assert in_memory(host) == ["one:latest"]

    host.policy = Policy(busy="refuse")
    plan = host.plan(models(None, system="changed"))
    assert [(refusal.rule, refusal.model) for refusal in plan.refusals] == [("busy", name("three"))]

    host.policy = Policy()
    assert_converged(host, host.apply(models(None, one=True)))
    host.policy = Policy(busy="refuse")  # what is kept in memory for good says nothing of use
    assert host.plan(models(None, one=True, system="changed")).refusals == ()


@every_version
def test_what_shares_a_resident_is_not_unloaded_with_it(host: LiveHost) -> None:
    for _ in range(2):
        assert_converged(host, host.apply(models(False, one=True)))
        assert in_memory(host) == ["one:latest"]


@every_version
def test_what_is_in_memory_under_another_name_is_not_called_as_declared(host: LiveHost) -> None:
    assert_converged(host, host.apply(models(False)))
    use(host, "one")
    use(host, "two")
    run = host.run(models(False))
    assert run.exit_code == 3
    assert in_memory(host) == ["one:latest"]
    assert [note.model for note in run.hosts[0].notes if note.lasting] == [name("two")]

    assert_converged(host, host.apply(models(False, one=False)))
    assert in_memory(host) == []
