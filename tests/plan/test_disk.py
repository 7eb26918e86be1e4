"""The rule `disk`: a plan that does not fit is refused in numbers, before anything moves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ollamaops.cli.main import run
from ollamaops.files.location import FileInfo, Location
from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull, WeightsFile
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import (
    Action,
    Blob,
    Cost,
    CreateModel,
    DeleteModel,
    HostPlan,
    PullModel,
    Recipe,
    UploadBlob,
)
from ollamaops.plan.desired import build_desired
from ollamaops.plan.disk import refuse_disk
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.records import ModelRecord

GB = 10**9
WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def a_digest(text: str) -> Digest:
    return Digest.of(text.encode())


def a_pull(name: str) -> PullModel:
    return PullModel(host="h", model=a_name(name))


def an_upload(text: str, gigabytes: int, *, is_there: bool = False) -> UploadBlob:
    size = gigabytes * GB
    cost = Cost(upload_bytes=0 if is_there else size, present_bytes=size if is_there else 0)
    return UploadBlob(
        host="h", model=a_name("m"), digest=a_digest(text), path=f"/{text}", size_bytes=size, cost=cost
    )


def a_create(name: str, *files: str, quantize: str | None = None) -> CreateModel:
    blobs = tuple(Blob(f"{text}.gguf", a_digest(text)) for text in files)
    return CreateModel(host="h", model=a_name(name), recipe=Recipe(files=blobs, quantize=quantize))


def an_upstream(**layers: int) -> RegistryAnswer:
    return RegistryAnswer(layers=tuple((a_digest(name), size * GB) for name, size in layers.items()))


def a_host(sizes: Mapping[str, int] | None = None, version: str = "0.12.11", **parts: Any) -> ObservedHost:
    """A host with models of so many gigabytes, each with content of its own."""
    models = {
        a_name(name): ObservedModel(name=a_name(name), digest=a_digest(name).hex, size_bytes=size * GB)
        for name, size in (sizes or {}).items()
    }
    upstream = {a_name(name): value for name, value in parts.pop("upstream", {}).items()}
    features = features_of(ServerVersion.parse(version))
    return ObservedHost(
        host="h", features=features, models=Listing(models.items()), upstream=upstream, **parts
    )


def refused(
    actions: list[Action], observed: ObservedHost, disk: int | None, *specs: ModelSpec
) -> tuple[str, str] | None:
    """Message and hint of the refusal, None if there is none. `disk` is in gigabytes."""
    desired = build_desired("h", specs, disk_bytes=None if disk is None else disk * GB)
    found = list(refuse_disk(HostPlan(host="h", actions=tuple(actions)), desired, observed))
    assert all((one.rule, one.host) == ("disk", "h") for one in found)
    return (found[0].message, found[0].hint) if found else None


def test_what_does_not_fit_is_refused_with_the_numbers_and_the_way_out() -> None:
    observed = a_host({"old": 30}, upstream={"new": an_upstream(weights=20)})
    message = (
        "the models there take about 30.0 GB, this plan brings 32.0 GB (20.0 GB pulled, 12.0 GB uploaded), "
        "and the host's disk is 50.0 GB"
    )
    hint = "free 12.0 GB first, declare fewer models here, or use --force disk for this run"
    assert refused([a_pull("new"), an_upload("a", 12), a_create("m", "a")], observed, 50) == (message, hint)


@pytest.mark.parametrize("disk", [None, 62])
def test_what_fits_to_the_byte_and_a_host_without_a_budget_are_not_refused(disk: int | None) -> None:
    observed = a_host({"old": 30}, upstream={"new": an_upstream(weights=20)})
    assert refused([a_pull("new"), an_upload("a", 12)], observed, disk) is None


def test_a_host_that_is_over_its_budget_may_be_changed_as_long_as_nothing_is_brought() -> None:
    delete = DeleteModel(host="h", model=a_name("old"))
    assert refused([delete, an_upload("a", 9, is_there=True)], a_host({"old": 30}), 10) is None


def test_what_a_deletion_frees_does_not_count_because_it_comes_last() -> None:
    observed = a_host({"old": 30}, upstream={"new": an_upstream(weights=20)})
    assert refused([a_pull("new"), DeleteModel(host="h", model=a_name("old"))], observed, 40) is not None


def test_layers_that_are_shared_or_there_already_count_once_or_not_at_all() -> None:
    upstream = {"a": an_upstream(shared=20, a=1, there=9), "b": an_upstream(shared=20, b=1)}
    observed = a_host(upstream=upstream, present_blobs=frozenset({a_digest("there")}))
    assert refused([a_pull("a"), a_pull("b")], observed, 22) is None
    assert refused([a_pull("a"), a_pull("b")], observed, 21) is not None


def test_pulls_of_unknown_size_are_told_of_and_count_as_nothing() -> None:
    upstream = {"a": an_upstream(a=20), "b": RegistryAnswer(error="nobody answers")}
    found = refused([a_pull("a"), a_pull("b"), a_pull("c")], a_host(upstream=upstream), 10)
    assert found
    assert "this plan brings at least 20.0 GB (20.0 GB pulled, 2 pulled of unknown size)" in found[0]
    assert refused([a_pull("b"), a_pull("c")], a_host({"old": 30}, upstream=upstream), 10) is None


@pytest.mark.parametrize(
    "version, quantize, brings",
    [
        ("0.12.11", None, "12.0 GB (12.0 GB uploaded)"),
        ("0.33.0", None, "32.0 GB (12.0 GB uploaded, 20.0 GB to import)"),
        ("0.33.0", "F16", "at least 32.0 GB (12.0 GB uploaded, 20.0 GB to import)"),
    ],
)
def test_a_server_that_rewrites_needs_room_for_results_and_the_largest_copy(
    version: str, quantize: str | None, brings: str
) -> None:
    actions: list[Action] = [an_upload("a", 8), an_upload("b", 4)]
    actions += [a_create("m", "a", quantize=quantize), a_create("n", "b", quantize=quantize)]
    found = refused(actions, a_host(version=version), 1)
    assert found
    assert f"this plan brings {brings}, and" in found[0]


@pytest.mark.parametrize(
    "version, name, quantize, imported",
    [
        ("0.5.7", "a.gguf", None, 0),
        ("0.5.7", "a.gguf", "q8_0", 8.5),
        ("0.5.7", "a.gguf", "F16", 0),
        ("0.5.7", "a.gguf", "F32", 32),
        ("0.5.7", "a.gguf", "IQ3_M", 3.0625),
        ("0.5.7", "model.safetensors", None, 16),
        ("0.5.7", "model.safetensors", "Q8_0", 24.5),
        ("0.5.7", "model.safetensors", "BF16", 16),
        ("0.5.7", "pytorch_model-00001-of-00002.bin", None, 16),
        ("0.5.7", "ggml-model.bin", None, 0),
        ("0.5.7", "tokenizer.json", "Q8_0", 0),
        ("0.3.4", "folder.zip", None, 16),
        ("0.12.11", "model.safetensors", "Q4_K_M", 20.5),
        ("0.33.0", "a.gguf", None, 32),
        ("0.33.0", "a.gguf", "Q8_0", 8.5),
        ("0.33.0", "a.gguf", "Q4_K", 4.5),
        ("0.33.0", "model.safetensors", None, 32),
        ("0.33.0", "model.safetensors", "Q8_0", 24.5),
        ("0.33.0", "a-00001-of-00002.gguf", None, 32),
        ("0.33.0", "a-00001-of-00002.gguf", "Q4_K_S", 20.5),
        ("0.33.0", "a-00001-of-00001.gguf", "Q4_K_S", 4.5),
        ("0.33.0", "a.gguf", "made up", 0),
    ],
)
def test_an_import_takes_what_is_made_on_the_way_and_the_result_by_the_bits_of_its_weights(
    version: str, name: str, quantize: str | None, imported: float
) -> None:
    """`imported` is in bits for each weight, of which the upload has 16: it has 16 GB."""
    recipe = Recipe(files=(Blob(name, a_digest("a")),), quantize=quantize)
    create = CreateModel(host="h", model=a_name("m"), recipe=recipe)
    found = refused([an_upload("a", 16), create], a_host(version=version), 1)
    assert found
    total = f"{16 + imported:.1f} GB (16.0 GB uploaded"
    to_import = f", {imported:.1f} GB to import)" if imported else ")"
    assert f"this plan brings {'at least ' if quantize else ''}{total}{to_import}" in found[0]


def test_what_is_imported_in_the_same_way_for_several_models_counts_once() -> None:
    creates = [a_create(name, "a", quantize="Q8_0") for name in ("m", "n")]
    found = refused([an_upload("a", 16), *creates], a_host(), 1)
    assert found
    assert "at least 24.5 GB (16.0 GB uploaded, 8.5 GB to import)" in found[0]


def test_a_projector_stays_as_it_was_sent() -> None:
    files = (WeightsFile(Path("/a"), "a.gguf"), WeightsFile(Path("/b"), "b.gguf"))
    spec = ModelSpec(name=a_name("m"), source=Build(files=files, quantize="Q8_0"))
    infos: dict[Location, FileInfo] = {
        Path("/a"): FileInfo(digest=a_digest("a"), size_bytes=16 * GB, architecture="llama"),
        Path("/b"): FileInfo(digest=a_digest("b"), size_bytes=4 * GB, architecture="clip", is_projector=True),
    }
    desired = build_desired("h", [spec], files=infos, disk_bytes=GB)
    actions = (an_upload("a", 16), an_upload("b", 4), a_create("m", "a", "b", quantize="Q8_0"))
    (found,) = refuse_disk(HostPlan(host="h", actions=actions), desired, a_host())
    assert "28.5 GB (20.0 GB uploaded, 8.5 GB to import)" in found.message


@pytest.mark.parametrize(
    "quantize, sizes, upstream, brings",
    [
        (None, {"base": 16}, {}, None),
        ("Q8_0", {"base": 16}, {}, "at least 8.5 GB (8.5 GB to import)"),
        (
            "Q8_0",
            {},
            {"base": an_upstream(w=16)},
            "at least 24.5 GB (16.0 GB pulled, 8.5 GB to import)",
        ),
        ("Q8_0", {}, {}, None),
    ],
)
def test_what_is_quantized_from_a_base_takes_room_of_its_own(
    quantize: str | None, sizes: Mapping[str, int], upstream: Mapping[str, RegistryAnswer], brings: str | None
) -> None:
    create = CreateModel(host="h", model=a_name("m"), recipe=Recipe(base=a_name("base"), quantize=quantize))
    pulls: list[Action] = [] if sizes else [a_pull("base")]
    found = refused([*pulls, create], a_host(sizes, upstream=upstream), 1)
    assert (found is None) == (brings is None)
    assert brings is None or (found and f"this plan brings {brings}" in found[0])


def test_an_upload_of_unknown_size_makes_the_number_the_least() -> None:
    found = refused([an_upload("a", 16), an_upload("b", 0)], a_host(), 1)
    assert found
    assert "this plan brings at least 16.0 GB (16.0 GB uploaded)" in found[0]


@pytest.mark.parametrize("disk, is_refused", [(31, False), (30, True)])
@pytest.mark.parametrize("how", ["declared", "copied", "told", "shown", "remembered", "alike"])
def test_models_with_the_same_weights_take_their_room_once(how: str, disk: int, is_refused: bool) -> None:
    names = ("base", "one", "two")
    observed = a_host(dict.fromkeys(names, 30), upstream={"new": an_upstream(new=1)})
    specs = [ModelSpec(name=a_name("base"), source=Pull(ref=a_name("base")))]
    models, key = observed.models, a_name
    weights = (a_digest("weights"),)
    match how:
        case "declared":
            build = Build(base=a_name("base"), system="x")
            specs += [ModelSpec(name=a_name(name), source=build) for name in names[1:]]
        case "copied":
            specs.append(ModelSpec(name=a_name("one"), source=Copy(source=a_name("base"))))
            specs.append(ModelSpec(name=a_name("two"), source=Copy(source=a_name("one"))))
        case "told":
            made = {key(name): replace(models[key(name)], parent="base:latest") for name in names[1:]}
            observed = replace(observed, models=Listing({**models, **made}.items()))
        case "shown":
            shown = {one: Contents(digest=model.digest, blobs=weights) for one, model in models.items()}
            observed = replace(observed, shown=shown)
        case "remembered":
            memory = {
                one: ModelRecord(digest=model.digest, how="created", blobs=(str(weights[0]),))
                for one, model in models.items()
            }
            observed = replace(observed, memory=memory)
        case _:
            observed = replace(
                observed,
                models=observed.models.map(lambda model: replace(model, digest="0" * 64)),
            )
    assert (refused([a_pull("new")], observed, disk, *specs) is not None) is is_refused


def test_a_quantized_model_takes_room_of_its_own_beside_its_base() -> None:
    observed = a_host({"base": 30, "small": 10}, upstream={"new": an_upstream(new=1)})
    small = ModelSpec(name=a_name("small"), source=Build(base=a_name("base"), quantize="Q4_K_M"))
    assert refused([a_pull("new")], observed, 41, small) is None
    assert refused([a_pull("new")], observed, 40, small) is not None


def test_models_that_were_made_from_each_other_are_no_endless_tale() -> None:
    observed = a_host({"a": 10, "b": 10}, upstream={"new": an_upstream(new=1)})
    parents = {"a": "b", "b": "a"}
    models = {one: replace(model, parent=parents[str(one.model)]) for one, model in observed.models.items()}
    assert refused([a_pull("new")], replace(observed, models=Listing(models.items())), 5) is not None


@pytest.mark.parametrize(
    "budget", ["labels: {disk: 300kB}", "disk: 300kB", "disk: 300kB, labels: {disk: 1TB}"]
)
def test_apply_refuses_before_anything_is_sent(
    budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(WEIGHTS / "tiny-chatml.gguf", tmp_path / "a.gguf")
    with Sandbox() as sandbox:
        (tmp_path / "m.yaml").write_text(
            f"hosts: {{h: {{url: {sandbox.url}, {budget}}}}}\nmodels: [{{name: m, files: [a.gguf]}}]\n"
        )
        arguments = ["apply", "-y", "-f", str(tmp_path / "m.yaml")]
        assert run(arguments) == 4
        assert "this plan brings 345 kB (115 kB uploaded, 230 kB to import)" in capsys.readouterr().out
        assert list(sandbox.store.blobs.iterdir()) == []
        assert run([*arguments, "--force", "disk"]) == 0
