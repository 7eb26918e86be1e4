"""The parts of the sandbox that are decided without a server: names, Go's spelling, templates, files, the store."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from contextvars import copy_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_caller import WEIGHTS, a_gguf

from ollamaops.sandbox.behavior import RECORDED, Behavior
from ollamaops.sandbox.builtin_models import BUILTIN_MODELS, BuiltinModels
from ollamaops.sandbox.create_modelfile import sniff
from ollamaops.sandbox.gguf_file import (
    ARRAY,
    BOOL,
    FLOAT32,
    STRING,
    UINT32,
    BadGGUF,
    Field,
    Tensor,
    header_bytes,
    padding_after,
    parse_header,
    placed,
    read_header,
)
from ollamaops.sandbox.gguf_rewrite import copy_weights, file_type_name, plan_copy, plan_quantized
from ollamaops.sandbox.golang import (
    float_text,
    human_number,
    json_line,
    json_text,
    quoted,
    shortest_float32,
    sorted_map,
    time_text,
    value_syntax,
    value_text,
)
from ollamaops.sandbox.layers import (
    MANIFEST_TYPE,
    MODEL,
    Config,
    CorruptManifest,
    Layer,
    Manifest,
    parse_config,
    parse_manifest,
)
from ollamaops.sandbox.model_name import (
    BothSuffixes,
    Name,
    adopt_spelling,
    parse_name,
    pull_target,
    strip_source,
)
from ollamaops.sandbox.store import InvalidDigest, Store
from ollamaops.sandbox.templates import BadTemplate, check_template, recognize, template_variables

VECTORS: list[dict[str, object]] = json.loads(
    (Path(__file__).parents[1] / "contract" / "name-vectors.json").read_text()
)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=[str(vector["in"])[:40] for vector in VECTORS])
def test_names_are_parsed_as_ollama_parses_them(vector: dict[str, object]) -> None:
    name = parse_name(str(vector["in"]))
    assert name.is_valid == vector["valid"]
    if name.is_valid:
        assert (name.full, name.short) == (vector["full"], vector["display"])


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["valid"] and v.get("pull_name")], ids=lambda v: str(v["in"])
)
def test_source_suffixes_are_taken_off_as_ollama_does(vector: dict[str, object]) -> None:
    given = str(vector["in"])
    assert (strip_source(given).name, pull_target(given)) == (vector["base"], vector["pull_name"])


def test_two_source_suffixes_are_too_many() -> None:
    with pytest.raises(BothSuffixes, match=r"use either :local or :cloud, not both"):
        strip_source("x:cloud:local")


def test_each_part_takes_the_spelling_of_any_stored_name() -> None:
    stored = [parse_name("llama3:Q4_K_M"), parse_name("ME/bot")]
    assert adopt_spelling(parse_name("me/LLAMA3:q4_k_m"), stored) == Name(
        "registry.ollama.ai", "ME", "llama3", "Q4_K_M"
    )


# --- Go's spelling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.7, "0.7"),
        (-2.5, "-2.5"),
        (100000.0, "100000"),
        (1000000.0, "1e+06"),
        (1048576.0, "1.048576e+06"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1e100, "1e+100"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_a_float_is_printed_as_go_prints_it(value: float, text: str) -> None:
    assert float_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4096.0, "4096"),
        (0.00001, "0.00001"),
        (1e-7, "1e-7"),
        (1e20, "100000000000000000000"),
        (1.5e21, "1.5e+21"),
        (-0.25, "-0.25"),
        ("<a> & b", '"\\u003ca\\u003e \\u0026 b"'),
        ("\u2028\b\f\x01é", '"\\u2028\\b\\f\\u0001é"'),
        ({"b": [1, None, True], "a": {}}, '{"b":[1,null,true],"a":{}}'),
    ],
)
def test_json_is_written_as_go_writes_it(value: object, text: str) -> None:
    assert json_text(value) == text


def test_a_map_is_written_in_the_order_of_its_keys_bytes() -> None:
    assert json_line(sorted_map({"é": 1, "z": 2, "a": 3})) == '{"a":3,"z":2,"é":1}\n'.encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_reads_back_from_either_form(value: float) -> None:
    assert float(float_text(value)) == value
    assert float(json.loads(json_text(value))) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_shortest_float32_is_the_same_float32(value: float) -> None:
    assert struct.pack("<f", shortest_float32(value)) == struct.pack("<f", value)


def test_nine_digits_are_enough_for_any_float32() -> None:
    assert shortest_float32(0.1) == 0.1
    assert shortest_float32(float("inf")) == float("inf")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('a"b\\', r'"a\"b\\"'),
        ("\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        ("\x00\x7f", r'"\x00\x7f"'),
        ("\u200d\U000e0001", r'"\u200d\U000e0001"'),
        ("日本 é", '"日本 é"'),
    ],
)
def test_a_text_is_quoted_as_go_quotes_it(text: str, shown: str) -> None:
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("value", "text", "syntax"),
    [
        ("x", "x", '"x"'),
        (True, "true", "true"),
        (None, "<nil>", "<nil>"),
        ([1, "a"], "[1 a]", '[]interface {}{1, "a"}'),
        ({"b": 1, "a": None}, "map[a:<nil> b:1]", 'map[string]interface {}{"a":interface {}(nil), "b":1}'),
    ],
)
def test_a_value_is_printed_as_text_and_as_syntax(value: object, text: str, syntax: str) -> None:
    assert (value_text(value), value_syntax(value)) == (text, syntax)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (26912, "27K"),
        (1000000, "1M"),
        (1487104, "1.49M"),
        (7 * 10**9, "7B"),
        (3212749888, "3.2B"),
    ],
)
def test_counts_of_parameters_are_shortened_as_ollama_does(number: int, text: str) -> None:
    assert human_number(number) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
    ],
)
def test_times_have_no_trailing_zeros(time_ns: int, text: str) -> None:
    assert time_text(time_ns) == text


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "plain text }} and so on",
        "{{ .Prompt }}{{/* a comment */}}{{- /* trimmed */ -}}",
        "{{- if and .System (not .Tools) -}}x{{ else if .Prompt }}y{{ else with .Suffix }}z{{ else }}w{{ end }}",
        '{{ range $i, $m := .Messages }}{{ $m.Role }}{{ printf "%d" $i }}{{ break }}{{ continue }}{{ end }}',
        "{{ `raw }}` }}{{ \"quoted }}\" }}{{ 'c' }}{{ 1.5e3 }}{{ -1 }}{{ true }}{{ nil | json }}",
        '{{ define "x" }}{{ end }}{{ template "x" . }}{{ block "y" . }}{{ end }}{{ eq .A.B "c" | not }}',
    ],
)
def test_a_valid_template_is_accepted(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{", "1: unclosed action"),
        ("{{ .A\n.B\n", "3: unclosed action"),
        ("{{}}", "1: missing value for command"),
        ("{{ if }}{{ end }}", "1: missing value for if"),
        ("{{ nope }}", '1: function "nope" not defined'),
        ("\n{{ else }}", "2: unexpected {{else}}"),
        ("{{ end }}", "1: unexpected {{end}}"),
        ("{{ range .X }}\n", "2: unexpected EOF"),
        ("{{/* open", "1: unclosed comment"),
        ("{{/* c */", "1: comment ends before closing delimiter"),
        ('{{ "open }}', "1: unterminated quoted string"),
        ("{{ `open }}", "1: unterminated raw quoted string"),
        ("{{ 'open }}", "1: unterminated character constant"),
        ("{{ .A ? }}", "1: unrecognized character in action: U+003F '?'"),
    ],
)
def test_a_bad_template_is_described_in_gos_words(template: str, error: str) -> None:
    with pytest.raises(BadTemplate) as caught:
        check_template(template)
    assert str(caught.value) == f"template: :{error}"


def test_the_fields_of_a_template_are_found() -> None:
    assert template_variables("{{ range .Tools }}{{ $.Suffix }}{{ .Function.Name }}{{ end }}") >= {
        "tools",
        "suffix",
    }
    assert template_variables("{{ .Open") == frozenset()


def test_a_chat_template_is_recognized_by_edit_distance() -> None:
    jinja = read_header(WEIGHTS / "tiny-chatml.gguf").text("tokenizer.chat_template")
    for text in (jinja, jinja + " " * 99, jinja.replace("message", "msg")):
        template = recognize(text, old=False)
        assert template is not None
        assert template.name == "chatml"
    assert recognize(jinja + " " * 100, old=False) is None
    assert recognize("x" * len(jinja), old=False) is None


@pytest.mark.parametrize(
    ("start", "media_type"),
    [
        (b"", "text/plain; charset=utf-8"),
        (b"hello", "text/plain; charset=utf-8"),
        (b"PK\x03\x04", "application/zip"),
        (b"  <!DOCTYPE html>", "text/html; charset=utf-8"),
        (b"<?xml version", "text/xml; charset=utf-8"),
        (b"<html", "text/plain; charset=utf-8"),
        (b"\x00\x01", "unknown"),
    ],
)
def test_a_media_type_is_recognized_by_the_first_bytes(start: bytes, media_type: str) -> None:
    assert sniff(start) == media_type


# --- GGUF -----------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.builds(Field, st.just(STRING), st.text(max_size=20)),
    st.builds(Field, st.just(UINT32), st.integers(0, 2**32 - 1)),
    st.builds(Field, st.just(BOOL), st.booleans()),
    st.builds(Field, st.just(FLOAT32), st.floats(width=32, allow_nan=False)),
    st.builds(lambda items: Field(ARRAY, items, STRING), st.lists(st.text(max_size=5))),
    st.builds(lambda items: Field(ARRAY, items, UINT32), st.lists(st.integers(0, 9))),
)


@given(st.dictionaries(st.text(max_size=20), scalars), st.lists(st.integers(1, 100), max_size=4))
def test_a_header_reads_back_as_it_was_written(fields: dict[str, Field], lengths: list[int]) -> None:
    tensors = [Tensor(f"t{number}", (length,), 0) for number, length in enumerate(lengths)]
    data = header_bytes(fields, tensors)
    header = parse_header(io.BytesIO(data), len(data))
    assert dict(header.fields) == fields
    assert header.tensors == tuple(placed(tensors))
    assert header.data_start == len(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "unexpected EOF"),
        (b"GGML", "invalid file magic"),
        (b"GGUF\x01\0\0\0" + bytes(16), "unsupported version: 1"),
        (a_gguf()[:40], "unexpected EOF"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 99), "invalid type: 99"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 2**60), "unexpected EOF"),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 4, 99, 0),
            "unsupported tensor type: 99",
        ),
    ],
)
def test_a_broken_header_is_described_in_the_servers_words(data: bytes, error: str) -> None:
    with pytest.raises(BadGGUF) as caught:
        parse_header(io.BytesIO(data), len(data))
    assert str(caught.value) == error


def a_copy(path: Path) -> bytes:
    """What llama-quantize's copy of a file is, as the sandbox makes it."""
    header = read_header(path)
    parts: list[bytes] = []
    copy_weights([(path, header)], plan_copy(header), parts.append)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("tiny-a", "8a692a318630"),
        ("tiny-b", "28b59a160aee"),
        ("tiny-chatml", "059e3834b209"),
        ("tiny-f16", "96df417fb2c6"),
        ("tiny-ascii-f16", "ab2db10ada2f"),
    ],
)
def test_the_copy_is_the_one_that_real_servers_made(name: str, digest: str, tmp_path: Path) -> None:
    copied = a_copy(WEIGHTS / f"{name}.gguf")
    assert hashlib.sha256(copied).hexdigest().startswith(digest)
    (tmp_path / "again.gguf").write_bytes(copied)
    assert a_copy(tmp_path / "again.gguf") == copied


@pytest.mark.parametrize("quantization", ["Q4_0", "Q8_0", "Q4_K_M", "F32", "BF16", "IQ4_XS"])
def test_a_quantized_file_has_real_types_and_sizes(quantization: str, tmp_path: Path) -> None:
    path = WEIGHTS / "tiny-ascii-f16.gguf"
    header = read_header(path)
    parts: list[bytes] = []
    copy_weights(
        [(path, header)], plan_quantized(header, quantization, by_go=False, skips_v=False), parts.append
    )
    (tmp_path / "q.gguf").write_bytes(b"".join(parts))
    made = read_header(tmp_path / "q.gguf")
    assert file_type_name(made) == quantization.replace("F32", "unknown")
    assert made.parameter_count == header.parameter_count
    assert made.end == (tmp_path / "q.gguf").stat().st_size


def test_rows_that_do_not_fill_blocks_stay_f16(tmp_path: Path) -> None:
    (tmp_path / "odd.gguf").write_bytes(a_gguf({}, (Tensor("blk.0.attn_q.weight", (33, 2), 1),)))
    header = plan_quantized(read_header(tmp_path / "odd.gguf"), "Q8_0", by_go=True, skips_v=False)
    assert header.tensors[0].kind == 1


def test_data_that_is_missing_is_filled_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes()[:20_000])
    assert len(a_copy(path)) == 114912


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33])
def test_padding_ends_on_a_multiple_of_32(size: int) -> None:
    assert (size + len(padding_after(size))) % 32 == 0
    assert len(padding_after(size)) < 32


# --- manifests ------------------------------------------------------------------------------------------------------


def test_a_newline_that_gos_decoder_never_reads_is_not_hashed() -> None:
    layer = Layer(MODEL, "sha256:" + "0" * 64, 1)
    empty = Manifest(Layer("c", "d", 1), (layer,)).stored()
    filled = Manifest(Layer("c", "d" + "x" * (513 - len(empty)), 1), (layer,)).stored()
    assert len(filled) == 513
    assert parse_manifest(filled).digest == hashlib.sha256(filled[:-1]).hexdigest()
    assert parse_manifest(filled[:-1]).digest == hashlib.sha256(filled[:-1]).hexdigest()
    assert parse_manifest(empty).digest == hashlib.sha256(empty).hexdigest()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"layers": [1]}', b'{"config": 5}'])
def test_bytes_that_are_not_a_manifest_are_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptManifest):
        parse_manifest(raw)


def test_a_manifest_reads_back_as_it_was_written() -> None:
    layers = (Layer(MODEL, "sha256:a", 5, "base:latest"), Layer(MODEL, "sha256:b", 6))
    manifest = Manifest(Layer("config", "sha256:c", 7), layers)
    assert parse_manifest(manifest.stored()).layers == layers
    assert parse_manifest(manifest.pushed(names=True)).config == manifest.config


def a_registry_manifest(**changes: object) -> dict[str, object]:
    """A manifest as a tree, its keys in Go's order."""
    layer = {"mediaType": MODEL, "digest": "sha256:a", "size": 5, "from": "base:latest"}
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "config", "digest": "sha256:c", "size": 7},
        "layers": [layer],
        **changes,
    }


@pytest.mark.parametrize(
    "tree",
    [
        a_registry_manifest(),
        a_registry_manifest(layers=[]),
        a_registry_manifest(layers=None),
        a_registry_manifest(mediaType="application/vnd.oci.image.manifest.v1+json"),
        a_registry_manifest(mediaType=""),
    ],
)
def test_a_rewritten_manifest_says_what_was_read(tree: dict[str, object]) -> None:
    raw = json.dumps(tree, indent=3).encode()
    assert parse_manifest(raw).pushed(names=True) == json.dumps(tree, separators=(",", ":")).encode()


@pytest.mark.parametrize(("names", "key"), [(False, ""), (True, ',"name":"blk.0"')])
def test_only_newer_servers_keep_the_names_of_layers(names: bool, key: str) -> None:
    layer = {"mediaType": MODEL, "digest": "sha256:a", "size": 5, "name": "blk.0"}
    written = parse_manifest(json.dumps(a_registry_manifest(layers=[layer])).encode()).pushed(names=names)
    assert f'"size":5{key}}}]}}'.encode() in written


def test_a_manifest_made_without_layers_says_null() -> None:
    assert Manifest(Layer("config", "sha256:c", 7), ()).stored().endswith(b'"layers":null}\n')


@pytest.mark.parametrize("behavior", [RECORDED["0.3.4"], Behavior()])
def test_a_config_reads_back_as_it_was_written(behavior: Behavior) -> None:
    config = Config(
        "gguf", "llama", ("llama",), "7B", "Q4_0", renderer="r", capabilities=("a",), context_length=5
    )
    assert parse_config(config.to_bytes([], behavior)) == config


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"context_length": "x"}'])
def test_bytes_that_are_not_a_config_are_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptManifest):
        parse_config(raw)


# --- the store ------------------------------------------------------------------------------------------------------

BOT = Name("registry.ollama.ai", "library", "bot", "latest")


def test_a_store_has_the_layout_of_the_real_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest, is_new = store.add_blob(b"data")
    store.write_manifest(BOT, b"{}")
    assert is_new
    assert (tmp_path / "blobs" / digest.replace(":", "-")).read_bytes() == b"data"
    assert (tmp_path / "manifests/registry.ollama.ai/library/bot/latest").read_bytes() == b"{}"
    assert store.add_blob(b"data") == (digest, False)


def test_removing_a_manifest_removes_the_folders_that_it_leaves_empty(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = Name("registry.ollama.ai", "me", "bot", "v1")
    for name in (BOT, other):
        store.write_manifest(name, b"{}")
    store.remove_manifest(BOT)
    assert store.names() == [other]
    assert not (tmp_path / "manifests/registry.ollama.ai/library").exists()
    store.remove_manifest(other)
    assert list((tmp_path / "manifests").iterdir()) == []


def test_files_with_invalid_names_are_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = tmp_path / "manifests/host/name space/bot"
    folder.mkdir(parents=True)
    (folder / "latest").write_bytes(b"{}")
    assert store.names() == []


def test_a_blob_that_a_manifest_uses_is_not_removed_as_unused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    used, _ = store.add_blob(b"used")
    unused, _ = store.add_blob(b"unused")
    store.write_manifest(BOT, Manifest(Layer("c", used, 4), ()).stored())
    assert not store.remove_unused_blob(used)
    assert store.remove_unused_blob(unused)
    assert not store.remove_unused_blob(unused)
    assert store.remove_blob(used)


def test_pruning_keeps_used_and_fresh_blobs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    used, _ = store.add_blob(b"used")
    unused, _ = store.add_blob(b"unused")
    store.write_manifest(BOT, Manifest(Layer("c", used, 4), ()).stored())
    assert store.prune(3600) == []
    assert store.prune() == [unused.replace(":", "-")]
    assert store.has_blob(used)


def test_a_request_from_before_a_restart_writes_no_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_manifest(BOT, b"{}")
    request = copy_context()
    request.run(store.enter)
    request.run(store.write_manifest, BOT, b'{"layers":[]}')
    store.prune()
    with pytest.raises(OSError, match="the server has restarted"):
        request.run(store.write_manifest, BOT, b"{}")
    assert store.read_manifest(BOT) == b'{"layers":[]}'


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 64, "sha256:" + "z" * 64, "sha256:../../x"])
def test_an_invalid_digest_has_no_path(digest: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidDigest, match=r"invalid digest format"):
        Store(tmp_path).blob_path(digest)


def test_an_empty_digest_is_the_folder_of_blobs(tmp_path: Path) -> None:
    assert Store(tmp_path).blob_path("") == tmp_path / "blobs"


def test_an_abandoned_upload_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.begin_upload() as upload:
        upload.write(b"half")
    store.disk_full = True
    with pytest.raises(OSError, match=r"no space left"):
        store.add_blob(b"more")
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_model_is_copied_byte_for_byte(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_manifest(BOT, b'{ "odd":1 }')
    os.utime(store.manifest_path(BOT), ns=(5, 5))
    copy = Name("h", "n", "m", "t")
    store.copy_model(BOT, copy)
    assert store.read_manifest(copy) == b'{ "odd":1 }'
    assert store.modified_ns(BOT) == 5


# --- the built-in models --------------------------------------------------------------------------------------------


def test_the_popular_models_are_built_in() -> None:
    wanted = {
        "llama3.2:1b",
        "llama3.2:3b",
        "llama3.2:latest",
        "qwen3:0.6b",
        "qwen3:8b",
        "qwen3:32b",
        "mistral:latest",
    }
    wanted |= {"nomic-embed-text:latest", "all-minilm:latest", "gemma3:latest", "phi4-mini:latest"}
    names = BuiltinModels().names()
    assert wanted <= set(names)
    assert len({name.partition(":")[0] for name in names}) > 12
    assert len(names) == len(set(names))


@pytest.mark.parametrize("pretend", BUILTIN_MODELS, ids=lambda pretend: pretend.name)
def test_every_built_in_model_is_complete_and_says_that_it_is_pretend(pretend: object) -> None:
    builtin, name = BuiltinModels(), str(getattr(pretend, "name", ""))
    model, _, tag = name.partition(":")
    raw = builtin.manifest(f"library/{model}", tag)
    assert raw is not None
    manifest = parse_manifest(raw)
    for layer in manifest.blobs:
        data = builtin.blob(layer.digest)
        assert (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)) == (layer.digest, layer.size)
    weights = builtin.blob(manifest.layers[0].digest)
    header = parse_header(io.BytesIO(weights), len(weights))
    assert header.end == len(weights)
    assert header.text("general.name") == f"pretend {name}"
    license_layer = next(layer for layer in manifest.layers if layer.media_type.endswith("license"))
    assert b"random numbers" in builtin.blob(license_layer.digest)
    for template in (layer for layer in manifest.layers if layer.media_type.endswith("template")):
        check_template(builtin.blob(template.digest).decode())


def test_the_built_in_models_are_the_same_every_time() -> None:
    assert BuiltinModels().manifest("library/qwen3", "8b") == BuiltinModels().manifest(
        "library/qwen3", "latest"
    )
    assert BuiltinModels().manifest("library/qwen3", "nope") is None
    assert BuiltinModels().manifest("me/qwen3", "8b") is None
