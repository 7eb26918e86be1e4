"""What kind of file is it? Told from its first bytes, as Go and Ollama's command line tell it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import WeightsError
from ollamaops.files.sniff import (
    LfsPointer,
    content_type,
    content_type_of,
    parse_lfs_pointer,
    pointer_instead_of_weights,
    sniff,
)
from ollamaops.names import Digest

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("tiny-a.gguf", "gguf"),
        ("tiny-lora.gguf", "gguf"),
        ("not-a-model.bin", "text"),
        ("tiny-hf/model.safetensors", "safetensors"),
        ("tiny-hf/config.json", "text"),
        ("tiny-hf/tokenizer.json", "text"),
    ],
)
def test_real_files_are_recognized(name: str, kind: str) -> None:
    assert sniff(WEIGHTS / name) == kind


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"", "text"),
        (b"GGUF", "gguf"),
        (b"FUGG\x03", "gguf"),
        (b"PK\x03\x04rest", "zip"),
        (POINTER, "lfs-pointer"),
        (SAFETENSORS, "safetensors"),
        (SAFETENSORS[:8], "binary"),
        ((1).to_bytes(8, "little") + b"{", "binary"),
        (b"{" * 9, "text"),
        (b"<!DOCTYPE html><p>not found", "text"),
        (b"\n\x0e\n\x05<unk>", "binary"),
    ],
)
def test_bytes_are_recognized(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert sniff(path) == kind


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "text/plain"),
        (b"plain words\r\n\t\x1b[0m", "text/plain"),
        (b"\xef\xbb\xbf\x00", "text/plain"),
        (b"\xff\xfea\x00", "text/plain"),
        ("ünï".encode(), "text/plain"),
        (b"  <HTML>", "text/html"),
        (b"<!-- a -->", "text/html"),
        (b"<html", "text/plain"),
        (b"\n<?xml version", "text/xml"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08\x00", "application/x-gzip"),
        (b"abc\x00def", "application/octet-stream"),
        (b"GGUF\x03\x00\x00\x00", "application/octet-stream"),
    ],
)
def test_content_types_are_those_of_go(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert content_type(path) == content_type_of(data) == words


def test_only_the_first_512_bytes_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 512 + b"\x00")
    assert content_type(path) == "text/plain"


@given(st.binary(max_size=600))
def test_any_bytes_have_a_content_type(data: bytes) -> None:
    assert content_type_of(data[:512]).split("/")[0] in ("text", "application")


def test_a_pointer_tells_digest_and_size() -> None:
    digest = Digest.parse("4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393")
    assert parse_lfs_pointer(POINTER) == LfsPointer(digest, 12345)
    assert parse_lfs_pointer(POINTER.replace(b"oid", b"ext-0-x sha256:11\noid")) == LfsPointer(digest, 12345)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b" " + POINTER,
        POINTER.replace(b"size 12345\n", b""),
        POINTER.replace(b"12345", b"-1"),
        POINTER.replace(b"12345", b"9" * 30),
        POINTER.replace(b"sha256", b"md5"),
        POINTER + b" " * 1024,
    ],
)
def test_anything_else_is_not_a_pointer(data: bytes) -> None:
    assert parse_lfs_pointer(data) is None


def test_a_pointer_in_place_of_weights_says_how_to_get_them() -> None:
    error = pointer_instead_of_weights("a.gguf")
    assert (str(error), error.hint) == (
        "a.gguf: is a git-lfs pointer, not the weights themselves",
        "run 'git lfs pull' in the repository it comes from",
    )


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    messages = []
    for name in ("missing", "pipe", ".", "loop"):
        with pytest.raises(WeightsError) as caught:
            sniff(tmp_path / name)
        messages.append(str(caught.value).removeprefix(str(tmp_path)))
        assert caught.value.hint
    assert messages == [
        "/missing: cannot be read: no such file or directory",
        "/pipe: is not a regular file",
        ": is a directory, not a weights file",
        "/loop: cannot be read: too many levels of symbolic links",
    ]
