"""What create promises on each server version: what is stored, inherited, refused, left behind."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import cast

import pytest
from sandbox_caller import WEIGHTS, Caller, Json, a_caller, a_gguf, a_safetensors, digest_of

from ollamaops.sandbox.create import remote_url
from ollamaops.sandbox.gguf_file import Tensor
from ollamaops.sandbox.responses import Refusal

MODELFILE_ERA = "0.3.4"
STRUCTURED = ("0.5.7", "0.6.8", "0.12.11", "0.33.0-rc2")
GOING_ON = ("0.5.7", "0.6.8")
STOPPING = ("0.12.11", "0.33.0-rc2")
SHARDS = tuple(Tensor(f"blk.{number}.attn_q.weight", (32, 32), 0) for number in range(2))


def config_of(caller: Caller, name: str) -> Json:
    """The config blob of a model of the default registry."""
    (path,) = caller.sandbox.store.manifests.glob(f"registry.ollama.ai/library/{name}/latest")
    manifest = json.loads(path.read_bytes())
    config: Json = json.loads(caller.sandbox.store.read_blob(manifest["config"]["digest"]))
    return config


def layers_of(caller: Caller, name: str) -> list[Json]:
    """The layers in a model's manifest."""
    (path,) = caller.sandbox.store.manifests.glob(f"registry.ollama.ai/library/{name}/latest")
    return cast("list[Json]", json.loads(path.read_bytes())["layers"] or [])


# --- the base -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", GOING_ON)
def test_a_missing_base_destroys_the_model_and_reports_success(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base("mario")
        reply = caller.create("mario", **{"from": "nope"})
        assert reply.status == 200
        assert reply.error == "pull model manifest: file does not exist"
        assert reply.lines[-1] == {"status": "success"}
        assert layers_of(caller, "mario") == []
        assert caller.post("show", model="mario").status == 404


@pytest.mark.parametrize("version", STOPPING)
def test_a_missing_base_leaves_the_model_alone(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base("mario")
        before = caller.tags()["mario:latest"]["digest"]
        reply = caller.create("mario", **{"from": "nope"})
        assert reply.statuses == ["pulling manifest", "pull model manifest: file does not exist"]
        assert caller.tags()["mario:latest"]["digest"] == before


@pytest.mark.parametrize("version", [*STRUCTURED, MODELFILE_ERA])
def test_without_stream_a_missing_base_is_a_500_and_changes_nothing(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base("mario")
        before = caller.tags()
        reply = caller.create("mario", stream=False, modelfile="FROM nope\n", **{"from": "nope"})
        assert (reply.status, reply.error) == (500, "pull model manifest: file does not exist")
        assert caller.tags() == before


@pytest.mark.parametrize("version", STRUCTURED)
def test_the_success_of_a_pulled_base_appears_inside_the_stream(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.create("bot", system="be brief", **{"from": "tinyllama"})
        statuses = reply.statuses
        assert statuses.count("success") == 2
        assert statuses[0] == "pulling manifest"
        assert statuses[-1] == "success"
        assert set(caller.tags()) == {"tinyllama:latest", "bot:latest"}


@pytest.mark.parametrize("version", GOING_ON)
def test_without_stream_old_servers_stop_at_the_success_of_the_base(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.create("bot", stream=False, **{"from": "tinyllama"})
        assert (reply.status, reply.document) == (200, {"status": "success"})
        assert set(caller.tags()) == {"tinyllama:latest"}


@pytest.mark.parametrize("version", STOPPING)
def test_without_stream_newer_servers_also_make_the_model(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.create("bot", stream=False, **{"from": "tinyllama"})
        assert set(caller.tags()) == {"tinyllama:latest", "bot:latest"}


def test_a_base_is_looked_up_in_exactly_the_given_case(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        assert caller.create("bot", **{"from": "BASE"}).error == "pull model manifest: file does not exist"


@pytest.mark.parametrize("version", STRUCTURED)
def test_from_wins_over_files(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        other = caller.weights("tiny-b.gguf")
        caller.create("bot", files={"b.gguf": other}, **{"from": "base"})
        assert [layer["digest"] for layer in layers_of(caller, "bot")] == [
            layer["digest"] for layer in layers_of(caller, "base")
        ]


@pytest.mark.parametrize(
    ("version", "name", "error"),
    [
        ("0.12.11", "bad name", "invalid model name"),
        ("0.33.0-rc2", "bad name", "invalid model name"),
        ("0.33.0-rc2", "x:cloud:local", 'use either :local or :cloud, not both: "x:cloud:local"'),
    ],
)
def test_a_bad_base_name_is_refused(version: str, name: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.create("bot", **{"from": name})
        assert (reply.status, reply.error) == (400, error)


def test_a_base_whose_weights_are_gone_is_an_error(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        weights = str(layers_of(caller, "base")[0]["digest"])
        caller.sandbox.store.remove_blob(weights)
        path = caller.sandbox.store.blob_path(weights)
        reply = caller.create("bot", **{"from": "base"})
        assert (reply.status, reply.error) == (500, f"stat {path}: no such file or directory")


def test_a_base_whose_weights_are_not_gguf_is_an_error(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.sandbox.store.blob_path(str(layers_of(caller, "base")[0]["digest"])).write_bytes(b"spoiled!")
        assert caller.create("bot", **{"from": "base"}).error == "invalid file magic"


# --- what is laid over it -------------------------------------------------------------------------------------------


def test_licenses_pile_up_when_a_model_is_made_from_itself(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("self", license="L", **{"from": "base"})
        for _ in range(2):
            caller.create("self", license="L", **{"from": "self"})
        assert caller.show("self")["license"] == "L\nL\nL"


@pytest.mark.parametrize("version", STRUCTURED)
@pytest.mark.parametrize("nothing", ["", None])
def test_empty_texts_clear_nothing(version: str, nothing: object, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        said = [{"role": "user", "content": "hi"}]
        caller.create("full", system="S", template="T {{ .Prompt }}", messages=said, **{"from": "base"})
        caller.create("again", system=nothing, template=nothing, messages=[], license="", **{"from": "full"})
        shown = caller.show("again")
        assert (shown["system"], shown["template"], shown["messages"]) == ("S", "T {{ .Prompt }}", said)


@pytest.mark.parametrize(
    ("version", "keys"),
    [("0.6.8", ["role", "content", "images"]), ("0.12.11", ["role", "content", "thinking", "images"])],
)
def test_a_message_keeps_what_its_server_knows(version: str, keys: list[str], tmp_path: Path) -> None:
    message = {
        "bogus": 1,
        "Images": ["eA=="],
        "thinking": "hm",
        "content": "hi",
        "ROLE": "User",
        "tool_name": "",
    }
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.create("bot", messages=[message], **{"from": "base"})
        stored = json.loads(caller.sandbox.store.read_blob(str(layers_of(caller, "bot")[-1]["digest"])))
        assert list(stored[0]) == keys
        assert stored[0]["role"] == "user"


@pytest.mark.parametrize(
    ("license_", "shown"),
    [("MIT", "MIT"), (["MIT", "BSD"], "MIT\nBSD"), (["MIT", None], "MIT\n"), ([""], None)],
)
def test_a_license_is_a_text_or_a_list_of_texts(license_: object, shown: str | None, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", license=license_, **{"from": "base"})
        assert caller.show("bot").get("license") == shown


@pytest.mark.parametrize(
    ("license_", "error"),
    [
        ({"a": 1}, "json: cannot unmarshal object into Go value of type []string"),
        (5, "json: cannot unmarshal number into Go value of type []string"),
        (["a", 5], "json: cannot unmarshal number into Go value of type string"),
    ],
)
def test_any_other_license_is_an_error(license_: object, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        reply = caller.create("bot", license=license_, **{"from": "base"})
        assert (reply.status, reply.error) == (500, error)
        assert "bot:latest" not in caller.tags()


def test_parameters_are_stored_as_given_and_read_back_as_float64(tmp_path: Path) -> None:
    given = {
        "temperature": 0.7,
        "num_ctx": 1048576,
        "use_mmap": True,
        "bogus": {"b": 1, "a": [None, "x"]},
        "stop": ["a", '\u2028"<'],
        "seed": None,
    }
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", parameters=given, **{"from": "base"})
        stored = next(
            layer["digest"]
            for layer in layers_of(caller, "bot")
            if str(layer["mediaType"]).endswith("params")
        )
        assert caller.sandbox.store.read_blob(str(stored)) == (
            b'{"bogus":{"a":[null,"x"],"b":1},"num_ctx":1048576,"seed":null,"stop":["a","\\u2028\\"\\u003c"],'
            b'"temperature":0.7,"use_mmap":true}\n'
        )
        bogus = 'map[string]interface {}{"a":[]interface {}{interface {}(nil), "x"}, "b":1}'
        assert caller.show("bot")["parameters"] == "\n".join(
            [
                f"{'bogus':<30} {bogus}",
                "num_ctx                        1.048576e+06",
                "seed                           <nil>",
                'stop                           "a"',
                'stop                           "\\u2028\\"<"',
                "temperature                    0.7",
                "use_mmap                       true",
            ]
        )


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ .Unclosed", "template: :1: unclosed action"),
        ("a\n{{ end }}", "template: :2: unexpected {{end}}"),
        ("{{ if .System }}x", "template: :1: unexpected EOF"),
        ("{{ frobnicate .System }}", 'template: :1: function "frobnicate" not defined'),
    ],
)
def test_a_bad_template_is_refused_and_leaves_the_model_alone(
    template: str, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        before = caller.tags()
        reply = caller.create("base", template=template, **{"from": "base"})
        assert (reply.status, reply.error) == (400, f"template error: {error}")
        assert caller.tags() == before


def test_a_replaced_model_loses_the_blobs_that_only_it_used(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", system="one", **{"from": "base"})
        caller.create("bot", system="two", **{"from": "base"})
        assert not caller.has_blob(digest_of(b"one"))
        assert caller.has_blob(digest_of(b"two"))


def test_the_same_request_makes_the_same_digest(tmp_path: Path) -> None:
    with a_caller(tmp_path / "one") as one, a_caller(tmp_path / "two") as two:
        for caller in (one, two):
            caller.base()
            caller.create("bot", parameters={"b": 1, "a": 2}, system="x", **{"from": "base"})
        assert one.tags()["bot:latest"]["digest"] == two.tags()["bot:latest"]["digest"]


# --- renderer, parser, info, remote stubs ---------------------------------------------------------------------------


def test_renderer_parser_and_requires_are_kept_and_inherited(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("one", renderer="r", parser="p", requires="0.14.0", **{"from": "base"})
        caller.create("two", parser="q", **{"from": "one"})
        assert "RENDERER r\nPARSER q\n" in str(caller.show("two")["modelfile"])
        assert caller.show("two")["requires"] == "0.14.0"


def test_an_old_server_ignores_them(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.6.8") as caller:
        caller.base()
        caller.create("one", renderer="r", info={"model_family": 5}, requires="9", **{"from": "base"})
        assert set(config_of(caller, "one")) == set(config_of(caller, "base"))


def test_info_overrides_the_config(tmp_path: Path) -> None:
    info = {
        "capabilities": ["tools"],
        "model_family": "fam",
        "base_name": "b",
        "quantization_level": "Q9",
        "parameter_size": "7B",
        "context_length": 5.0,
        "embedding_length": 6,
    }
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", info=info, **{"from": "base"})
        details = cast("Json", caller.tags()["bot:latest"]["details"])
        assert details == {
            "parent_model": "base:latest",
            "format": "gguf",
            "family": "fam",
            "families": ["fam", "llama"],
            "parameter_size": "7B",
            "quantization_level": "Q9",
            "context_length": 5,
            "embedding_length": 6,
        }
        assert caller.show("bot")["capabilities"] == ["completion", "tools"]


@pytest.mark.parametrize(
    ("info", "error"),
    [
        ({"model_family": 5}, 'info field "model_family" must be a string'),
        ({"context_length": "5"}, 'info field "context_length" must be a number'),
        ({"context_length": True}, 'info field "context_length" must be a number'),
        ({"capabilities": "tools"}, 'info field "capabilities" must be an array of strings'),
        ({"capabilities": ["a", 1]}, 'info field "capabilities" element 1 must be a string'),
    ],
)
def test_info_of_the_wrong_type_is_refused(info: object, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        reply = caller.create("bot", info=info, **{"from": "base"})
        assert (reply.status, reply.error) == (400, error)


def test_versions_that_would_crash_accept_info_of_the_wrong_type(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.12.11") as caller:
        caller.base()
        info = {"capabilities": [1], "model_family": 5, "context_length": "x"}
        caller.create("bot", info=info, **{"from": "base"})
        assert config_of(caller, "bot")["model_family"] == "5"


@pytest.mark.parametrize(
    ("request_", "host"),
    [
        ({"from": "qwen3:cloud"}, "https://ollama.com:443"),
        ({"from": "qwen3", "remote_host": "gpu.lan"}, "http://gpu.lan:11434"),
    ],
)
def test_a_cloud_base_makes_a_stub(request_: Json, host: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.create("stub", info={"capabilities": ["completion"]}, **request_)
        entry = caller.tags()["stub:latest"]
        assert (entry["remote_model"], entry["remote_host"]) == ("qwen3", host)
        assert entry["capabilities"] == ["completion"]
        for answer in (caller.post("show", model="stub"), caller.post("generate", model="stub", prompt="hi")):
            assert answer.status == 403
            assert str(answer.error).startswith("ollama cloud is disabled")
        assert caller.post("show", model="stub:local").error == "model 'stub:latest' not found"


def test_older_servers_show_what_a_stub_knows_of_its_model(tmp_path: Path) -> None:
    info = {"model_family": "qwen3", "base_name": "Qwen3", "context_length": 5}
    with a_caller(tmp_path, "0.12.11") as caller:
        caller.create("stub", info=info, remote_host="h", **{"from": "qwen3"})
        caller.create("bare", remote_host="h", **{"from": "qwen3"})
        assert caller.show("stub")["model_info"] == {
            "general.architecture": "qwen3",
            "general.basename": "Qwen3",
            "qwen3.context_length": 5,
        }
        assert "model_info" not in caller.show("bare")


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("ollama.com", "https://ollama.com:443"),
        ("http://ollama.com", "https://ollama.com:443"),
        ("/path/../x", "http://localhost:11434/x"),
        ("https://h:1/a/", "https://h:1/a"),
        ("h/", "http://h:11434"),
        ("[::1]:5", "http://[::1]:5"),
    ],
)
def test_a_remote_host_is_completed(given: str, completed: str) -> None:
    assert remote_url(given) == completed


def test_a_remote_host_with_an_impossible_port_is_bad() -> None:
    with pytest.raises(Refusal, match="bad remote"):
        remote_url("h:99999999")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.6.8", "0.12.11", "0.33.0-rc2"])
@pytest.mark.parametrize("path", ["../w.gguf", "/w.gguf", "a//w.gguf", "a/./w.gguf", ""])
def test_a_file_path_out_of_the_folder_is_refused(version: str, path: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.create("bot", files={path: caller.weights()})
        assert (reply.status, reply.error) == (400, "file path must be relative")


@pytest.mark.parametrize(("version", "parent"), [("0.12.11", "blob"), ("0.33.0-rc2", "")])
def test_imported_weights_are_rewritten_only_by_newer_servers(
    version: str, parent: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        uploaded = digest_of((WEIGHTS / "tiny-a.gguf").read_bytes())
        (layer,) = layers_of(caller, "base")
        assert (layer["digest"] == uploaded) == bool(parent)
        details = cast("Json", caller.show("base")["details"])
        expected = str(caller.sandbox.store.blob_path(uploaded)) if parent else ""
        assert details["parent_model"] == expected


def test_the_rewritten_file_is_kept_as_it_is_when_imported_again(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        (layer,) = layers_of(caller, "base")
        caller.create("again", files={"x.gguf": layer["digest"]})
        assert layers_of(caller, "again")[0]["digest"] == layer["digest"]


def test_weights_with_embedded_vision_keep_their_digest_and_name(tmp_path: Path) -> None:
    data = a_gguf({"llama.block_count": 1}, (Tensor("v.patch_embd.weight", (32, 2), 0),))
    with a_caller(tmp_path) as caller:
        caller.create("see", files={"see.gguf": caller.upload(data)})
        (layer,) = layers_of(caller, "see")
        assert (layer["digest"], layer["from"]) == (digest_of(data), "see.gguf")


def test_weights_without_a_file_type_get_a_guessed_one(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.create("bare", files={"a.gguf": caller.upload(a_gguf())})
        info = cast("Json", caller.show("bare")["model_info"])
        assert info["general.file_type"] == 1024


def test_a_cut_file_is_refused_by_servers_that_rewrite(tmp_path: Path) -> None:
    data = (WEIGHTS / "tiny-a.gguf").read_bytes()[:-4096]
    with a_caller(tmp_path / "new") as new, a_caller(tmp_path / "old", "0.12.11") as old:
        files = {"a.gguf": new.upload(data)}
        assert "failed to validate GGUF with llama-quantize" in str(new.create("cut", files=files).error)
        old.upload(data)
        assert old.create("cut", files=files).lines[-1] == {"status": "success"}


@pytest.mark.parametrize(("version", "error"), [("0.6.8", "invalid file magic"), ("0.12.11", None)])
def test_bytes_behind_the_last_tensor_stop_older_servers(
    version: str, error: str | None, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        digest = caller.upload((WEIGHTS / "tiny-a.gguf").read_bytes() + b"more of something")
        assert caller.create("long", files={"a.gguf": digest}).error == error


@pytest.mark.parametrize(
    ("data", "name", "error"),
    [
        (b"GGUF\x03\0\0\0", "a.gguf", "unexpected EOF"),
        (b"GGUF\x09\0\0\0" + bytes(16), "a.gguf", "unsupported version: 9"),
        (b"no model", "a.gguf", "supplied file was not in GGUF format"),
        (b"no model", "a.bin", "unknown type"),
        (b"", "a.bin", "unknown type"),
    ],
)
def test_a_file_that_is_not_gguf_is_refused(data: bytes, name: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        assert caller.create("bot", files={name: caller.upload(data)}).error == error


@pytest.mark.parametrize("name", ["a.gguf", "a.bin"])
def test_a_malformed_digest_is_refused(name: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        assert caller.create("bot", files={name: "sha256:abc"}).error in {
            "invalid digest format",
            "unknown type",
        }
        assert caller.create("bot", files={name: ""}).error == "invalid digest format"


def test_gguf_is_recognized_without_its_ending(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        assert caller.create("bot", files={"weights": caller.weights()}).lines[-1] == {"status": "success"}


@pytest.mark.parametrize(
    ("version", "fields", "kind"),
    [
        ("0.33.0-rc2", {"general.type": "mmproj"}, "projector"),
        ("0.33.0-rc2", {"clip.has_vision_encoder": 1}, "projector"),
        ("0.33.0-rc2", {"clip.vision.block_count": 2}, "projector"),
        ("0.33.0-rc2", {"clip.vision.block_count": 2, "clip.block_count": 2}, "model"),
        ("0.6.8", {"clip.vision.block_count": 2, "clip.block_count": 2}, "projector"),
        ("0.6.8", {"general.type": "projector"}, "projector"),
    ],
)
def test_a_second_file_is_a_projector_if_it_sees(
    version: str, fields: dict[str, str | int], kind: str, tmp_path: Path
) -> None:
    eye = a_gguf(fields, architecture="clip")
    with a_caller(tmp_path, version) as caller:
        caller.create("both", files={"a.gguf": caller.weights(), "b.gguf": caller.upload(eye)})
        media_types = [str(layer["mediaType"]).rpartition(".")[2] for layer in layers_of(caller, "both")]
        assert sorted(media_types) == sorted(["model", kind])


def test_a_projector_is_shown(tmp_path: Path) -> None:
    eye = a_gguf({"clip.has_vision_encoder": 1, "general.name": "eye"}, architecture="clip")
    with a_caller(tmp_path) as caller:
        caller.create("both", files={"a.gguf": caller.weights(), "b.gguf": caller.upload(eye)})
        shown = caller.show("both")
        assert cast("Json", shown["projector_info"])["general.architecture"] == "clip"
        assert shown["capabilities"] == ["completion", "vision"]
        assert str(shown["modelfile"]).count("\nFROM ") == 2
        assert cast("Json", shown["details"])["families"] == ["llama"]


# --- split files ----------------------------------------------------------------------------------------------------


def a_shard(number: int, count: int = 2, **further: int) -> bytes:
    fields: dict[str, str | int] = {
        "split.no": number,
        "split.count": count,
        "llama.block_count": 2,
        **further,
    }
    return a_gguf(fields, (SHARDS[number % 2],))


def test_split_files_become_one_model(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        files = {f"m-{n + 1:05}-of-00002.gguf": caller.upload(a_shard(n)) for n in range(2)}
        caller.create("whole", files=files)
        (layer,) = layers_of(caller, "whole")
        shown = caller.show("whole")
        tensors = cast("list[Json]", shown["tensors"])
        assert [tensor["name"] for tensor in tensors] == [tensor.name for tensor in SHARDS]
        assert not any("split" in key for key in cast("Json", shown["model_info"]))
        assert "from" not in layer


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["m.gguf", "n.gguf"], 'split GGUF "m.gguf" must use llama.cpp split filename pattern'),
        (["m-00001-of-00002.gguf"], 'split GGUF "m-00001-of-00002.gguf" has 1 shards, expected 2'),
        (
            ["m-00001-of-00003.gguf"],
            'split GGUF "m-00001-of-00003.gguf" filename count 3 does not match metadata count 2',
        ),
        (
            ["m-00002-of-00002.gguf"],
            'split GGUF "m-00002-of-00002.gguf" filename index 1 does not match metadata index 0',
        ),
    ],
)
def test_split_files_that_do_not_fit_together_are_refused(
    names: list[str], error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        files = {name: caller.upload(a_shard(number)) for number, name in enumerate(names)}
        assert caller.create("whole", files=files).error == error


def test_older_servers_take_shards_for_separate_models(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.12.11") as caller:
        files = {f"m-{n + 1:05}-of-00002.gguf": caller.upload(a_shard(n)) for n in range(2)}
        caller.create("parts", files=files)
        assert len(layers_of(caller, "parts")) == 2


# --- adapters and drafts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["a.gguf", "b.gguf"], "only one adapter is currently supported"),
        (["a.bin"], "unknown type"),
        (["adapter_model.safetensors"], "open adapter_config.json: file does not exist"),
    ],
)
def test_adapters_that_cannot_be_used_are_the_requests_fault(
    names: list[str], error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        data = b"nothing" if names == ["a.bin"] else (WEIGHTS / "tiny-lora.gguf").read_bytes()
        adapters = {name: caller.upload(data) for name in names}
        reply = caller.create("tuned", adapters=adapters, stream=False, **{"from": "base"})
        assert (reply.status, reply.error) == (400, error)


def test_a_safetensors_adapter_is_converted(tmp_path: Path) -> None:
    lora = a_safetensors(
        base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight=(4, 32),
        base_model__model__model__layers__0__self_attn__q_proj__lora_B__weight=(32, 4),
    )
    with a_caller(tmp_path) as caller:
        caller.base()
        adapters = {
            "adapter_model.safetensors": caller.upload(lora),
            "adapter_config.json": caller.upload(b'{"lora_alpha": 8}'),
        }
        reply = caller.create("tuned", adapters=adapters, **{"from": "base"})
        assert reply.statuses[0] == "converting adapter"
        assert "\nADAPTER " in str(caller.show("tuned")["modelfile"])


def test_a_safetensors_adapter_needs_a_base_that_is_supported(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.create("odd", files={"a.gguf": caller.upload(a_gguf(architecture="odd"))})
        adapters = {
            "adapter_model.safetensors": caller.upload(a_safetensors(x=(1,))),
            "adapter_config.json": caller.upload(b"{}"),
        }
        assert (
            caller.create("tuned", adapters=adapters, **{"from": "odd"}).error == "unsupported architecture"
        )


def test_a_draft_is_stored_beside_the_model(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        drafts = {"d.gguf": caller.weights("tiny-b.gguf")}
        caller.create("fast", draft_files=drafts, **{"from": "base"})
        assert config_of(caller, "fast")["draft"] == {"model_format": "gguf", "architecture": "llama"}
        assert "\nDRAFT " in str(caller.show("fast")["modelfile"])
        refused = caller.create("fast", draft_files={"d.bin": caller.upload(b"no model")}, **{"from": "base"})
        assert refused.error == "unknown type"


# --- quantize and convert -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", STRUCTURED)
def test_only_files_declared_as_f16_can_be_quantized(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.create("q", files={"a.gguf": caller.weights()}, quantize="q8_0", stream=False)
        assert reply.status == 500
        assert "quantization is only supported for" in str(reply.error)


@pytest.mark.parametrize(("version", "types"), [("0.33.0-rc2", "Q5_0 Q8_0"), ("0.6.8", "Q5_0 Q8_0")])
def test_k_types_fall_back_for_narrow_rows(version: str, types: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.create("q", files={"a.gguf": caller.weights("tiny-f16.gguf")}, quantize="q4_K_M")
        tensors = cast("list[Json]", caller.show("q")["tensors"])
        narrow = {str(tensor["type"]) for tensor in tensors} - {"F32", "F16"}
        expected = {"0.33.0-rc2": {"Q5_0", "Q8_0"}, "0.6.8": {"Q4_3", "Q5_0"}}[version]
        assert narrow == expected
        assert cast("Json", caller.show("q")["details"])["quantization_level"] == "Q4_K_M"


def test_wide_rows_become_k_types(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.create("q", files={"a.gguf": caller.weights("tiny-ascii-f16.gguf")}, quantize="q4_K")
        tensors = cast("list[Json]", caller.show("q")["tensors"])
        assert {str(tensor["type"]) for tensor in tensors} == {"Q4_K", "Q6_K", "F32"}


def test_quantizing_to_what_it_is_changes_nothing(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.12.11") as caller:
        digest = caller.weights("tiny-f16.gguf")
        caller.create("same", files={"a.gguf": digest}, quantize="f16")
        assert layers_of(caller, "same")[0]["digest"] == digest


def test_a_base_can_be_quantized(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base("f16", "tiny-f16.gguf")
        reply = caller.create("q", quantize="q8_0", **{"from": "f16"})
        assert reply.statuses[0] == "verifying conversion"
        assert cast("Json", caller.show("q")["details"])["quantization_level"] == "Q8_0"


def a_directory(caller: Caller, **changes: object) -> dict[str, str]:
    """The uploaded files of the test directory, with some config values changed."""
    folder = WEIGHTS / "tiny-hf"
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    files = {path.name: caller.upload(path.read_bytes()) for path in folder.iterdir()}
    return {**files, "config.json": caller.upload(json.dumps(config).encode())}


@pytest.mark.parametrize(
    ("missing", "changes", "error"),
    [
        ("", {"architectures": ["Odd"]}, 'unsupported architecture "Odd"'),
        ("", {"architectures": []}, 'unsupported architecture ""'),
        ("config.json", {}, "open config.json: file does not exist"),
        ("tokenizer.json", {}, "open tokenizer.model: file does not exist"),
    ],
)
def test_a_directory_that_cannot_be_converted_is_refused(
    missing: str, changes: Json, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        files = a_directory(caller, **changes)
        files.pop(missing, None)
        assert caller.create("hf", files=files).error == error


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"short", "unexpected EOF"),
        (
            b"\x04" + bytes(7) + b"nope",
            "invalid safetensors header: Expecting value: line 1 column 1 (char 0)",
        ),
    ],
)
def test_broken_safetensors_are_refused(data: bytes, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        files = {**a_directory(caller), "model.safetensors": caller.upload(data)}
        assert caller.create("hf", files=files).error == error


def test_broken_json_in_a_directory_is_refused(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        files = {**a_directory(caller), "config.json": caller.upload(b"{")}
        assert str(caller.create("hf", files=files).error).startswith("config.json: ")


def test_a_directory_with_a_sentencepiece_tokenizer_and_a_template_is_converted(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        files = a_directory(caller, rope_theta=None)
        files["tokenizer.model"] = files.pop("tokenizer.json")
        assert caller.create("spm", files=files).lines[-1] == {"status": "success"}


# --- Modelfiles (up to 0.5.4) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modelfile", "error"),
    [
        ("FROM ./weights.gguf\n", "invalid model reference: ./weights.gguf"),
        ("FROM @sha256:abc\n", "invalid digest format"),
        ("FROM base\nPARAMETER use_mmap maybe\n", "invalid bool value [maybe]"),
        ("FROM base\nPARAMETER temperature hot\n", "invalid float value [hot]"),
        ("FROM base\nPARAMETER frobs 1\n", "unknown parameter 'frobs'"),
    ],
)
def test_a_modelfile_that_fails_leaves_the_model_alone(modelfile: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        caller.base()
        before = caller.tags()
        assert caller.create("base", modelfile=modelfile).lines == ({"error": error},)
        assert caller.tags() == before


def test_a_modelfile_on_the_servers_disk_is_not_read(tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        reply = caller.create("bot", path="/etc/Modelfile")
        expected = "error reading modelfile: open /etc/Modelfile: no such file or directory"
        assert (reply.status, reply.error) == (400, expected)


@pytest.mark.parametrize("command", ["RENDERER r", "PARSER p", "REQUIRES 0.14.0", "FRM x"])
def test_commands_that_old_servers_do_not_know_are_refused(command: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        reply = caller.create("bot", modelfile=f"FROM base\n{command}\n")
        assert reply.status == 400
        assert str(reply.error).startswith('command must be one of "from", "license"')


def test_parameters_of_a_modelfile_are_typed(tmp_path: Path) -> None:
    modelfile = (
        "FROM base\nPARAMETER temperature 0.1\nPARAMETER use_mmap t\nPARAMETER seed 7\nPARAMETER stop a\n"
    )
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        caller.base()
        caller.create("bot", modelfile=modelfile + "PARAMETER stop b\n")
        assert caller.show("bot")["parameters"] == "\n".join(
            [
                "seed                           7",
                'stop                           "a"',
                'stop                           "b"',
                "temperature                    0.1",
                "use_mmap                       true",
            ]
        )


def test_an_empty_system_clears_the_inherited_one(tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        caller.base()
        caller.create("loud", modelfile='FROM base\nSYSTEM "shout"\nMESSAGE user hi\n')
        caller.create("calm", modelfile='FROM loud\nSYSTEM ""\nMESSAGE user bye\n')
        shown = caller.show("calm")
        assert "system" not in shown
        assert shown["messages"] == [{"role": "user", "content": "bye"}]


def test_a_name_that_differs_only_in_case_is_refused(tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        caller.base()
        reply = caller.create("Base", modelfile="FROM base\n")
        assert (reply.status, reply.error) == (400, "a model with that name already exists")


def a_zip(names: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return packed.getvalue()


def test_a_zip_of_safetensors_is_converted_once(tmp_path: Path) -> None:
    data = a_zip({path.name: path.read_bytes() for path in (WEIGHTS / "tiny-hf").iterdir()})
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        modelfile = f"FROM @{caller.upload(data)}\n"
        assert caller.create("hf", modelfile=modelfile).statuses[0] == "converting model"
        assert str(caller.create("hf", modelfile=modelfile).statuses[0]).startswith(
            "using cached layer sha256:"
        )


@pytest.mark.parametrize(
    ("data", "error"), [(a_zip({"../x": b""}), "zip: insecure file path"), (b"PK\x03\x04 no zip", "zip: ")]
)
def test_a_zip_that_cannot_be_unpacked_is_refused(data: bytes, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, MODELFILE_ERA) as caller:
        reply = caller.create("hf", modelfile=f"FROM @{caller.upload(data)}\n")
        assert str(reply.error).startswith(error)
        assert not list(caller.sandbox.store.root.glob("tmp*"))


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [*STRUCTURED, MODELFILE_ERA])
def test_a_full_disk_ends_a_create_with_the_systems_words(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        before = caller.tags()
        caller.sandbox.store.disk_full = True
        reply = caller.create(
            "bot", system="x", modelfile="FROM base\nSYSTEM x\n", stream=False, **{"from": "base"}
        )
        assert reply.status == 500
        assert str(reply.error).endswith("no space left on device")
        assert caller.tags() == before


@pytest.mark.parametrize("files", [{"a.gguf": "tiny-a.gguf"}, {"x.safetensors": "tiny-a.gguf"}])
def test_a_full_disk_ends_an_import_too(files: dict[str, str], tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        uploaded = a_directory(caller) if "x.safetensors" in files else {"a.gguf": caller.weights()}
        caller.sandbox.store.disk_full = True
        assert str(caller.create("bot", files=uploaded).error).endswith("no space left on device")
