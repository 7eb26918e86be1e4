"""What `lock` and `outdated` say, word for word, in the cases that need a registry of their own to come about."""

from __future__ import annotations

import json
from typing import cast

import pytest
from msgspec.structs import replace

from ollamaops.lockfile.changes import Finding, LockStep, LockUpdate
from ollamaops.lockfile.lock import Lock, LockEntry
from ollamaops.lockfile.outdated import Change, Freshness, FreshnessState, HostFreshness
from ollamaops.manifest.types import Update
from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import UnreachedHost
from ollamaops.registry.documents import MANIFEST_TYPE, Layer, LayerChange, RegistryManifest
from ollamaops.report.lock_text import lock_check_to_json, render_lock_check, render_lock_update
from ollamaops.report.outdated_text import outdated_to_json, render_outdated

NAME = ModelName.parse("qwen3:32b")
WEIGHTS = Layer("application/vnd.ollama.image.model", Digest("a" * 64), 20_201_253_588)
LICENSE = Layer("application/vnd.ollama.image.license", Digest("b" * 64), 11_000)
CONFIG = Layer("application/vnd.docker.container.image.v1+json", Digest("c" * 64), 480)
ENTRY = LockEntry(Digest("d" * 64), RegistryManifest(MANIFEST_TYPE, CONFIG, (WEIGHTS, LICENSE)))


def an_update(*steps: LockStep) -> str:
    return render_lock_update(LockUpdate(lock=Lock(), steps=steps), "ollamaops.lock", written=True)


def test_an_update_tells_every_state_of_an_entry() -> None:
    changed = LayerChange(
        "weights", (replace(WEIGHTS, digest=Digest("e" * 64)),), (WEIGHTS,), WEIGHTS.size_bytes
    )
    steps = (
        LockStep(ref=NAME, state="added", after=ENTRY),
        LockStep(ref=NAME, state="updated", before=ENTRY, after=ENTRY, changes=(changed,)),
        LockStep(ref=NAME, state="removed", before=ENTRY),
        LockStep(ref=NAME, state="failed", before=ENTRY, error="no answer", hint="wait"),
        LockStep(ref=NAME, state="failed", error="no answer"),
        LockStep(ref=NAME, state="kept", before=ENTRY, after=ENTRY),
    )
    assert an_update(*steps) == (
        "+ qwen3:32b: locked at dddddddddddd, 20.2 GB in 3 layers\n"
        "~ qwen3:32b: updated: dddddddddddd → dddddddddddd: weights 20.2 GB → 20.2 GB: 20.2 GB new\n"
        "- qwen3:32b: removed, no longer declared\n"
        "! qwen3:32b: kept at dddddddddddd, 20.2 GB in 3 layers: no answer\n"
        "    hint: wait\n"
        "! qwen3:32b: not locked: no answer\n"
        "1 added, 1 updated, 1 removed, 2 failed, 1 kept; ollamaops.lock written\n"
    )


def test_layers_in_another_order_are_a_change_without_bytes() -> None:
    step = LockStep(
        ref=NAME, state="updated", before=ENTRY, after=ENTRY, changes=(LayerChange("license", (), (), 0),)
    )
    assert "license in another order: nothing new" in an_update(step)


def test_a_check_says_everything_as_json_too() -> None:
    finding = Finding(ref=NAME, state="damaged", entry=ENTRY, forged=((WEIGHTS, None),), error="why")
    (model,) = json.loads(json.dumps(lock_check_to_json([finding], "f")))["models"]
    locked = {
        "kind": "weights",
        "digest": f"sha256:{'a' * 64}",
        "size_bytes": WEIGHTS.size_bytes,
        "media_type": WEIGHTS.media_type,
    }
    assert model["forged"] == [{"locked": locked, "registry": None}]


def test_what_a_registry_says_cannot_act_on_the_terminal() -> None:
    finding = Finding(ref=NAME, state="unknown", entry=ENTRY, error="\x1b[2Jgone")
    assert "\x1b" not in render_lock_check([finding], "f")
    host = HostFreshness(
        host="gpu-1", models=(Freshness(ref=NAME, model=NAME, state="unknown", error="\x1b[2J"),)
    )
    assert "\x1b" not in render_outdated([host], [])


def outdated(size_bytes: int | None = 20_201_253_588, update: Update = "locked") -> Freshness:
    blobs = None if size_bytes is None else {WEIGHTS.digest: size_bytes} if size_bytes else {}
    return Freshness(
        ref=NAME,
        model=NAME,
        state="outdated",
        update=update,
        changes=(Change("weights", size_bytes or 0), Change("config", 0)),
        unclear=("system", "license"),
        new_blobs=blobs,
    )


@pytest.mark.parametrize(
    ("size_bytes", "said"), [(20_201_253_588, "20.2 GB"), (0, "nothing"), (None, "size not known")]
)
def test_the_download_of_an_update(size_bytes: int | None, said: str) -> None:
    host = HostFreshness(host="gpu-1", models=(outdated(size_bytes),))
    row = render_outdated([host], []).splitlines()[1]
    assert row == f"qwen3:32b  gpu-1  outdated  weights, metadata; not known: system or license  {said}"


def test_a_table_that_is_too_wide_becomes_lines() -> None:
    hosts = [HostFreshness(host=name, models=(outdated(),)) for name in ("gpu-1", "gpu-2")]
    away = UnreachedHost(host="gpu-3", error="gpu-3: connection refused", hint="start it")
    assert render_outdated(hosts, [away], width=60).splitlines() == [
        "~ qwen3:32b on gpu-1 and gpu-2: outdated: weights, metadata;",
        "    not known: system or license: 20.2 GB each",
        "! gpu-3: not reached: connection refused",
        "    hint: start it",
        "1 pulled model on 2 hosts: 2 outdated; 40.4 GB to download; 1 host not reached",
        "hint: ollamaops lock --update qwen3:32b, then ollamaops apply",
    ]
    table = render_outdated(hosts, [away], width=100).splitlines()
    assert table[0].split() == ["model", "hosts", "state", "what", "changed", "download"]


def test_a_fleet_that_is_up_to_date_is_one_line() -> None:
    host = HostFreshness(host="gpu-1", models=(Freshness(ref=NAME, model=NAME, state="current"),))
    assert render_outdated([host], [], width=20) == "1 pulled model on 1 host: 1 current\n"


def test_a_registry_that_could_not_be_asked_is_counted_once_and_its_way_out_told_once() -> None:
    names = [ModelName.parse(f"registry.corp/team/{path}") for path in ("mario", "luigi")]
    models = tuple(
        Freshness(ref=name, model=name, state=state, error="no", hint="start it", is_answered=False)
        for name, state in zip(names, cast("tuple[FreshnessState, ...]", ("unknown", "missing")), strict=True)
    )
    text = render_outdated([HostFreshness(host="gpu-1", models=models)], [])
    assert text.splitlines()[-2:] == [
        "2 pulled models on 1 host: 1 missing, 1 unknown; 1 registry could not be asked",
        "hint: start it",
    ]


def test_a_tag_that_is_gone_is_told_whether_the_host_has_the_model_or_not() -> None:
    kept = Freshness(ref=NAME, model=NAME, state="gone", is_gone=True, error="status 404", hint="check")
    host = HostFreshness(host="gpu-1", models=(kept, replace(kept, state="missing")))
    assert render_outdated([host], []).splitlines()[1:] == [
        "qwen3:32b  gpu-1  gone     the registry has no such model or tag any more: status 404",
        "qwen3:32b  gpu-1  missing  the registry has no such model or tag: status 404",
        "1 pulled model on 1 host: 1 missing, 1 gone",
        "hint: what is gone stays on its hosts: push it again, or choose another tag",
    ]
    (answered,) = json.loads(json.dumps(outdated_to_json([host], [])))["hosts"]
    assert [model["registry_answered"] for model in answered["models"]] == [True, True]


def test_colors_are_only_colors() -> None:
    host = HostFreshness(host="gpu-1", models=(outdated(),))
    plain, colored = (render_outdated([host], [], color=color) for color in (False, True))
    assert colored != plain
    assert _without_colors(colored) == plain


def _without_colors(text: str) -> str:
    parts = text.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def test_many_models_are_not_listed_in_the_hint() -> None:
    names = [ModelName.parse(f"model-{number}") for number in range(4)]
    models = tuple(replace(outdated(), ref=name, model=name) for name in names)
    host = HostFreshness(host="gpu-1", models=models)
    assert render_outdated([host], []).endswith("hint: ollamaops lock --update, then ollamaops apply\n")


def test_json_tells_unknown_sizes_from_none() -> None:
    host = HostFreshness(host="gpu-1", models=(outdated(None), outdated(0)))
    (answered,) = json.loads(json.dumps(outdated_to_json([host], [])))["hosts"]
    assert [model["download_bytes"] for model in answered["models"]] == [None, 0]
