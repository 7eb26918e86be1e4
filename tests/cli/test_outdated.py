"""`ollamaops outdated` against a real registry and servers of two eras: the kind of change, the bytes, no pull."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from patience import PATIENCE_S
from pulled_models import WEIGHTS_A, WEIGHTS_B, World, entry, publish
from registry_fixture import MANIFEST_TYPE, RunningRegistry, run_registry

from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

NOWHERE = "localhost:1"
LAYERS = {
    "template": b"{{ .System }}{{ .Prompt }}",
    "system": b"Be kind.",
    "params": b'{"num_ctx":4096,"stop":["<a>","<b>"],"temperature":0.1}',
    "license": b"MIT",
    "messages": b'[{"role":"user","content":"hi"}]',
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


@pytest.fixture
def old() -> Iterator[Sandbox]:
    """A server that writes pulled manifests anew."""
    with Sandbox(as_version="0.12.11") as sandbox:
        yield sandbox


@pytest.fixture
def new() -> Iterator[Sandbox]:
    with Sandbox(as_version="0.33.0") as sandbox:
        yield sandbox


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: Sandbox, new: Sandbox) -> World:
    return World(tmp_path, capsys, hosts={"old": {"url": old.url}, "new": {"url": new.url}})


@pytest.fixture
def mario(registry: RunningRegistry, request: pytest.FixtureRequest) -> str:
    """`team…/mario:v1`, published for this test alone."""
    path = f"team-{Digest.of(request.node.nodeid.encode()).short}/mario:v1"
    publish(registry, path, **LAYERS)
    return path


@pytest.fixture
def applied(world: World, registry: RunningRegistry, mario: str) -> World:
    world.declare(entry(registry, mario))
    assert world.run("apply", "-y")[0] == 0
    world.forget()
    return world


def ask(world: World, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    """Exit code, and for each host what is said of its only model."""
    code, text = world.run("outdated", *arguments, "-o", "json")
    hosts = json.loads(text)["hosts"]
    return code, {host["host"]: host["models"][0] for host in hosts if host["models"]}


def test_what_was_just_pulled_is_current_on_every_era(applied: World) -> None:
    code, found = ask(applied, "--detailed-exitcode")
    assert code == 0
    assert {host: model["state"] for host, model in found.items()} == {"old": "current", "new": "current"}
    assert found["old"]["digest"] != found["new"]["digest"] == found["new"]["registry_digest"]
    text = applied.run("outdated")[1]
    assert text == "1 pulled model on 2 hosts: 2 current\n"
    assert "current" in applied.run("outdated", "-v")[1].splitlines()[1]


@pytest.mark.parametrize(
    ("kind", "layer", "data"),
    [
        ("weights", "model", WEIGHTS_B),
        ("template", "template", b"{{ .Prompt }}"),
        ("system", "system", b"Be rude."),
        ("parameters", "params", b'{"num_ctx":8192}'),
        ("license", "license", b"Apache"),
        ("messages", "messages", b"[]"),
    ],
)
@pytest.mark.parametrize("has_lock", [False, True], ids=["shown", "locked"])
def test_the_kind_of_change_and_its_bytes_are_told(
    applied: World, registry: RunningRegistry, mario: str, kind: str, layer: str, data: bytes, has_lock: bool
) -> None:
    if has_lock:
        assert applied.run("lock")[0] == 0
    publish(registry, mario, **{"model": WEIGHTS_A, **LAYERS, layer: data})
    code, found = ask(applied, "--detailed-exitcode")
    assert code == 2
    changes = [{"kind": kind, "download_bytes": len(data)}]
    for host in ("old", "new"):
        said = found[host]
        assert (said["state"], said["changes"], said["unclear"]) == ("outdated", changes, [])
        assert (said["download_bytes"], said["is_locked"]) == (len(data), has_lock)


@pytest.mark.parametrize("layer", ["template", "system", "params", "license", "messages"])
def test_a_layer_that_is_no_longer_there_is_a_change_without_bytes(
    applied: World, registry: RunningRegistry, mario: str, layer: str
) -> None:
    publish(registry, mario, **{kind: data for kind, data in LAYERS.items() if kind != layer})
    code, found = ask(applied)
    assert code == 0
    (kind,) = {change["kind"] for model in found.values() for change in _list(model["changes"])}
    assert kind == {"params": "parameters"}.get(layer, layer)
    assert {model["download_bytes"] for model in found.values()} == {0}


def test_nothing_is_pulled(
    applied: World, registry: RunningRegistry, mario: str, old: Sandbox, new: Sandbox
) -> None:
    publish(registry, mario, model=WEIGHTS_B)
    before = _tags(old), _tags(new)
    applied.run("outdated")
    assert (_tags(old), _tags(new)) == before


def test_another_manifest_of_the_same_layers_is_no_update(
    applied: World, registry: RunningRegistry, mario: str
) -> None:
    repository, _, tag = mario.partition(":")
    url = f"{registry.url}/v2/{repository}/manifests/{tag}"
    raw = requests.get(url, headers={"Accept": MANIFEST_TYPE}, timeout=PATIENCE_S).json()
    registry.put_manifest(repository, tag, json.dumps({**raw, "annotations": {"by": "a mirror"}}).encode())
    assert ask(applied, "--detailed-exitcode")[0] == 0


def test_blobs_that_models_share_are_downloaded_once(
    applied: World, registry: RunningRegistry, mario: str
) -> None:
    luigi = mario.replace("mario", "luigi")
    publish(registry, luigi, **LAYERS)
    applied.declare(entry(registry, mario, update="latest"), entry(registry, luigi, update="never"))
    assert applied.run("apply", "-y")[0] == 3  # luigi is not there, and may not be pulled
    applied.declare(entry(registry, mario), entry(registry, luigi))
    assert applied.run("apply", "-y")[0] == 0
    for path in (mario, luigi):
        publish(registry, path, **{**LAYERS, "model": WEIGHTS_B})
    document = json.loads(applied.run("outdated", "-o", "json")[1])
    assert {host["download_bytes"] for host in document["hosts"]} == {len(WEIGHTS_B)}
    assert {model["download_bytes"] for host in document["hosts"] for model in host["models"]} == {
        len(WEIGHTS_B)
    }


def test_the_table_says_what_where_and_what_to_do(
    applied: World, registry: RunningRegistry, mario: str
) -> None:
    publish(registry, mario, **{**LAYERS, "model": WEIGHTS_B, "license": b"Apache"})
    name = f"{registry.host}/{mario}"
    code, text = applied.run("outdated")
    assert code == 0
    width = len(name)
    assert text.splitlines() == [
        f"{'model':{width}}  hosts        state     what changed      download",
        f"{name}  new and old  outdated  weights, license  115 kB each",
        "1 pulled model on 2 hosts: 2 outdated; 230 kB to download",
        "hint: models with update: missing stay as they are: set update: latest, or write a lock",
    ]


@pytest.mark.parametrize(
    ("update", "hint"),
    [
        ("locked", "hint: ollamaops lock --update {name}, then ollamaops apply"),
        ("latest", "hint: ollamaops apply pulls what has update: latest"),
    ],
)
def test_the_hint_fits_how_the_model_is_updated(
    applied: World, registry: RunningRegistry, mario: str, update: str, hint: str
) -> None:
    publish(registry, mario, model=WEIGHTS_B)
    applied.declare(entry(registry, mario, update=update))
    text = applied.run("outdated")[1]
    assert text.splitlines()[-1] == hint.format(name=f"{registry.host}/{mario}")


def test_a_mirror_is_known_by_its_own_name(world: World, registry: RunningRegistry, mario: str) -> None:
    world.declare({"name": "mirror", "pull": f"{registry.host}/{mario}", "insecure": True})
    assert world.run("apply", "-y")[0] == 0
    publish(registry, mario, model=WEIGHTS_B)
    _, found = ask(world)
    assert {(model["model"], model["ref"], model["state"]) for model in found.values()} == {
        ("mirror:latest", f"{registry.host}/{mario}", "outdated")
    }


def test_a_model_that_is_not_there_is_missing_and_not_outdated(
    world: World, registry: RunningRegistry, mario: str
) -> None:
    world.declare(entry(registry, mario))
    code, found = ask(world, "--detailed-exitcode")
    assert (code, {model["state"] for model in found.values()}) == (0, {"missing"})


def test_models_that_are_never_pulled_are_left_out(
    applied: World, registry: RunningRegistry, mario: str
) -> None:
    publish(registry, mario, model=WEIGHTS_B)
    applied.declare(entry(registry, mario, update="never"))
    assert applied.run("outdated", "--detailed-exitcode") == (0, "0 pulled models on 2 hosts\n")


def test_a_registry_that_cannot_be_reached_leaves_it_unknown(
    applied: World, registry: RunningRegistry, mario: str, old: Sandbox
) -> None:
    copied = {"source": f"{registry.host}/{mario}", "destination": f"{NOWHERE}/{mario}"}
    requests.post(f"{old.url}/api/copy", json=copied, timeout=PATIENCE_S).raise_for_status()
    applied.declare(entry(registry, mario), {"name": f"{NOWHERE}/{mario}", "insecure": True})
    publish(registry, mario, model=WEIGHTS_B)
    code, text = applied.run("outdated", "--detailed-exitcode", "-v")
    assert code == 3
    assert "2 pulled models on 2 hosts: 2 outdated, 1 missing, 1 unknown" in text
    assert "connection refused" in text


def test_registries_that_cannot_be_asked_count_also_for_models_that_no_host_has(world: World) -> None:
    world.declare(
        {"name": f"{NOWHERE}/team/dead:v1", "insecure": True}, {"name": "no-such-host.invalid/team/x:v1"}
    )
    code, text = world.run("outdated")
    assert code == 3
    assert "2 pulled models on 2 hosts: 4 missing; 2 registries could not be asked" in text


def test_a_tag_that_was_deleted_upstream_is_gone_and_not_unknown(
    applied: World, registry: RunningRegistry, mario: str, old: Sandbox
) -> None:
    luigi, nobody = mario.replace("mario", "luigi"), mario.replace("mario", "nobody")
    copied = {"source": f"{registry.host}/{mario}", "destination": f"{registry.host}/{luigi}"}
    requests.post(f"{old.url}/api/copy", json=copied, timeout=PATIENCE_S).raise_for_status()
    applied.declare(entry(registry, luigi), entry(registry, nobody))
    code, text = applied.run("outdated")
    assert code == 0
    assert "gone     the registry has no such model or tag any more: " in text
    assert "missing  the registry has no such model or tag: " in text
    assert "2 pulled models on 2 hosts: 3 missing, 1 gone\n" in text
    assert applied.run("outdated", "--detailed-exitcode")[0] == 2


@pytest.mark.usefixtures("hurry")
def test_a_host_that_cannot_be_reached_is_told_and_the_others_are_judged(
    applied: World, registry: RunningRegistry, mario: str, old: Sandbox
) -> None:
    publish(registry, mario, model=WEIGHTS_B)
    old.stop()
    code, text = applied.run("outdated", "--detailed-exitcode")
    assert code == 3
    assert "! old: not reached: " in text
    assert text.splitlines()[-2].endswith("1 outdated; 115 kB to download; 1 host not reached")
    code, text = applied.run("outdated", "-o", "json")
    assert [(host["host"], host["reached"]) for host in json.loads(text)["hosts"]] == [
        ("new", True),
        ("old", False),
    ]


def test_a_model_that_cannot_be_shown_is_judged_by_its_blobs(
    applied: World, registry: RunningRegistry, mario: str, old: Sandbox
) -> None:
    publish(registry, mario, **{**LAYERS, "license": b"Apache"})
    weights = Digest.of(WEIGHTS_A)
    (blob,) = Path(old.store.blob_path(str(weights))).parent.glob(f"*{weights.hex}")
    blob.unlink()
    code, found = ask(applied, "--host", "old")
    assert code == 0
    kinds = {change["kind"] for change in _list(found["old"]["changes"])}
    assert kinds == {"weights", "license"}
    assert set(_list(found["old"]["unclear"])) == {
        "projector",
        "adapter",
        "template",
        "system",
        "parameters",
        "messages",
    }


def test_a_layer_that_the_registry_does_not_hand_out_leaves_its_kind_unclear(
    applied: World, registry: RunningRegistry, mario: str
) -> None:
    template = b"{{ .Prompt }} for " + mario.encode()
    luigi = mario.replace("mario", "luigi")
    publish(registry, luigi, template=template)
    applied.declare(entry(registry, mario), entry(registry, luigi))
    assert applied.run("apply", "-y")[0] == 0
    publish(registry, mario, **{**LAYERS, "template": template})
    registry.stored_blob(Digest.of(template)).unlink()
    applied.declare(entry(registry, mario))
    _, text = applied.run("outdated")
    assert "outdated  not known: template  nothing" in text


def test_without_registries_there_is_nothing_to_tell(world: World) -> None:
    world.declare()
    assert world.run("outdated", "--no-registry")[0] == 64


def _list(value: object) -> list[Any]:
    assert isinstance(value, list)
    return value


def _tags(host: Sandbox) -> object:
    return requests.get(f"{host.url}/api/tags", timeout=PATIENCE_S).json()
