"""What show, tags, copy and delete of the sandbox promise on each server version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

import pytest
from sandbox_caller import Json, a_caller, a_gguf, digest_of

from ollamaops.manifest.modelfile import parse_modelfile
from ollamaops.sandbox.behavior import NEWEST, RECORDED

VERSIONS = list(RECORDED)


# --- the template that runs -----------------------------------------------------------------------------------------

PLAIN = "{{ .System }}{{ .Prompt }}"
TOOLS = "{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Prompt }}"
ROUND_TRIP = (
    "{{ .Tools }}{{ range .Messages }}{{ .ToolCalls }}"
    '{{ if eq .Role "tool" }}<r>{{ end }}{{ .Content }}{{ end }}'
)
THINKING = "{{ range .Messages }}{{ .Thinking }}{{ .Content }}{{ end }}"
OWN_PLAIN = "{{ messages[0]['content'] }}"
OWN_TOOLS = "{% if tools %}{{ tools }}{% endif %}{{ messages[0]['content'] }}"
OWN_ROUND_TRIP = "{{ tools }}{{ messages[0].tool_calls }}{% if message.role == 'tool' %}<r>{% endif %}"
OWN_THINKING = "<think>{{ messages[0].thinking }}</think>"
OWN_BOTH = OWN_TOOLS + OWN_THINKING
NEW = ("0.30.0", "0.32.15", "0.33.0-rc2")


@pytest.mark.parametrize("version", ["0.5.7", "0.12.11", "0.24.0", *NEW])
@pytest.mark.parametrize(
    ("own", "declared", "own_runs", "capabilities"),
    [
        (OWN_TOOLS, None, True, ["tools", "completion"]),
        (OWN_TOOLS, PLAIN, True, ["tools", "completion"]),
        (OWN_TOOLS, TOOLS, False, ["completion", "tools"]),
        (OWN_TOOLS, THINKING, False, ["completion", "thinking"]),
        (OWN_PLAIN, None, True, ["completion"]),
        (OWN_PLAIN, PLAIN, False, ["completion"]),
        (OWN_THINKING, PLAIN, True, ["thinking", "completion"]),
        (OWN_BOTH, TOOLS, True, ["tools", "thinking", "completion"]),
        (OWN_BOTH, ROUND_TRIP, False, ["completion", "tools"]),
        (OWN_BOTH + OWN_ROUND_TRIP, ROUND_TRIP, True, ["tools", "thinking", "completion"]),
        (OWN_ROUND_TRIP, TOOLS, True, ["tools", "completion"]),
        (OWN_ROUND_TRIP, ROUND_TRIP, False, ["completion", "tools"]),
    ],
)
def test_the_template_of_the_weights_runs_where_it_offers_more(
    version: str,
    own: str,
    declared: str | None,
    own_runs: bool,
    capabilities: list[str],
    tmp_path: Path,
) -> None:
    with a_caller(tmp_path, version) as caller:
        uploaded = caller.upload(a_gguf({"tokenizer.chat_template": own}))
        template = {} if declared is None else {"template": declared}
        caller.create("base", files={"w.gguf": uploaded}, **template)
        caller.create("child", **{"from": "base"}, system="s")
        caller.create("rendered", **{"from": "base"}, renderer="qwen3-coder", parser="qwen3-coder")
        is_new = version in NEW
        printed = f"\nTEMPLATE {declared or '{{ .Prompt }}'}\n"
        for name in ("base", "child"):
            shown = caller.show(name)
            assert shown["template"] == (own if own_runs and is_new else declared or "{{ .Prompt }}")
            assert printed in str(shown["modelfile"])
            if is_new:
                assert shown["capabilities"] == capabilities
        assert caller.show("rendered")["template"] == (declared or "{{ .Prompt }}")


def test_tools_of_the_weights_own_template_can_be_used_though_tags_does_not_list_them(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    with a_caller(tmp_path) as caller:
        caller.create("own", files={"w.gguf": caller.upload(a_gguf({"tokenizer.chat_template": OWN_TOOLS}))})
        assert caller.tags()["own:latest"]["capabilities"] == ["completion"]
        asked = {"model": "own", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
        assert caller.post("chat", stream=False, **asked).status == 200


# --- show -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain", "plain"),
        (" padded", '" padded"'),
        ("padded ", '"padded "'),
        ("two\nlines", '"two\nlines"'),
        ('"two"\nlines', '""""two"\nlines"""'),
        ('"quoted"', '"quoted"'),
    ],
)
def test_a_text_is_quoted_in_the_modelfile_only_where_the_printer_does(
    text: str, printed: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", system=text, **{"from": "base"})
        shown = caller.show("bot")
        assert shown["system"] == text
        assert f"\nSYSTEM {printed}\n" in str(shown["modelfile"])


def test_the_modelfile_makes_the_model_again(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create(
            "bot",
            system="S",
            template="T {{ .Prompt }}",
            parameters={"seed": 1, "stop": ["a", "b"]},
            license=["L1", "L2"],
            messages=[{"role": "USER", "content": "hi: there", "images": ["eA=="]}],
            **{"from": "base"},
        )
        shown = caller.show("bot")
        commands = [
            (command.name, command.args) for command in parse_modelfile(str(shown["modelfile"])).commands
        ]
        assert commands[0][0] == "model"
        assert commands[1:] == [
            ("template", "T {{ .Prompt }}"),
            ("system", "S"),
            ("seed", "1"),
            ("stop", "a"),
            ("stop", "b"),
            ("license", "L1"),
            ("license", "L2"),
            ("message", "user: hi: there"),
        ]
        assert shown["messages"] == [{"role": "user", "content": "hi: there"}]


@pytest.mark.parametrize(("version", "template"), [("0.12.11", "O"), (NEWEST, "{{ .Prompt }}")])
def test_a_show_request_can_overlay_what_it_asks_for(version: str, template: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        shown = caller.show("base", system="S", template="O", options={"seed": 1})
        assert (shown["system"], shown["template"]) == ("S", template)
        assert "PARAMETER seed 1\n" in str(shown["modelfile"])
        assert "parameters" not in shown


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        ("{{ .Prompt }}", ["completion"]),
        ("{{ .Tools }}{{ .Suffix }}", ["completion", "tools", "insert"]),
        ("{{ range .Messages }}{{ .Thinking }}{{ end }}", ["completion", "thinking"]),
    ],
)
def test_what_a_model_can_do_follows_from_its_template(
    template: str, capabilities: list[str], tmp_path: Path
) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", template=template, **{"from": "base"})
        assert caller.show("bot")["capabilities"] == capabilities
        assert caller.tags()["bot:latest"]["capabilities"] == capabilities


def test_pooling_makes_an_embedding_model_and_a_vision_tower_a_vision_model(tmp_path: Path) -> None:
    fields: dict[str, str | int] = {"llama.vision.block_count": 1, "llama.block_count": 1}
    with a_caller(tmp_path) as caller:
        caller.create("see", files={"a.gguf": caller.upload(a_gguf(fields))})
        caller.post("pull", model="all-minilm")
        assert caller.show("see")["capabilities"] == ["completion", "vision"]
        assert caller.show("all-minilm")["capabilities"] == ["embedding"]


@pytest.mark.parametrize(("version", "shown"), [("0.5.7", [1, 2, 3]), ("0.6.8", None), (NEWEST, None)])
def test_long_lists_are_shown_only_when_verbose(version: str, shown: object, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        plain = cast("Json", caller.show("base")["model_info"])["tokenizer.ggml.tokens"]
        verbose = cast("Json", caller.show("base", verbose=True)["model_info"])["tokenizer.ggml.tokens"]
        assert (plain is None) == (shown is None)
        assert len(cast("list[str]", verbose)) == 259


@pytest.mark.parametrize("version", VERSIONS)
def test_an_invalid_name_is_refused_as_each_version_does(version: str, tmp_path: Path) -> None:
    status, error = RECORDED[version].invalid_show
    with a_caller(tmp_path, version) as caller:
        reply = caller.post("show", model="bad name")
        assert (reply.status, reply.error) == (status, error.format("bad name"))


def test_two_source_suffixes_are_refused(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        for reply in (caller.post("show", model="x:local:cloud"), caller.delete("x:local:cloud")):
            assert (reply.status, reply.error) == (
                400,
                'use either :local or :cloud, not both: "x:local:cloud"',
            )


def test_a_params_layer_that_is_not_json_leaves_the_model_listed_but_unreadable(
    tmp_path: Path,
) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", parameters={"seed": 1}, **{"from": "base"})
        params = caller.sandbox.store.blob_path(digest_of(b'{"seed":1}\n'))
        for spoiled in (b"no json", b"[]"):
            params.write_bytes(spoiled)
            assert caller.post("show", model="bot").status == 500
            assert "capabilities" not in caller.tags()["bot:latest"]


def test_layers_of_unknown_kinds_are_left_alone(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        path = tmp_path / "manifests/registry.ollama.ai/library/base/latest"
        manifest = json.loads(path.read_bytes())
        manifest["layers"].append({"mediaType": "x/unknown", "digest": caller.upload(b"?"), "size": 1})
        path.write_text(json.dumps(manifest))
        assert caller.show("base")["capabilities"] == ["completion"]


# --- tags -----------------------------------------------------------------------------------------------------------


def test_tags_list_every_readable_model_newest_first(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        for age, name in enumerate(["new", "middle", "old"]):
            caller.post("copy", source="base", destination=name)
            path = tmp_path / f"manifests/registry.ollama.ai/library/{name}/latest"
            os.utime(path, (1_000_000 - age, 1_000_000 - age))
        assert list(caller.tags()) == ["base:latest", "new:latest", "middle:latest", "old:latest"]
        (tmp_path / "manifests/registry.ollama.ai/library/new/latest").write_bytes(b"{")
        assert list(caller.tags()) == ["base:latest", "middle:latest", "old:latest"]


def test_the_size_counts_every_layer_as_often_as_it_is_listed(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("bot", license=["four", "four"], **{"from": "base"})
        sizes = {name: cast("int", model["size"]) for name, model in caller.tags().items()}
        assert sizes["bot:latest"] == sizes["base:latest"] + 8


# --- copy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_copying_a_model_that_is_not_there_onto_itself_is_fine(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        assert caller.post("copy", source="nope", destination="nope:latest").status == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_copying_over_a_model_leaves_its_blobs_behind(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.base("other", "tiny-b.gguf")
        weights = caller.weights("tiny-b.gguf")
        caller.post("copy", source="base", destination="other")
        assert caller.has_blob(weights)
        assert caller.tags()["other:latest"]["digest"] == caller.tags()["base:latest"]["digest"]


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [("bad name", "x", 'source "bad name" is invalid'), ("base", "x:", 'destination "x:" is invalid')],
)
def test_copying_needs_two_names(source: str, destination: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.post("copy", source=source, destination=destination)
        assert (reply.status, reply.error) == (400, error)


def test_an_old_server_refuses_a_copy_that_differs_only_in_case(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.3.4") as caller:
        caller.base()
        reply = caller.post("copy", source="base", destination="BASE")
        assert (reply.status, reply.error) == (400, "a model with that name already exists")


def test_a_copy_takes_the_spelling_of_stored_names(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base("llama3:Q4_K_M")
        caller.post("copy", source="LLAMA3:q4_k_m", destination="mistral:q4_K_m")
        assert set(caller.tags()) == {"llama3:Q4_K_M", "mistral:Q4_K_M"}


def test_a_copy_to_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.sandbox.store.disk_full = True
        reply = caller.post("copy", source="base", destination="x")
        assert reply.status == 500
        assert str(reply.error).endswith("no space left on device")


# --- delete ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "deleted"), [("0.12.11", "base:local"), (NEWEST, "base:latest")])
def test_deleting_local_deletes_latest_on_newer_servers(version: str, deleted: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.post("copy", source="base", destination="base:local")
        assert caller.delete("base:local").status == 200
        assert set(caller.tags()) == {"base:latest", "base:local"} - {deleted}


@pytest.mark.parametrize("version", VERSIONS)
def test_deleting_removes_the_blobs_that_nothing_else_uses(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.post("copy", source="base", destination="copy")
        blobs = set(caller.sandbox.store.used_digests())
        caller.delete("base")
        assert all(map(caller.has_blob, blobs))
        caller.delete("copy")
        assert not any(map(caller.has_blob, blobs))


def test_deleting_an_invalid_name_is_refused(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.delete("bad name")
        assert (reply.status, reply.error) == (400, 'name "bad name" is invalid')


def test_a_corrupt_manifest_cannot_be_deleted(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        (tmp_path / "manifests/registry.ollama.ai/library/base/latest").write_bytes(b"{")
        assert caller.delete("base").status == 500


def test_a_deleted_model_stays_in_memory(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.post("generate", model="base")
        caller.delete("base")
        loaded = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])
        assert [model["name"] for model in loaded] == ["base:latest"]
