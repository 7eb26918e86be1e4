"""The ledger on real kinds of servers: every version keeps it byte for byte, and nobody takes it for a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from breadth import in_turn
from live_host import BASE, LiveHost, a_build, a_host, a_model, an_absence, ids, small_manifest
from msgspec.structs import replace

from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_tasks
from ollamaops.errors import StateError
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.manifest.types import ModelSpec, Policy
from ollamaops.names import Digest, NamePattern
from ollamaops.observe.ledger_model import LedgerModel, ledger_weights
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.results import RunReport
from ollamaops.state.ledger_document import LEDGER_NAME, parse_document
from ollamaops.state.records import Fingerprint, ModelRecord
from ollamaops.state.server_ledger import ServerLedger

pytestmark = in_turn("host")

VERSIONS = ("0.3.4", "0.5.7", "0.12.11", "0.33.0-rc2")
LEDGER = "ollamaops-ledger:state"
WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as host:
        yield host


@pytest.fixture
def client(host: LiveHost) -> Iterator[OllamaClient]:
    with OllamaClient.connect(host.sandbox.url, host_name="gpu-1") as client:
        yield client


def a_ledger(client: OllamaClient, *, writing: bool = True) -> ServerLedger:
    return ServerLedger(
        LedgerModel(client), writing=writing, now=lambda: datetime.now(UTC), pause=lambda _: None
    )


def a_record(*models: str, digest: str = "d" * 64) -> dict[str, ModelRecord]:
    fingerprint = Fingerprint("f" * 32, "f" * 32)
    return {
        model: ModelRecord(how="pulled", fingerprint=fingerprint, digest=digest, at="t") for model in models
    }


def run_apply(host: LiveHost, models: list[ModelSpec], *, state: str = "server") -> RunReport:
    tasks = tuple(replace(task, state=state) for task in host.tasks(models))
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
        assert not plan.refusals
        return apply_tasks(plan, tasks, run)


def planned(host: LiveHost, models: list[ModelSpec]) -> list[str]:
    tasks = tuple(replace(task, state="server") for task in host.tasks(models))
    with host.opened() as run:
        plan = plan_tasks(tasks, run)
    return ids(plan.actions)


# the weights


def test_the_weights_have_the_form_that_llama_quantize_has_been_seen_to_copy(tmp_path: Path) -> None:
    (tmp_path / "ours.gguf").write_bytes(ledger_weights())
    ours, seen = read_gguf(tmp_path / "ours.gguf"), read_gguf(WEIGHTS / "tiny-a.gguf")
    require_complete(ours, tmp_path / "ours.gguf")
    assert list(ours.metadata) == list(seen.metadata)
    assert ours.types == seen.types
    assert [(tensor.name, tensor.shape, tensor.type_name) for tensor in ours.tensors] == [
        (tensor.name, tensor.shape, tensor.type_name) for tensor in seen.tensors
    ]
    said = {**ours.metadata, "general.name": "tiny-a"}
    assert said == dict(seen.metadata)


def test_the_weights_are_always_the_same_bytes() -> None:
    assert Digest.of(ledger_weights()).hex == (
        "325ab13e35551847d04cc0d11cb0abbf066eeb64c2a655d97d570a917fca8e7b"
    )


# the text


def test_any_length_of_text_comes_back_byte_for_byte(client: OllamaClient) -> None:
    model = LedgerModel(client)
    assert model.digest() is None
    digests = set()
    for length in (1, 1000, 500_000, 3):
        text = "ollamaops ledger 1: " + "aZ09+/=" * length
        model.write(text)
        digests.add(model.digest())
        assert model.read() == text
        assert LedgerModel(client).read() == text
    assert len(digests) == 4


def test_the_text_grows_no_licenses_and_no_layers_however_often_it_is_written(client: OllamaClient) -> None:
    ledger = a_ledger(client)
    ledger.remember("h", a_record("a"))
    size = {tagged.name: tagged.size_bytes for tagged in client.tags()}[LEDGER]
    for number in range(8):
        ledger.remember("h", a_record("a", digest=f"{number:064}"))
    after = {tagged.name: tagged.size_bytes for tagged in client.tags()}[LEDGER]
    assert abs(after - size) < 400
    assert client.show(LEDGER_NAME).licenses == ""


def test_facts_written_by_one_controller_are_read_by_another(client: OllamaClient) -> None:
    a_ledger(client).remember(
        "h", a_record(*(f"registry.ollama.ai/library/m{number}:latest" for number in range(200)))
    )
    assert len(a_ledger(client, writing=False).load("h")) == 200


@pytest.mark.parametrize("words", [{"system": "You are a pirate."}, {}])
def test_somebody_elses_model_of_that_name_is_left_alone(
    host: LiveHost, client: OllamaClient, words: dict[str, str]
) -> None:
    host.stranger.pull(BASE)
    host.stranger.create(LEDGER, BASE, **words)
    before = host.stranger.tags()
    with pytest.raises(StateError, match="gpu-1: 'ollamaops-ledger:state' is not a usable ledger"):
        a_ledger(client).remember("h", a_record("a"))
    assert host.stranger.tags() == before


def test_a_ledger_that_was_deleted_is_made_anew_with_what_this_run_knows(
    host: LiveHost, client: OllamaClient
) -> None:
    ledger = a_ledger(client)
    ledger.remember("h", a_record("a"))
    host.stranger.delete(LEDGER)
    ledger.remember("h", a_record("b"))
    assert sorted(a_ledger(client).load("h")) == ["a", "b"]


def test_a_ledger_whose_weights_are_gone_is_made_anew(host: LiveHost, client: OllamaClient) -> None:
    a_ledger(client).remember("h", a_record("a"))
    for blob in (host.sandbox.store.root / "blobs").iterdir():
        if blob.stat().st_size > 100_000:
            blob.unlink()
    ledger = a_ledger(client)
    kept = ["a"] if host.version in {"0.32.15", "0.33.0-rc2"} else []  # newer servers show it from memory
    assert list(ledger.load("h")) == kept
    ledger.remember("h", a_record("b"))
    assert list(a_ledger(client).load("h")) == [*kept, "b"]
    host.sandbox.restart()
    assert list(a_ledger(client).load("h")) == [*kept, "b"]


def test_two_controllers_that_write_at_once_lose_nothing(host: LiveHost) -> None:
    with ExitStack() as stack:
        ledgers = [
            a_ledger(stack.enter_context(OllamaClient.connect(host.sandbox.url, host_name="gpu-1")))
            for _ in range(2)
        ]

        failures: list[StateError] = []

        def write(who: int) -> None:
            try:
                for number in range(5):
                    ledgers[who].remember("h", a_record(f"{who}-{number}"))
            except StateError as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ledger in (*ledgers, *ledgers):
            ledger.settle()
        assert failures == []
        assert sorted(ledgers[0].load("h")) == sorted(
            f"{who}-{number}" for who in range(2) for number in range(5)
        )


# whole runs


def test_a_second_controller_without_any_memory_has_nothing_to_do(host: LiveHost) -> None:
    report = run_apply(host, small_manifest())
    assert report.hosts[0].verified, report.hosts[0].notes
    assert host.ledger.load("gpu-1") == {}
    tags = host.stranger.tags()
    assert planned(host, small_manifest()) == []
    assert host.stranger.tags() == tags


def test_planning_never_writes_to_the_ledger_of_a_host(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    assert planned(host, [a_model(BASE), a_model("bot", a_build(BASE, system="s"))]) == ["create/bot:latest"]
    assert LEDGER not in host.stranger.tags()


def test_a_run_without_anything_to_do_writes_no_ledger(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    run_apply(host, [a_model(BASE)])
    assert LEDGER not in host.stranger.tags()


def test_the_ledger_is_no_drift_and_survives_every_prune(host: LiveHost) -> None:
    run_apply(host, small_manifest())
    for prune in ("owned", (NamePattern.parse("*"), NamePattern.parse("ollamaops-ledger:*"))):
        host.policy = Policy(prune=prune)
        assert planned(host, small_manifest()) == []
    host.policy = Policy()
    tasks = host.tasks(small_manifest(), [an_absence("ollamaops-*:*")])
    with host.opened() as run:
        (plan,) = plan_tasks(tasks, run).hosts
    assert (plan.actions, plan.unmanaged) == ((), ())


def test_what_one_controller_made_another_one_prunes(host: LiveHost) -> None:
    run_apply(host, small_manifest())
    host.policy = Policy(prune="owned")
    run_apply(host, [a_model(BASE)])
    assert set(host.stranger.tags()) == {BASE, LEDGER}


def test_the_lock_is_given_back_at_the_end(host: LiveHost, client: OllamaClient) -> None:
    run_apply(host, [a_model(BASE)])
    assert parse_document(client.show(LEDGER_NAME).system).lock_owner is None
