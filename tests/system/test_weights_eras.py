"""Every kind of weights on servers of every era: it converges, or it is refused with the reason and nothing is sent.

A kind is a folder of files, the entry that names them, and the versions that cannot have it, with what they are told.
The whole way is gone: manifest, plan, upload, create, a second look with and without memory.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import requests
from breadth import in_turn
from gguf_files import split, take_apart
from live_host import REWRITING_VERSIONS, VERSIONS, WEIGHTS
from patience import PATIENCE_S
from registry_fixture import COMMIT, Reply, Request, a_file, run_server

from ollamaops.cli.main import run
from ollamaops.files.gguf_types import GgufValue
from ollamaops.files.gguf_writer import build_gguf
from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("version")

A = (WEIGHTS / "tiny-a.gguf").read_bytes()
F16 = WEIGHTS / "tiny-f16.gguf"
MANY = ("0.3.4", "0.5.7", "0.6.8")  # before the list of quantizations got shorter
OLD = ("0.3.4", "0.5.7", "0.6.8", "0.12.11")  # before 0.30


def write_bf16(folder: Path) -> None:
    """The F16 model, which now says that it is BF16."""
    header, tensors = take_apart(F16)
    says = {**header.metadata, "general.file_type": 32}
    (folder / "bf16.gguf").write_bytes(build_gguf(says, tensors, types=header.types))


def write_projector(folder: Path) -> None:
    metadata: dict[str, GgufValue] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.vision.block_count": 1,
    }
    (folder / "mmproj.gguf").write_bytes(build_gguf(metadata))


def write_adapter_folder(folder: Path) -> None:
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    write_safetensors(
        folder / "lora" / "adapter_model.safetensors",
        {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (64, 4),
        },
    )


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """F16 tensors of zeros."""
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        size = 2 * rows * columns
        header[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_without_ending(folder: Path) -> None:
    (folder / "ggml-model.bin").write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes())


def write_pooling(folder: Path) -> None:
    """What sentence transformers have: a second config.json below."""
    shutil.copytree(WEIGHTS / "tiny-hf", folder / "hf")
    (folder / "hf" / "1_Pooling").mkdir()
    (folder / "hf" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


def write_modelfile(folder: Path) -> None:
    (folder / "Modelfile").write_text("FROM ./tiny-a.gguf\nFROM ./mmproj.gguf\nSYSTEM be brief\n")
    write_projector(folder)


@dataclass(frozen=True)
class Kind:
    """`files` are copied from the recorded weights, `write` makes others. `refused`: version → the reason's words.

    `kept` is a file that servers before 0.30 store as it was given.
    """

    entry: str
    files: tuple[str, ...] = ()
    write: Callable[[Path], None] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    kept: str | None = None


KINDS: dict[str, Kind] = {
    "gguf": Kind("files: [tiny-a.gguf]", ("tiny-a.gguf",), kept="tiny-a.gguf"),
    "gguf without its ending": Kind(
        "files: [ggml-model.bin]", (), write_without_ending, kept="ggml-model.bin"
    ),
    "known digest": Kind(
        f"files: [tiny-a.gguf], sha256: {{tiny-a.gguf: {Digest.of(A).hex}}}",
        ("tiny-a.gguf",),
        kept="tiny-a.gguf",
    ),
    "split gguf": Kind(
        "files: [w/m-00002-of-00002.gguf]",
        (),
        lambda folder: split(folder / "w"),
        refused=dict.fromkeys(OLD, "it does not merge a GGUF in shards"),
    ),
    "split gguf quantized": Kind(
        "files: [w/m-00001-of-00002.gguf], quantize: q8_0",
        (),
        lambda folder: split(folder / "w", whole=F16),
        refused=dict.fromkeys(OLD, "it does not merge a GGUF in shards"),
    ),
    "model and projector": Kind(
        "files: [tiny-a.gguf, mmproj.gguf]", ("tiny-a.gguf",), write_projector, kept="tiny-a.gguf"
    ),
    "modelfile with a projector": Kind(
        "modelfile: ./Modelfile", ("tiny-a.gguf",), write_modelfile, kept="tiny-a.gguf"
    ),
    "safetensors": Kind("files: [tiny-hf]", ("tiny-hf",)),
    "safetensors with two config.json": Kind("files: [hf]", (), write_pooling),
    "safetensors quantized": Kind("files: [tiny-hf], quantize: q8_0", ("tiny-hf",)),
    "gguf adapter": Kind(
        "files: [tiny-a.gguf], adapters: [tiny-lora.gguf]",
        ("tiny-a.gguf", "tiny-lora.gguf"),
        refused={"0.3.4": "it takes an adapter for the weights"},
        kept="tiny-a.gguf",
    ),
    "safetensors adapter": Kind(
        "files: [tiny-a.gguf], adapters: [lora]",
        ("tiny-a.gguf",),
        write_adapter_folder,
        refused={"0.3.4": "it takes an adapter for the weights"},
        kept="tiny-a.gguf",
    ),
    "quantized to q8_0": Kind("files: [tiny-f16.gguf], quantize: q8_0", ("tiny-f16.gguf",)),
    "quantized to q4_0": Kind(
        "files: [tiny-f16.gguf], quantize: q4_0",
        ("tiny-f16.gguf",),
        refused={version: "it does not quantize to Q4_0" for version in VERSIONS if version not in MANY},
    ),
    "quantized from F32": Kind(
        "files: [tiny-a.gguf], quantize: q8_0",
        ("tiny-a.gguf",),
        refused={
            version: f"it quantizes only {taken} files, and tiny-a.gguf is F32, or does not say what it is"
            for version in VERSIONS
            for taken in ("F16 and BF16" if version in REWRITING_VERSIONS else "F16",)
        },
    ),
    "quantized from BF16": Kind(
        "files: [bf16.gguf], quantize: q8_0",
        (),
        write_bf16,
        refused=dict.fromkeys(OLD, "it quantizes only F16 files, and bf16.gguf is BF16"),
    ),
    "quantized with a projector": Kind(
        "files: [tiny-f16.gguf, mmproj.gguf], quantize: q8_0", ("tiny-f16.gguf",), write_projector
    ),
    "draft": Kind(
        "files: [tiny-a.gguf], drafts: [tiny-b.gguf]",
        ("tiny-a.gguf", "tiny-b.gguf"),
        refused=dict.fromkeys(OLD, "it has no draft models"),
    ),
}


def manifest(folder: Path, url: str, kind: Kind) -> list[str]:
    for name in kind.files:
        source = WEIGHTS / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)
    if kind.write and not (folder / "m.yaml").exists():
        kind.write(folder)
    path = folder / "m.yaml"
    path.write_text(f"hosts: {{h: {{url: '{url}'}}}}\nmodels: [{{name: m, {kind.entry}}}]\n")
    return ["-f", str(path)]


@in_turn("version", count=3)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_converges_where_it_can_and_is_refused_elsewhere(
    name: str, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Sandbox(as_version=version) as sandbox:
        assert_converges_or_is_refused(KINDS[name], version, sandbox, tmp_path, capsys)


def assert_converges_or_is_refused(
    kind: Kind, version: str, sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Applied once, nothing is left to do, whether it is remembered or not; or nothing was sent."""
    options = manifest(folder, sandbox.url, kind)
    code, captured = run(["apply", "-y", *options]), capsys.readouterr()
    said = captured.out
    if words := kind.refused.get(version):
        assert f"cannot be made by Ollama {version}: {words}" in said
        assert code == 3
        assert list(sandbox.store.blobs.iterdir()) == []
        return
    assert code == 0, said + captured.err
    assert "1 created; 1 host as declared" in said
    assert run(["plan", *options, "--detailed-exitcode"]) == 0
    assert run(["drift", *options, "--state-dir", str(folder / "no-memory")]) == 0
    assert kind.kept in (None, *layers_as_given(sandbox, folder)) or version in REWRITING_VERSIONS


def layers_as_given(sandbox: Sandbox, folder: Path) -> list[str]:
    """The names of the files whose very bytes the server says the model is made from."""
    shown = requests.post(
        f"{sandbox.url}/api/show", json={"model": "m", "name": "m"}, timeout=PATIENCE_S
    ).json()
    return [
        path.name
        for path in folder.iterdir()
        if path.is_file() and Digest.of(path.read_bytes()).hex in shown["modelfile"]
    ]


# what show tells without memory


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_remembered", [True, False])
def test_a_change_of_quantize_alone_is_told_by_the_quantization(
    is_remembered: bool, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = [] if is_remembered else ["--state-dir", str(tmp_path / "no-memory")]
    kind = KINDS["quantized to q8_0"]
    with Sandbox(as_version=version) as sandbox:
        options = manifest(tmp_path, sandbox.url, replace(kind, entry="files: [tiny-f16.gguf]"))
        assert run(["apply", "-y", *options]) == 0
        options = manifest(tmp_path, sandbox.url, kind)
        capsys.readouterr()
        run(["plan", *options, *memory])
        assert "quantization F16 → Q8_0" in capsys.readouterr().out
        assert run(["apply", "-y", *options]) == 0
        options = manifest(tmp_path, sandbox.url, replace(kind, entry="files: [tiny-f16.gguf]"))
        capsys.readouterr()
        run(["plan", *options, *memory])
        assert "quantization Q8_0 → F16" in capsys.readouterr().out


BESIDE: dict[str, tuple[str, str, str]] = {
    "projector": ("model and projector", "files: [tiny-a.gguf]", "projector"),
    "projector of what is quantized": (
        "quantized with a projector",
        "files: [tiny-f16.gguf], quantize: q8_0",
        "projector",
    ),
    "adapter": ("gguf adapter", "files: [tiny-a.gguf]", "adapter"),
    "converted adapter": ("safetensors adapter", "files: [tiny-a.gguf]", "adapter"),
    "draft": ("draft", "files: [tiny-a.gguf]", "draft"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_beside_the_weights_is_counted_without_memory(
    name: str, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways: a model that has it and should not, and one that should have it and does not."""
    whole, alone, what = BESIDE[name]
    kinds = [KINDS[whole], replace(KINDS[whole], entry=alone, refused={})]
    for there, declared in (kinds, kinds[::-1]):
        folder = tmp_path / str(kinds.index(there))
        folder.mkdir()
        with Sandbox(as_version=version) as sandbox:
            is_there = run(["apply", "-y", *manifest(folder, sandbox.url, there)]) == 0
            options = [*manifest(folder, sandbox.url, declared), "--state-dir", str(folder / "no-memory")]
            capsys.readouterr()
            assert is_there == (version not in there.refused)
            assert run(["plan", *options, "--detailed-exitcode"]) != 0
            said = capsys.readouterr().out
        if is_there and version in declared.refused:
            assert f"cannot be made by Ollama {version}: {declared.refused[version]}" in said
        elif is_there and version in REWRITING_VERSIONS:
            assert re.search(rf"(1|no) ({what}|adapter or draft) declared, (none|1) there", said)


# weights elsewhere


@dataclass(frozen=True)
class Away:
    """Weights that lie elsewhere. `{}` is the web server, `cached` how many files come to this disk."""

    entry: str
    cached: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)  # not in git-lfs, so that no digest is told
AWAY: dict[str, Away] = {
    "web": Away(f"files: ['{{}}/w/tiny-a.gguf'], sha256: {{'{{}}/w/tiny-a.gguf': {Digest.of(A).hex}}}"),
    "hub": Away("files: ['hf://org/repo/tiny-a.gguf']"),
    "hub, safetensors": Away(
        "files: ['hf://org/repo/model.safetensors', "
        + ", ".join(f"'hf://org/repo/{name}'" for name in SMALL)
        + "]",
        cached=3,
        refused={"0.3.4": "weights other than GGUF go to it only from this disk"},
    ),
    "bucket": Away("files: ['s3://eras/tiny-a.gguf']", cached=1),
    "bucket, digest stated": Away(
        f"files: ['s3://eras/tiny-a.gguf'], sha256: {{'s3://eras/tiny-a.gguf': {Digest.of(A).hex}}}"
    ),
    "base here, adapter there": Away(
        "files: [tiny-a.gguf], adapters: ['hf://org/repo/tiny-lora.gguf']",
        refused={"0.3.4": "it takes an adapter for the weights"},
    ),
}


def a_hub(request: Request) -> Reply:
    """Every file of the recorded weights; the large ones say their digest, and their connections are cut once."""
    name = request.path.rpartition("/")[2]
    path = WEIGHTS / ("tiny-hf" if (WEIGHTS / "tiny-hf" / name).exists() else ".") / name
    if not path.exists() or "/raw/" in request.path:
        return Reply(404)
    body = path.read_bytes()
    linked = {"X-Linked-Etag": f'"{Digest.of(body).hex}"', "X-Linked-Size": str(len(body))}
    if request.method == "HEAD":
        return Reply(200, {"X-Repo-Commit": COMMIT, **(linked if name not in SMALL else {})}, body)
    return a_file(body, cut_at=len(body) // 2)(request)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """fsspec's file system in memory, where S3 is looked for."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    known = vars(sys.modules["fsspec.registry"])["_registry"]  # what register_implementation fills for good
    monkeypatch.setitem(known, "s3", type(memory))
    memory.pipe("eras/tiny-a.gguf", A)
    yield
    memory.rm("eras", recursive=True)


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", AWAY)
def test_weights_elsewhere_converge_and_pass_through_this_disk_only_without_a_digest(
    name: str,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    away, cache = AWAY[name], tmp_path / "cache"
    with run_server(a_hub) as hub, Sandbox(as_version=version) as sandbox:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("OLLAMAOPS_CACHE_DIR", str(cache))
        kind = Kind(away.entry.replace("{}", hub.url), ("tiny-a.gguf",), refused=away.refused)
        assert_converges_or_is_refused(kind, version, sandbox, tmp_path, capsys)
        assert len(list(cache.iterdir()) if cache.exists() else []) == away.cached
