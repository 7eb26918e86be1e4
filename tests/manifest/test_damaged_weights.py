"""Weights that cannot be used are refused with the reason before a byte of them is sent."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_host import VERSIONS, WEIGHTS
from properties import shared_fixtures

from ollamaops.cli.main import run
from ollamaops.errors import WeightsError
from ollamaops.files.safetensors import require_whole, require_whole_zip
from ollamaops.names import Digest
from ollamaops.sandbox.server import Sandbox

A = (WEIGHTS / "tiny-a.gguf").read_bytes()
B = (WEIGHTS / "tiny-b.gguf").read_bytes()
SAFETENSORS = (WEIGHTS / "tiny-hf" / "model.safetensors").read_bytes()
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 114880\n".encode()
PAGE = b"<!DOCTYPE html><p>Sign in to download"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def manifest(folder: Path, sandbox: Sandbox, entry: str) -> list[str]:
    path = folder / "m.yaml"
    path.write_text(f"hosts: {{h: {{url: '{sandbox.url}'}}}}\nmodels: [{{name: m, {entry}}}]\n")
    return ["-f", str(path)]


def a_zip() -> bytes:
    """What `torch.save` writes, as far as it matters here."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        opened.writestr("archive/data.pkl", b"x" * 1000)
    return data.getvalue()


def a_folder(weights: str, data: bytes) -> Callable[[Path], None]:
    """The safetensors folder of the recordings with other weights in it."""

    def write(folder: Path) -> None:
        shutil.copytree(WEIGHTS / "tiny-hf", folder / "hf")
        (folder / "hf" / "model.safetensors").unlink()
        (folder / "hf" / weights).write_bytes(data)

    return write


def a_file(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "w.gguf").write_bytes(data)

    return write


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.gguf")


ONE, FOLDER = "files: [w.gguf]", "files: [hf]"
DAMAGED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "gguf cut short": (ONE, a_file(A[:-1]), f"w.gguf: cut short: 1 of {len(A)} bytes are missing"),
    "gguf cut within its header": (ONE, a_file(A[:1000]), "only 407 bytes follow"),
    "gguf cut short, its digest stated": (
        f"{ONE}, sha256: {{w.gguf: {Digest.of(A).hex}}}",
        a_file(A[:-1]),
        "w.gguf: cut short",
    ),
    "empty": (ONE, a_file(b""), "w.gguf: is not a GGUF file, despite its name"),
    "web page": (ONE, a_file(PAGE), "w.gguf: is not a GGUF file, despite its name"),
    "pointer": (ONE, a_file(POINTER), "w.gguf: is a git-lfs pointer, not the file itself"),
    "pointer, its digest stated": (
        f"{ONE}, sha256: {{w.gguf: {'a' * 64}}}",
        a_file(POINTER),
        "w.gguf: is a git-lfs pointer, not the file itself",
    ),
    "adapter that is a pointer": (
        "from: base, adapters: [w.gguf]",
        a_file(POINTER),
        "w.gguf: is a git-lfs pointer",
    ),
    "pipe": (ONE, a_pipe, "w.gguf: is not a regular file"),
    "not there": (ONE, lambda _: None, "w.gguf: no such file or folder"),
    "safetensors cut short": (
        FOLDER,
        a_folder("model.safetensors", SAFETENSORS[:-7]),
        f"model.safetensors: cut short: 7 of {len(SAFETENSORS)} bytes are missing",
    ),
    "safetensors cut within its header": (
        FOLDER,
        a_folder("model.safetensors", SAFETENSORS[:100]),
        "model.safetensors: cut short: it ends within its header",
    ),
    "safetensors that is a web page": (
        FOLDER,
        a_folder("model.safetensors", PAGE),
        "model.safetensors: is not a safetensors file: it has no header that can be read",
    ),
    "pointer in a folder": (
        FOLDER,
        a_folder("model.safetensors", POINTER),
        "hf/model.safetensors: is a git-lfs pointer, not the file itself",
    ),
    "pytorch cut short": (
        FOLDER,
        a_folder("pytorch_model.bin", a_zip()[:-30]),
        "pytorch_model.bin: cut short: it is a zip file without its end",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_sent(
    name: str, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, write, words = DAMAGED[name]
    write(tmp_path)
    assert run(["apply", "-y", *manifest(tmp_path, sandbox, entry)]) == 65
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert list(sandbox.store.blobs.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda path: path.write_bytes(B), 4, "w.gguf changed since "),
        (Path.unlink, 65, "w.gguf: no such file or folder"),
    ],
    ids=["other bytes", "gone"],
)
def test_weights_that_change_between_plan_and_apply_are_not_taken_for_the_planned_ones(
    change: Callable[[Path], object],
    code: int,
    words: str,
    sandbox: Sandbox,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = manifest(tmp_path, sandbox, ONE)
    (tmp_path / "w.gguf").write_bytes(A)
    plan = str(tmp_path / "plan.json")
    assert run(["plan", "--out", plan, *options]) == 0
    change(tmp_path / "w.gguf")
    assert run(["apply", plan, *options]) == code
    assert words in capsys.readouterr().err
    assert list(sandbox.store.blobs.iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stated_digest_that_is_not_that_of_the_bytes_makes_no_model(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.gguf").write_bytes(A)
    stated = Digest.of(B)
    with Sandbox(as_version=version) as sandbox:
        entry = f"{ONE}, sha256: {{w.gguf: {stated.hex}}}"
        assert run(["apply", "-y", *manifest(tmp_path, sandbox, entry)]) == 3
        said = capsys.readouterr().out
        assert "digest mismatch" in said
        assert "a stated digest is wrong" in said
        assert not sandbox.store.has_blob(str(stated))
        assert list(sandbox.store.names()) == []


# the header of safetensors


@shared_fixtures()
@given(st.binary(max_size=64) | st.integers(0, len(SAFETENSORS) - 1).map(lambda cut: SAFETENSORS[:cut]))
def test_bytes_that_are_not_a_whole_safetensors_file_are_refused_in_our_own_words(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"cut short: |is not a safetensors file: "):
        require_whole(path)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"t": 1},
        {"t": {}},
        {"t": {"data_offsets": [0]}},
        {"t": {"data_offsets": [0, "8"]}},
        {"t": {"data_offsets": [0, None]}},
        {"t": {"data_offsets": {"1": 8}}},
    ],
)
def test_a_header_of_another_shape_is_none(tmp_path: Path, header: object) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(header, bytes(8)))
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        require_whole(path)


@pytest.mark.parametrize(
    "data",
    [
        SAFETENSORS,
        SAFETENSORS + b"more",
        with_header({}),
        with_header({"__metadata__": {"format": "pt"}, "t": {"data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_a_whole_file_is_left_in_peace(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    require_whole(path)


def test_a_whole_zip_and_what_is_not_a_zip_are_accepted(tmp_path: Path) -> None:
    for data in (a_zip(), A):
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(data)
        require_whole_zip(path)
