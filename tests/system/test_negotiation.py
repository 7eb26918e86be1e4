"""What the engine asks of a server depends on its version, and changes exactly where the servers change.

Each test stands on both sides of one boundary. The hosts say that they are a version next to it and behave like the
recorded server on that side of it (`like`); where no recorded server has a trait, it is set in the behavior.
test_version.py holds the bare table of boundaries.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_host import (
    BASE,
    WEIGHTS,
    LiveHost,
    a_build,
    a_copy,
    a_model,
    an_absence,
    assert_converged,
    failures,
    ids,
    name,
    weights,
)
from msgspec import structs
from recording_proxy import RecordingProxy, Request
from registry_fixture import push_model, run_registry
from scripted_host import ScriptedHost, always, routes

from ollamaops.manifest.types import Build, ModelSpec, Pull
from ollamaops.names import Digest
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import HostPlan
from ollamaops.sandbox.behavior import RECORDED, Behavior, behavior_for
from ollamaops.sandbox.model_name import parse_name
from ollamaops.sandbox.server import Sandbox
from ollamaops.settings import Message

SHARDS = ("w-00001-of-00002.gguf", "w-00002-of-00002.gguf")


@contextmanager
def a_host_like(
    version: str, like: str | Behavior, *, store: Path | None = None, state: Path | None = None
) -> Iterator[LiveHost]:
    """A host that says it is `version` and behaves as the recorded server `like`."""
    behavior = like if isinstance(like, Behavior) else RECORDED[like]
    behavior = replace(behavior, wrong_method_status=behavior_for(version).wrong_method_status)
    proxy = RecordingProxy()
    with (
        tempfile.TemporaryDirectory(prefix="ollamaops-test-") as folder,
        Sandbox(store, as_version=version, behavior=behavior, faults=proxy.wrap) as sandbox,
    ):
        yield LiveHost(sandbox, state or Path(folder), proxy)


def sent(host: LiveHost, path: str) -> list[dict[str, Any]]:
    """The bodies of every request to a path."""
    return [json.loads(request.body) for request in host.proxy.seen if request.path == path]


def given_up(plan: HostPlan) -> list[str]:
    """Why nothing is planned for some models."""
    return [note.message for note in plan.notes if note.unresolved or note.lasting]


# --- create: its form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "like", "form"), [("0.5.4", "0.3.4", "modelfile"), ("0.5.5", "0.5.7", "from")]
)
def test_055_a_model_is_asked_for_with_a_modelfile_before_and_with_fields_since(
    version: str, like: str, form: str
) -> None:
    bot = a_model(
        "bot",
        a_build(
            BASE,
            system="be kind",
            parameters={"temperature": 0.5, "stop": ("a", "b")},
            messages=(Message("user", "hi"),),
        ),
    )
    with a_host_like(version, like) as host:
        assert_converged(host, host.apply([a_model(BASE), bot]))
        (body,) = sent(host, "/api/create")
        assert {"modelfile", "from", "system", "parameters", "messages"} & body.keys() == (
            {"modelfile"} if form == "modelfile" else {"from", "system", "parameters", "messages"}
        )
        assert host.plan([a_model(BASE), bot]).actions == ()


@pytest.mark.parametrize(("like", "key"), [("0.3.4", "modelfile"), ("0.33.0-rc2", "from")])
def test_a_server_without_a_version_is_found_out_by_what_it_misses(like: str, key: str) -> None:
    with a_host_like("0.0.0", like) as host:
        assert_converged(host, host.apply([a_model("bot", a_build(BASE, system="x"))]))
        probe, *_, create = sent(host, "/api/create")
        assert probe == {"model": "x", "stream": False}
        assert key in create
        assert host.stranger.tags().keys() == {BASE, "bot:latest"}


@pytest.mark.parametrize(
    ("version", "like", "streams"), [("0.12.5", "0.6.8", False), ("0.12.6", "0.12.11", True)]
)
def test_0126_a_model_is_made_from_a_base_in_a_stream_since_streams_end_at_errors(
    version: str, like: str, streams: bool
) -> None:
    with a_host_like(version, like) as host:
        assert_converged(host, host.apply([a_model("bot", a_build(BASE, system="x"))]))
        assert [body["stream"] for body in sent(host, "/api/create")] == [streams]


@pytest.mark.parametrize(("version", "like"), [("0.12.5", "0.6.8"), ("0.12.6", "0.12.11")])
def test_0126_a_refusal_at_the_start_of_a_stream_is_the_same_error_on_both_sides(
    version: str, like: str
) -> None:
    broken = a_model("legal", a_build(None, "tiny-a.gguf", template="{{ .Prompt"))
    with a_host_like(version, like) as host:
        (failure,) = failures(host.apply([broken])).values()
        assert "create legal:latest: template error" in failure
        assert len(sent(host, "/api/create")) == 1  # what will not change is not tried again


@pytest.mark.parametrize(
    ("version", "like", "waits"), [("0.6.8", "0.6.8", False), ("0.7.0", "0.12.11", True)]
)
def test_070_the_success_of_a_base_that_is_pulled_on_the_way_is_not_taken_for_the_models(
    version: str, like: str, waits: bool
) -> None:
    behavior = replace(RECORDED[like], errors_end_streams=False)  # as before 0.12.6: asked without a stream
    models = [a_model(BASE), a_model("bot", a_build(BASE, system="new"))]
    with a_host_like(version, behavior) as host:
        host.stranger.pull(BASE)
        host.stranger.create("bot", BASE, system="old")
        gone: list[Request] = []

        def vanish(request: Request) -> None:
            if request.path == "/api/create" and not gone:
                gone.append(request)
                host.sandbox.store.remove_manifest(parse_name(BASE))

        host.proxy.before = vanish
        assert_converged(host, host.apply(models))
        assert host.stranger.show("bot")["system"] == "new"
        _, *ours = sent(host, "/api/create")
        assert len(ours) == (1 if waits else 2)


# --- create: what it may ask for ------------------------------------------------------------------------------------

BEHAVIOURS = {
    **RECORDED,
    "0.3.4 with adapters": replace(RECORDED["0.3.4"], adapters_by_metadata=True),
    "0.12.11 with requires": replace(RECORDED["0.12.11"], requires_known=True),
}


@pytest.mark.parametrize(
    ("build", "before", "since", "words", "key"),
    [
        (
            a_build(BASE, parameters={"min_p": 0.05}),
            ("0.3.0", "0.3.4"),
            ("0.3.1", "0.3.4"),
            "it has no parameter min_p",
            "modelfile",
        ),
        (
            Build(base=name("legal"), adapters=(weights("tiny-lora.gguf"),)),
            ("0.3.6", "0.3.4"),
            ("0.3.7", "0.3.4 with adapters"),
            "it takes an adapter for the weights",
            "modelfile",
        ),
        (
            a_build(BASE, parameters={"top_k": None}),
            ("0.5.4", "0.3.4"),
            ("0.5.5", "0.5.7"),
            "it cannot un-set the parameter top_k",
            "parameters",
        ),
        (
            a_build(BASE, renderer="qwen3-coder", parser="qwen3-coder"),
            ("0.11.11", "0.6.8"),
            ("0.12.0", "0.12.11"),
            "it has no renderer and parser",
            "renderer",
        ),
        (
            a_build(BASE, requires="0.14.0"),
            ("0.13.5", "0.12.11"),
            ("0.14.0", "0.12.11 with requires"),
            "it does not know REQUIRES",
            "requires",
        ),
        (
            Build(files=(weights("tiny-a.gguf"),), drafts=(weights("tiny-b.gguf"),)),
            ("0.24.0", "0.12.11"),
            ("0.30.0", "0.33.0-rc2"),
            "it has no draft models",
            "draft_files",
        ),
    ],
)
def test_what_only_newer_servers_know_is_sent_to_them_and_to_no_older_one(
    build: Build, before: tuple[str, str], since: tuple[str, str], words: str, key: str
) -> None:
    models = [a_model(BASE), a_model("legal", a_build(None, "tiny-a.gguf")), a_model("bot", build)]
    with a_host_like(before[0], BEHAVIOURS[before[1]]) as host:
        report = host.apply(models)
        told = given_up(host.plan(models))
        assert told == [f"cannot be made by Ollama {before[0]}: {words}"]
        assert not report.verified
        assert host.stranger.tags().keys() == {BASE, "legal:latest"}
    with a_host_like(since[0], BEHAVIOURS[since[1]]) as host:
        assert_converged(host, host.apply(models))
        assert key in sent(host, "/api/create")[-1]
        assert host.plan(models).actions == ()


def test_070_the_list_of_quantizations_got_shorter() -> None:
    models = [a_model("small", a_build(None, "tiny-f16.gguf", quantize="q5_K_M"))]
    with a_host_like("0.6.8", "0.6.8") as host:
        assert_converged(host, host.apply(models))
        assert sent(host, "/api/create")[-1]["quantize"] == "q5_K_M"
    with a_host_like("0.7.0", "0.12.11") as host:
        assert given_up(host.plan(models)) == [
            "cannot be made by Ollama 0.7.0: it does not quantize to q5_K_M"
        ]
        assert failures(host.apply(models)) == {}
        assert host.stranger.tags() == {}


def test_0300_weights_in_shards_are_sent_only_to_servers_that_merge_them(tmp_path: Path) -> None:
    for shard in SHARDS:
        (tmp_path / shard).write_bytes((WEIGHTS / "tiny-a.gguf").read_bytes() + shard.encode())
    files = tuple(
        structs.replace(weights("tiny-a.gguf"), path=tmp_path / shard, name=shard) for shard in SHARDS
    )
    models = [a_model("split", Build(files=files))]
    with a_host_like("0.24.0", "0.12.11") as host:
        assert given_up(host.plan(models)) == [
            "cannot be made by Ollama 0.24.0: it does not merge a GGUF in shards"
        ]
    with a_host_like("0.30.0", "0.33.0-rc2") as host:
        *uploads, create = ids(host.plan(models).actions)
        assert len(uploads) == 2
        assert create == "create/split:latest"


@pytest.mark.parametrize(
    ("version", "like", "sent_name"),
    [("0.24.0", "0.12.11", "tiny-a.gguf"), ("0.30.0", "0.33.0-rc2", "deep/tiny-a.gguf")],
)
def test_0300_files_are_called_by_their_path_instead_of_their_name(
    version: str, like: str, sent_name: str
) -> None:
    file = structs.replace(weights("tiny-a.gguf"), name="deep/tiny-a.gguf")
    with a_host_like(version, like) as host:
        assert_converged(host, host.apply([a_model("legal", Build(files=(file,)))]))
        (body,) = sent(host, "/api/create")
        assert list(body["files"]) == [sent_name]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "like"), [("0.4.2", "0.3.4"), ("0.5.2", "0.3.4 that folds")])
def test_052_a_model_in_another_case_is_the_same_since_and_another_before(version: str, like: str) -> None:
    behavior = RECORDED["0.3.4"] if like == "0.3.4" else replace(RECORDED["0.3.4"], names_fold_case=True)
    models = [
        a_model(BASE),
        a_model("bot", a_build(BASE, system="new")),
        a_model("team/chat:v1", a_copy("bot")),
    ]
    with a_host_like(version, behavior) as host:
        host.stranger.pull(BASE)
        for other in ("BOT", "team/Chat:V1"):
            host.stranger.copy(BASE, other)
        before = host.stranger.tags()
        report = host.apply(models)
        if version == "0.4.2":  # which has no `bot` then, and makes none beside the other
            assert not report.verified
            assert host.stranger.tags() == before
            return
        assert_converged(host, report)
        assert host.stranger.tags().keys() == {BASE, "BOT:latest", "team/Chat:V1"}
        assert host.plan(models).actions == ()


@pytest.mark.parametrize(
    ("version", "like", "left"),
    [("0.17.7", "0.12.11", {BASE, "bot:latest"}), ("0.18.0", "0.32.15", {BASE, "bot:latest", "bot:local"})],
)
def test_0180_a_local_tag_is_no_longer_touched_since_it_means_another_model(
    version: str, like: str, left: set[str]
) -> None:
    with a_host_like(version, like) as host:
        host.stranger.pull(BASE)
        host.stranger.copy(BASE, "bot:local")
        host.stranger.copy(BASE, "bot")
        report = host.apply([a_model(BASE)], [an_absence("bot:local")])
        assert host.stranger.tags().keys() == left
        assert report.verified is ("bot:local" not in left)


# --- what a look finds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "like", "notes"), [("0.24.0", "0.12.11", 0), ("0.30.0", "0.33.0-rc2", 1)]
)
def test_0300_weights_are_compared_by_digest_before_and_by_header_since_servers_rewrite_them(
    version: str, like: str, notes: int
) -> None:
    models = [a_model("legal", a_build(None, "tiny-a.gguf"))]
    with a_host_like(version, like) as host:
        assert_converged(host, host.apply(models))
        host.forget()
        plan = host.plan(models)
        assert plan.actions == ()
        assert ["weights not verified" in note.message for note in plan.notes] == [True] * notes
        host.forget()
        (_, create) = ids(host.plan([a_model("legal", a_build(None, "tiny-f16.gguf"))]).actions)
        assert create == "create/legal:latest"


@pytest.mark.parametrize(
    ("version", "like", "is_drift"), [("0.24.0", "0.12.11", True), ("0.30.0", "0.33.0-rc2", False)]
)
def test_0300_the_template_is_read_where_the_server_still_says_the_one_that_counts(
    version: str, like: str, is_drift: bool
) -> None:
    def show_jinja(request: Request, answer: bytes) -> bytes:
        if request.path != "/api/show":
            return answer
        shown = json.loads(answer)
        shown["template"] = "{% for message in messages %}{{ message }}{% endfor %}"
        if is_drift:  # an old server that shows this means it
            shown["modelfile"] = shown["modelfile"].replace("mine {{ .Prompt }}", shown["template"])
        return json.dumps(shown).encode()

    models = [a_model(BASE), a_model("bot", a_build(BASE, template="mine {{ .Prompt }}"))]
    with a_host_like(version, like) as host:
        assert_converged(host, host.apply(models))
        host.forget()
        host.proxy.edit = show_jinja
        assert ids(host.plan(models).actions) == (["create/bot:latest"] if is_drift else [])


@pytest.mark.parametrize(
    ("version", "like", "capabilities", "tensors"),
    [
        ("0.6.0", "0.5.7", None, False),
        ("0.6.3", replace(RECORDED["0.6.8"], show_capabilities=False), None, True),
        ("0.6.4", "0.6.8", ("completion",), True),
    ],
)
def test_064_what_a_server_does_not_say_is_unknown_and_not_none(
    version: str, like: str | Behavior, capabilities: tuple[str, ...] | None, tensors: bool
) -> None:
    with a_host_like(version, like) as host, OllamaClient.connect(host.sandbox.url) as client:
        host.stranger.create_from_file("legal", "tiny-a.gguf")
        shown = client.show(name("legal"), verbose=True)
        assert shown.capabilities == capabilities
        assert bool(shown.tensors) is tensors


@pytest.mark.parametrize(
    ("version", "like", "known"), [("0.9.6", "0.6.8", False), ("0.10.0", "0.12.11", True)]
)
def test_0100_the_context_length_of_a_loaded_model_is_known(version: str, like: str, known: bool) -> None:
    with a_host_like(version, like) as host, OllamaClient.connect(host.sandbox.url) as client:
        host.stranger.pull(BASE)
        client.load(name(BASE))
        (loaded,) = client.ps()
        assert bool(loaded.context_length) is known


# --- pulls, deletions, loading --------------------------------------------------------------------------------------


@pytest.mark.registry
@pytest.mark.parametrize(
    ("version", "like", "is_raw"), [("0.18.3", "0.12.11", False), ("0.19.0", "0.32.15", True)]
)
def test_0190_a_pulled_model_is_current_whether_its_manifest_was_kept_or_written_anew(
    version: str, like: str, is_raw: bool, tmp_path: Path
) -> None:
    with run_registry(tmp_path, redirect=True) as registry, a_host_like(version, like) as host:
        compact = push_model(registry, "me/mario:v1", [("model", (WEIGHTS / "tiny-a.gguf").read_bytes())])
        raw = json.dumps(json.loads(compact), indent=3).encode()  # laid out as registry.ollama.ai has it
        registry.put_manifest("me/mario", "v1", raw)
        ref = registry.name("me/mario:v1")
        models = [ModelSpec(name=ref, source=Pull(ref=ref, insecure=True), update="latest")]
        assert_converged(host, host.apply(models))
        assert (host.stranger.tags()[ref.display] == Digest.of(raw).hex) is is_raw
        host.forget()
        assert host.plan(models).actions == ()


@pytest.mark.parametrize(("version", "like"), [("0.3.6", "0.3.4"), ("0.3.7", "0.5.7")])
def test_037_a_pull_ends_well_with_and_without_the_line_about_unused_layers(version: str, like: str) -> None:
    behavior = replace(RECORDED[like], raw_manifests=True)
    models = [a_model(BASE, update="latest")]
    with a_host_like(version, behavior) as host:
        host.options = structs.replace(host.options, ask_registry=False)
        host.stranger.pull("qwen3:0.6b")
        host.stranger.copy("qwen3:0.6b", BASE)
        report = host.apply(models)
        assert failures(report) == {}
        assert len(host.stranger.tags()) == 2
        assert host.stranger.tags()[BASE] != host.stranger.tags()["qwen3:0.6b"]


@pytest.mark.parametrize(("version", "like"), [("0.3.12", "0.3.4"), ("0.3.13", "0.5.7")])
def test_0313_a_model_that_went_by_itself_is_no_failure_whatever_the_status(version: str, like: str) -> None:
    with a_host_like(version, like) as host, OllamaClient.connect(host.sandbox.url) as client:
        assert client.delete(name("nobody")) is False
        host.stranger.pull(BASE)
        assert client.delete(name(BASE)) is True


def test_0513_a_model_that_went_by_itself_is_no_failure_in_the_other_words_of_that_version() -> None:
    answer = always({"code": "not_found", "error": "model not found"}, 404)
    with (
        ScriptedHost(routes({"/api/delete": answer}, version="0.5.13")) as host,
        OllamaClient.connect(host.url) as client,
    ):
        assert client.delete(name("nobody")) is False
        assert client.features().delete_prunes_everything


@pytest.mark.parametrize(("version", "grace_s", "uploads"), [("0.20.7", 0, 2), ("0.21.0", 3600, 1)])
def test_0210_a_fresh_upload_survives_a_restart_and_is_sent_again_where_it_does_not(
    version: str, grace_s: float, uploads: int
) -> None:
    with a_host_like(version, replace(RECORDED["0.12.11"], prune_grace_s=grace_s)) as host:
        looks: list[Request] = []

        def restart(request: Request) -> None:
            if request.method == "HEAD" and request.is_upload:
                looks.append(request)
                if len(looks) == 2:  # the one right before the create
                    host.sandbox.store.prune(grace_s)

        host.proxy.before = restart
        assert_converged(host, host.apply([a_model("legal", a_build(None, "tiny-a.gguf"))]))
        posts = [request for request in host.proxy.seen if request.method == "POST" and request.is_upload]
        assert len(posts) == uploads


@pytest.mark.parametrize(
    ("version", "like", "path"), [("0.3.5", "0.3.4", "/api/embeddings"), ("0.3.6", "0.5.7", "/api/embed")]
)
def test_036_an_embedding_model_is_loaded_by_the_endpoint_that_loads_it(
    version: str, like: str, path: str
) -> None:
    with a_host_like(version, like) as host, OllamaClient.connect(host.sandbox.url) as client:
        host.stranger.pull("all-minilm")
        client.load(name("all-minilm"), keep_alive_s=60)
        assert [loaded.name for loaded in client.ps()] == ["all-minilm:latest"]
        assert len(sent(host, path)) == 1


@pytest.mark.parametrize(("version", "like"), [("0.3.10", "0.3.4"), ("0.3.11", "0.5.7")])
def test_0311_a_model_is_out_of_memory_after_unloading_it_on_both_sides(version: str, like: str) -> None:
    with a_host_like(version, like) as host, OllamaClient.connect(host.sandbox.url) as client:
        host.stranger.pull(BASE)
        client.load(name(BASE))
        assert len(client.ps()) == 1
        client.unload(name(BASE))
        assert client.ps() == ()


# --- the server is upgraded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("0.3.4", "0.3.4"), ("0.5.7", "0.5.7")),
        (("0.5.7", "0.5.7"), ("0.6.8", "0.6.8")),
        (("0.6.8", "0.6.8"), ("0.12.11", "0.12.11")),
        (("0.12.11", "0.12.11"), ("0.33.0-rc2", "0.33.0-rc2")),
        (("0.32.6", "0.33.0-rc2 with rootfs"), ("0.32.7", "0.33.0-rc2")),
    ],
)
def test_an_upgrade_of_the_server_is_no_drift(
    old: tuple[str, str], new: tuple[str, str], tmp_path: Path
) -> None:
    behaviors = {
        **RECORDED,
        "0.33.0-rc2 with rootfs": replace(RECORDED["0.33.0-rc2"], config_rootfs=True),
    }
    models = [
        a_model(BASE),
        a_model("bot", a_build(BASE, system="be kind", parameters={"stop": ("a",)}, licenses=("MIT",))),
        a_model("legal", a_build(None, "tiny-a.gguf", template="x {{ .Prompt }}")),
        a_model("chat", a_copy("bot")),
    ]
    store, state = tmp_path / "store", tmp_path / "state"
    state.mkdir()
    with a_host_like(old[0], behaviors[old[1]], store=store, state=state) as host:
        assert_converged(host, host.apply(models))
    with a_host_like(new[0], behaviors[new[1]], store=store, state=state) as host:
        assert host.plan(models).actions == ()
        host.forget()
        assert host.plan(models).actions == ()
