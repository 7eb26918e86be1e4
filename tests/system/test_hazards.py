"""The twelve ways in which real servers hurt a reconciler: one test, or a few, for each.

The servers here are pretend ones that behave as the recorded versions do; whatever happens in between is done by a
stranger, or by somebody who edits the server's answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    REWRITING_VERSIONS,
    VERSIONS,
    WEIGHTS,
    LiveHost,
    a_build,
    a_copy,
    a_model,
    an_absence,
    assert_converged,
    failures,
    name,
    reasons,
    small_manifest,
)
from recording_proxy import Request
from registry_fixture import push_model, run_registry

from ollamaops.events import ActionStarted, Event, Noted, Retrying
from ollamaops.manifest.types import Build, ModelSpec, Pull
from ollamaops.names import Digest
from ollamaops.sandbox.model_name import parse_name

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)


def first(method: str, path: str, do: Callable[[], None]) -> Callable[[Request], None]:
    """Something that happens right before the first such request is served."""
    done: list[Request] = []

    def before(request: Request) -> None:
        if request.line == f"{method} {path}" and not done:
            done.append(request)
            do()

    return before


def remove(host: LiveHost, model: str) -> Callable[[], None]:
    return lambda: host.sandbox.store.remove_manifest(parse_name(model))


def bot(system: str) -> ModelSpec:
    return a_model("bot", a_build(BASE, system=system))


# 1


@every_version
def test_hazard_1_a_model_survives_a_create_whose_base_has_gone(host: LiveHost, version: str) -> None:
    """0.5.5 to 0.12.5 write an empty model over the old one when the base of a streamed create is missing."""
    stranger = host.stranger
    stranger.create_from_file("mine", "tiny-a.gguf")  # a base that no registry has
    derived = [a_model("bot", a_build("mine", system="old"))]
    assert_converged(host, host.apply(derived))
    before = stranger.tags()
    host.proxy.before = first("POST", "/api/create", remove(host, "mine"))
    report = host.apply([a_model("bot", a_build("mine", system="new"))])
    assert failures(report).keys() == {"create/bot:latest"}
    assert stranger.tags() == {model: digest for model, digest in before.items() if model != "mine:latest"}
    assert stranger.show("bot")["system"] == "old"


@every_version
def test_hazard_1_no_create_is_sent_while_its_base_is_missing(host: LiveHost) -> None:
    stranger = host.stranger
    stranger.create_from_file("mine", "tiny-a.gguf")
    stranger.create("bot", "mine", system="old")
    host.proxy.seen.clear()

    def begun(event: Event) -> None:
        if isinstance(event, ActionStarted):
            stranger.delete("mine")

    host.emit = begun
    report = host.apply([a_model("bot", a_build("mine", system="new"))])
    assert "'mine:latest' changed since the plan was made" in failures(report)["create/bot:latest"]
    assert not any("create" in line for line in host.proxy.lines())


# 2


@every_version
def test_hazard_2_the_success_of_an_inner_pull_is_not_that_of_the_create(host: LiveHost) -> None:
    """The base goes away at the last moment, so the server pulls it by itself, and says success for that."""
    assert_converged(host, host.apply([a_model(BASE), bot("old")]))
    host.proxy.before = first("POST", "/api/create", remove(host, BASE))
    report = host.apply([a_model(BASE), bot("new")])
    assert_converged(host, report)
    assert host.stranger.show("bot")["system"] == "new"


@every_version
def test_hazard_2_a_model_that_was_not_made_is_never_remembered_as_made(host: LiveHost) -> None:
    """Every answer to create claims success, and nothing is ever created."""
    host.stranger.pull(BASE)

    def lie(request: Request, answer: bytes) -> bytes:
        if request.path != "/api/create":
            return answer
        remove(host, "bot")()
        return b'{"status":"success"}\n'

    host.proxy.edit = lie
    report = host.apply([bot("new")])
    assert (
        "'bot:latest' was not written, although the server reported success"
        in (failures(report)["create/bot:latest"])
    )
    assert sum(isinstance(event, Retrying) for event in host.events) == 5
    assert name("bot").key not in host.ledger.load("gpu-1")
    host.proxy.edit = None
    assert_converged(host, host.apply([bot("new")]))


@every_version
def test_hazard_2_a_success_before_the_end_of_the_stream_is_not_believed(host: LiveHost) -> None:
    host.stranger.pull(BASE)

    def cut(request: Request, answer: bytes) -> bytes:
        is_streamed = request.path == "/api/create" and '"stream": false' not in request.body
        return b'{"status":"pulling manifest"}\n{"status":"success"}\n' if is_streamed else answer

    host.proxy.edit = cut
    report = host.apply([a_model("bot", a_build(BASE, system="new"), retries=0)])
    is_streamed = any(
        request.path == "/api/create" and '"stream": false' not in request.body for request in host.proxy.seen
    )
    assert bool(failures(report)) is is_streamed


# 3


@in_turn("version", count=len(VERSIONS))
@every_version
def test_hazard_3_each_era_gets_the_create_that_it_understands(host: LiveHost, version: str) -> None:
    assert_converged(host, host.apply(small_manifest()))
    bodies = [json.loads(request.body) for request in host.proxy.seen if request.path == "/api/create"]
    assert len(bodies) == 2
    for body in bodies:
        assert ("modelfile" in body) is (version == "0.3.4")
        assert bool({"from", "files"} & body.keys()) is (version != "0.3.4")


# 4


@in_turn("version", count=len(VERSIONS))
@every_version
def test_hazard_4_weights_that_the_server_rewrote_are_not_taken_for_drift(
    host: LiveHost, version: str
) -> None:
    models = [a_model("legal", a_build(None, "tiny-a.gguf"))]
    assert_converged(host, host.apply(models))
    uploaded = Digest.of((WEIGHTS / "tiny-a.gguf").read_bytes())
    assert (uploaded.hex in host.stranger.show("legal")["modelfile"]) is (version not in REWRITING_VERSIONS)
    assert host.plan(models).actions == ()
    host.forget()
    plan = host.plan(models)
    assert plan.actions == ()
    assert bool(plan.notes) is (version in REWRITING_VERSIONS)


# 5


@in_turn("version", count=len(VERSIONS))
@pytest.mark.registry
@every_version
def test_hazard_5_a_digest_that_an_old_server_made_up_is_not_taken_for_new_content(
    host: LiveHost, version: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as registry:
        compact = push_model(registry, "me/mario:v1", [("model", (WEIGHTS / "tiny-a.gguf").read_bytes())])
        raw = json.dumps(json.loads(compact), indent=3).encode()  # laid out as registry.ollama.ai has it
        registry.put_manifest("me/mario", "v1", raw)
        ref = registry.name("me/mario:v1")
        models = [ModelSpec(name=ref, source=Pull(ref=ref, insecure=True), update="latest")]
        assert_converged(host, host.apply(models))
        is_raw = host.stranger.tags()[ref.display] == hashlib.sha256(raw).hexdigest()
        assert is_raw is (version in REWRITING_VERSIONS)  # 0.19 and newer
        assert host.plan(models).actions == ()
        host.forget()
        assert host.plan(models).actions == ()


# 6


@pytest.mark.parametrize("version", ["0.32.15", "0.33.0-rc2"])
def test_hazard_6_a_local_tag_is_never_taken_for_latest(host: LiveHost) -> None:
    stranger = host.stranger
    stranger.pull(BASE)
    stranger.copy(BASE, "bot:local")
    stranger.copy(BASE, "bot")
    before = stranger.tags()
    for models, absent in (
        ([a_model(BASE)], [an_absence("bot:local")]),
        ([a_model("smollm2:local")], []),
        ([a_model("child", a_build("bot:local", system="x"))], []),
    ):
        report = host.apply(models, absent)
        assert stranger.tags() == before
        assert not report.verified
        told = [note.message for note in report.notes] + list(failures(report).values())
        assert len(told) == 1
        assert "servers from 0.18.0 on" in told[0]


@pytest.mark.parametrize("version", ["0.3.4", "0.12.11"])
def test_hazard_6_a_local_tag_is_a_tag_like_any_other_for_older_servers(host: LiveHost) -> None:
    stranger = host.stranger
    stranger.pull(BASE)
    stranger.copy(BASE, "bot:local")
    stranger.copy(BASE, "bot")
    assert_converged(host, host.apply([a_model(BASE)], [an_absence("bot:local")]))
    assert stranger.tags().keys() == {BASE, "bot:latest"}


# 7


@every_version
def test_hazard_7_what_is_not_declared_any_more_is_the_bases_again(host: LiveHost) -> None:
    """Nothing can be cleared through `from`, so a model is always made from its base, never from itself."""
    host.stranger.pull(BASE)
    host.stranger.create("base", BASE, system="of the base")
    assert_converged(host, host.apply([a_model("bot", a_build("base", system="mine", licenses=("MIT",)))]))
    assert_converged(host, host.apply([a_model("bot", a_build("base"))]))
    shown = host.stranger.show("bot")
    assert shown["system"] == "of the base"
    assert shown.get("license") == host.stranger.show("base").get("license")


@every_version
def test_hazard_7_licenses_do_not_pile_up(host: LiveHost) -> None:
    for system in ("a", "b", "c"):
        models = [a_model("bot", a_build(BASE, system=system, licenses=("MIT",)))]
        assert_converged(host, host.apply(models))
        host.stranger.create("bot", "bot", license="MIT")  # as somebody would who makes it from itself
        assert reasons(host.plan(models)) == {"create/bot:latest": ["license"]}
        assert_converged(host, host.apply(models))
    assert host.stranger.show("bot")["license"].count("MIT") == 1


# 8


@every_version
@pytest.mark.parametrize("request_line", ["POST /api/create", "GET /api/tags"])
def test_hazard_8_a_blob_that_vanishes_before_the_create_is_sent_again(
    host: LiveHost, request_line: str
) -> None:
    digest = Digest.of((WEIGHTS / "tiny-a.gguf").read_bytes())
    vanished: list[Request] = []

    def before(request: Request) -> None:
        if request.line == request_line and host.sandbox.store.has_blob(str(digest)) and not vanished:
            vanished.append(request)
            host.sandbox.store.remove_blob(str(digest))

    host.proxy.before = before
    assert_converged(host, host.apply([a_model("legal", a_build(None, "tiny-a.gguf"))]))
    assert vanished
    assert sum(line == f"POST /api/blobs/{digest}" for line in host.proxy.lines()) == 2


@every_version
def test_hazard_8_a_replaced_model_is_never_deleted_first(host: LiveHost) -> None:
    for file in ("tiny-a.gguf", "tiny-b.gguf", "tiny-f16.gguf"):
        assert_converged(host, host.apply([a_model("legal", a_build(None, file))]))
    assert "DELETE /api/delete" not in host.proxy.lines()


# 9


@every_version
def test_hazard_9_a_blob_that_is_there_is_looked_for_and_not_sent(host: LiveHost) -> None:
    host.stranger.create_from_file("theirs", "tiny-a.gguf")
    host.proxy.seen.clear()
    assert_converged(host, host.apply([a_model("legal", a_build(None, "tiny-a.gguf"))]))
    about_blobs = {line.split("/", 1)[0].strip() for line in host.proxy.lines() if "/blobs/" in line}
    assert about_blobs == {"HEAD"}


# 10


@every_version
def test_hazard_10_the_field_that_crashes_servers_is_never_sent(host: LiveHost) -> None:
    models = [
        *small_manifest(),
        a_model("small", Build(files=a_build(None, "tiny-f16.gguf").files, quantize="Q8_0")),
    ]
    assert_converged(host, host.apply(models))
    bodies = [json.loads(request.body) for request in host.proxy.seen if request.path == "/api/create"]
    assert len(bodies) == 3
    assert all("info" not in body for body in bodies)


# 11


@in_turn("version")
@every_version
@pytest.mark.parametrize("missing_from", range(1, 13))
def test_hazard_11_a_model_that_one_list_misses_is_looked_for_again(
    host: LiveHost, missing_from: int
) -> None:
    """A list that is read while manifests are rewritten misses those models; here one list misses them all."""
    lists: list[Request] = []

    def miss(request: Request, answer: bytes) -> bytes:
        if request.path != "/api/tags":
            return answer
        lists.append(request)
        return b'{"models":[]}' if len(lists) == missing_from else answer

    chat = a_model("chat", a_copy("bot"))
    assert_converged(host, host.apply([a_model(BASE), bot("old"), chat]))
    host.proxy.edit = miss
    assert_converged(host, host.apply([a_model(BASE), bot("new"), chat]))
    assert len(lists) >= min(missing_from, 8)
    assert host.stranger.show("chat")["system"] == "new"


# 12


def _spoil(host: LiveHost, model: str) -> str:
    """Cut the weights of a model short on the host's disk; the digest that they should have."""
    store = host.sandbox.store
    manifest = json.loads(store.read_manifest(parse_name(model)))
    digest = next(layer["digest"] for layer in manifest["layers"] if layer["mediaType"].endswith(".model"))
    path = store.blob_path(digest)
    path.write_bytes(path.read_bytes()[:100])
    return str(digest)


@every_version
def test_hazard_12_damaged_weights_are_removed_before_they_are_pulled_anew(host: LiveHost) -> None:
    """A pull takes a blob that is there for good, however damaged; only deleting the model makes room."""
    host.stranger.pull(BASE)
    digest = _spoil(host, BASE)
    host.sandbox.store.remove_manifest(parse_name(BASE))  # as by hand; the blob stays
    report = host.apply([a_model(BASE)])
    assert_converged(host, report)
    assert host.stranger.show(BASE)["details"]["format"] == "gguf"
    whole = host.sandbox.store.blob_path(digest).read_bytes()
    assert f"sha256:{hashlib.sha256(whole).hexdigest()}" == digest
    assert [event.message for event in host.events if isinstance(event, Noted)] == [
        "it cannot be opened: a blob on the host is damaged; removing it and pulling it anew"
    ]


@every_version
def test_hazard_12_damage_that_cannot_be_repaired_is_named(host: LiveHost) -> None:
    """Another model still holds the damaged blob, so that deleting ours does not remove it."""
    host.stranger.pull(BASE)
    host.stranger.copy(BASE, "theirs")
    _spoil(host, BASE)
    host.stranger.delete(BASE)
    report = host.apply([a_model(BASE)])
    wrong = failures(report)[f"pull/{BASE}"]
    assert f"'{BASE}' cannot be opened: its weights on the host are damaged" in wrong
    assert "ollamaops apply --repair" in wrong
    assert "theirs:latest" in host.stranger.tags()


@every_version
def test_hazard_12_a_built_model_on_damaged_weights_is_not_called_done(host: LiveHost) -> None:
    assert_converged(host, host.apply([a_model(BASE), bot("one")]))
    _spoil(host, BASE)
    report = host.apply([a_model(BASE), bot("two")])
    assert failures(report).keys() & {f"pull/{BASE}", "create/bot:latest"}
    assert not report.verified
