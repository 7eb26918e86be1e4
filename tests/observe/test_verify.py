"""Models of pretend hosts held to expectations: the right endpoint of each version, and the server's own words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from breadth import in_turn
from live_host import BASE, LiveHost, a_build, a_host, a_model, assert_converged, name
from live_host import failures as failed_actions
from msgspec.structs import replace
from patience import PATIENCE_S
from recording_proxy import Request
from sandbox_caller import a_gguf

from ollamaops import exits
from ollamaops.errors import (
    Cancelled,
    ConnectError,
    ConnectionLost,
    CutStream,
    OllamaopsError,
    RemoteError,
    TimeoutExceeded,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import TimeLimits
from ollamaops.manifest.types import HostSpec, ModelSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.observe.run import HostTask
from ollamaops.observe.session import session_of
from ollamaops.observe.verify import (
    MOST_TOKENS,
    OnModel,
    capabilities_of,
    is_verdict,
    verify_hosts,
    verify_model,
)
from ollamaops.ollama.answer_errors import build_answer_error, build_line_error
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.wire import ShownModel
from ollamaops.plan.expectations import Verdict, read_expectations
from ollamaops.plan.results import HostVerdicts
from ollamaops.sandbox.fault_injection import with_faults
from ollamaops.sandbox.fault_script import parse_faults
from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("host")

VERSIONS = ("0.3.4", "0.5.7", "0.12.11", "0.33.0-rc2")
EMBEDDER = "all-minilm:22m"
THINKER = "qwen3:0.6b"
PONG = {"prompt": "Reply with the word pong.", "matches": "^pong$"}
NO_ROOM = "model requires more system memory (9.0 GiB) than is available (3.9 GiB)"
HASTY = TimeLimits(stall_s=0.2, quiet_s=0.2, idle_s=0.2)


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param) as running:
        running.stranger.pull(BASE)
        running.stranger.pull(EMBEDDER)
        yield running


@pytest.fixture
def newest() -> Iterator[LiveHost]:
    with a_host() as running:
        running.stranger.pull(BASE)
        yield running


def hold(
    host: LiveHost, model: str, *declared: Mapping[str, object], limits: TimeLimits | None = None
) -> Verdict:
    with (
        OllamaClient.connect(host.sandbox.url, host_name="gpu-1", limits=limits) as client,
        host.opened() as run,
    ):
        session = session_of(HostTask(spec=host.spec), client, run)
        return verify_model(session, name(model), read_expectations(declared))


def failures(verdict: Verdict) -> list[str]:
    return list(map(str, verdict.failures))


def bodies(host: LiveHost, path: str) -> list[dict[str, object]]:
    return [json.loads(request.body) for request in host.proxy.seen if request.path == path]


def test_a_chat_model_meets_what_it_can_do_on_every_version(host: LiveHost) -> None:
    verdict = hold(
        host,
        BASE,
        {"capabilities": ["completion", "tools"], "max_load": "90s"},
        PONG | {"min_tokens_per_s": 10},
        {"messages": [{"role": "user", "content": "Say hello."}], "contains": "hello"},
        {"prompt": "Answer as JSON with the keys name and age", "json": True},
        {
            "prompt": "Who?",
            "json_schema": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}},
            },
        }
        if host.version != "0.3.4"
        else PONG,
        {"prompt": "What is the weather? Use get_weather", "tools": ["get_weather"]},
    )
    assert failures(verdict) == []
    assert verdict.is_met
    assert verdict.expectations == 6
    assert verdict.load_s > 0
    assert verdict.tokens_per_s == pytest.approx(100)


def test_an_embedding_model_is_embedded_with_on_every_version(host: LiveHost) -> None:
    verdict = hold(
        host,
        EMBEDDER,
        {"capabilities": ["embedding"]},
        {"prompt": "hello", "length": 384, "min_tokens_per_s": 1},
        {"closer": ["a black cat", "the black cats", "tax law"]},
        {"max_load": "30s", "options": {"num_ctx": 256}},
    )
    assert failures(verdict) == []
    assert failures(hold(host, EMBEDDER, {"prompt": "hello", "matches": "hello"})) == [
        "matches: no match of 'hello' in an embedding"
    ]
    assert {"/api/embed"} <= {request.path for request in host.proxy.seen}


def test_an_embedding_model_that_no_one_takes_for_one_is_found_out_by_the_refusal(host: LiveHost) -> None:
    """As when the pooling of the weights is not shown."""

    def hide(request: Request, body: bytes) -> bytes:
        if request.path != "/api/show":
            return body
        shown = json.loads(body)
        return json.dumps(
            {key: shown[key] for key in shown if key not in ("capabilities", "model_info")}
        ).encode()

    host.proxy.edit = hide
    asked: list[Mapping[str, object]] = [
        {"prompt": "hello", "length": 384},
        {"prompt": "hello", "max_load": 60},
        {"max_load": 60},
    ]
    assert failures(hold(host, EMBEDDER, *asked)) == []
    chatted = {"messages": [{"role": "user", "content": "hi"}], "contains": "hi"}
    assert failures(hold(host, EMBEDDER, chatted)) == ["contains: no 'hi' in an embedding"]
    assert bodies(host, "/api/embed")[-1]["input"] == ["hi"]


def test_a_model_that_answers_nonsense_fails_however_fast_it_loads(host: LiveHost) -> None:
    verdict = hold(host, BASE, {"prompt": "Tell me of the tide.", "matches": "(?i)pong", "max_load": "90s"})
    [failure] = verdict.failures
    assert failure.what == "matches"
    assert "Pretend answer" in failure.message


def test_an_architecture_that_the_server_does_not_know_fails_with_its_words(host: LiveHost) -> None:
    data = a_gguf({"general.file_type": 1}, architecture="hal9000")
    digest = Digest.of(data)
    requests.post(f"{host.sandbox.url}/api/blobs/{digest}", data=data, timeout=PATIENCE_S).raise_for_status()
    form = {"modelfile": f"FROM @{digest}"} if host.version == "0.3.4" else {"files": {"x.gguf": str(digest)}}
    made = requests.post(f"{host.sandbox.url}/api/create", json={"model": "odd", **form}, timeout=PATIENCE_S)
    if "error" in made.text:  # from 0.30 on such weights are not even taken
        pytest.skip(made.text)
    verdict = hold(host, "odd:latest", PONG, PONG)
    assert failures(verdict) == [
        "answer: this model is not supported by your version of Ollama. You may need to upgrade"
    ]
    assert len(bodies(host, "/api/generate")) == 1  # lasting, and never asked again


def test_a_damaged_blob_fails_with_the_servers_words_and_is_no_crash(host: LiveHost) -> None:
    blobs = sorted(
        (host.sandbox.service.store.root / "blobs").iterdir(), key=lambda path: path.stat().st_size
    )
    for blob in blobs:
        if blob.read_bytes()[:4] == b"GGUF":
            blob.write_bytes(b"\0" * 64)
    [failure] = hold(host, BASE, {"max_load": "90s"}).failures
    assert failure.what == "answer"


def test_what_was_declared_is_asked_greedily_with_an_end_and_not_more(newest: LiveHost) -> None:
    hold(newest, BASE, {"prompt": "hi"}, {"prompt": "hi", "options": {"temperature": 0.7, "num_predict": 3}})
    first, second = bodies(newest, "/api/generate")
    assert first["options"] == {"seed": 0, "temperature": 0, "num_predict": MOST_TOKENS}
    assert second["options"] == {"seed": 0, "temperature": 0.7, "num_predict": 3}
    newest.stranger.create("short", BASE, parameters={"num_predict": 7})
    hold(newest, "short:latest", {"prompt": "hi"})
    assert bodies(newest, "/api/generate")[-1]["options"] == {"seed": 0, "temperature": 0}


def test_an_answer_that_is_cut_says_so(newest: LiveHost) -> None:
    verdict = hold(
        newest, BASE, {"prompt": "Say hello there.", "matches": "there", "options": {"num_predict": 1}}
    )
    assert "cut off after 1 tokens" in failures(verdict)[0]


def test_a_tool_that_the_model_cannot_call_fails_with_the_servers_words(newest: LiveHost) -> None:
    newest.stranger.create("plain", BASE, template="{{ .Prompt }}")
    [failure] = hold(newest, "plain:latest", {"prompt": "weather?", "tools": ["get_weather"]}).failures
    assert failure.message.endswith("does not support tools")


def test_thoughts_do_not_meet_what_the_answer_does_not(newest: LiveHost) -> None:
    newest.stranger.pull(THINKER)
    asked = {"messages": [{"role": "user", "content": "Say pong."}], "contains": "The user wrote"}
    assert "no 'The user wrote'" in failures(hold(newest, THINKER, asked))[0]


@pytest.mark.parametrize("version", ["0.5.7", "0.12.11", "0.33.0-rc2"])
def test_a_model_that_can_think_is_asked_not_to_unless_that_is_declared(version: str) -> None:
    with a_host(version) as host:
        host.stranger.pull(BASE)
        host.stranger.pull(THINKER)
        chat = {"messages": [{"role": "user", "content": "Say pong."}]}
        assert failures(hold(host, THINKER, PONG, PONG | {"think": True}, chat)) == []
        assert failures(hold(host, BASE, PONG)) == []
        thinks = "missing" if version == "0.5.7" else False
        sent = [body.get("think", "missing") for body in bodies(host, "/api/generate")]
        assert sent == [thinks, True, "missing"]
        assert [body.get("think", "missing") for body in bodies(host, "/api/chat")] == [thinks]


def test_a_model_that_cannot_think_fails_where_it_is_told_to(newest: LiveHost) -> None:
    [failure] = hold(newest, BASE, PONG | {"think": "high"}).failures
    assert failure.message.endswith("does not support thinking")


@pytest.mark.parametrize("key", ["prompt", "messages"])
def test_an_answer_that_is_cut_in_its_thoughts_says_so_and_what_to_do(newest: LiveHost, key: str) -> None:
    newest.stranger.pull(THINKER)
    said = {"prompt": "Say pong.", "messages": [{"role": "user", "content": "Say pong."}]}[key]
    asked = {key: said, "matches": "pong", "think": True, "options": {"num_predict": 3}}
    [failure] = hold(newest, THINKER, asked).failures
    assert failure.message == "no match of 'pong' in an answer of thoughts alone, cut off after 3 tokens"
    assert failure.hint == "give it more room: options.num_predict"


def test_thoughts_that_a_server_leaves_in_the_answer_are_thoughts_as_well(newest: LiveHost) -> None:
    def leave(request: Request, body: bytes) -> bytes:
        answer = {"response": "<think>pong, pong, ", "done": True, "done_reason": "length", "eval_count": 9}
        return json.dumps(answer).encode() if request.path == "/api/generate" else body

    newest.proxy.edit = leave
    [failure] = hold(newest, BASE, PONG).failures
    assert failure.message == "no match of '^pong$' in an answer of thoughts alone, cut off after 9 tokens"


def test_the_context_is_the_one_it_is_loaded_with(host: LiveHost) -> None:
    host.stranger.create("narrow", BASE, parameters={"num_ctx": 1024})
    asked = {"prompt": "hi", "context_length": 2048}
    assert failures(hold(host, "narrow:latest", asked)) == [
        "context_length: loaded with 1024 tokens, 2048 expected"
    ]
    assert failures(hold(host, BASE, {"context_length": 8192, "options": {"num_ctx": 8192}})) == []


def test_what_the_weights_can_do_is_not_taken_for_what_a_server_loads_them_with(host: LiveHost) -> None:
    """Without num_ctx it is the server's own default, which ps tells from 0.10.0 on."""
    is_told = host.version not in ("0.3.4", "0.5.7")
    asked = {"prompt": "hi", "context_length": 16384}
    found = "4096 tokens" if is_told else "a length that is not known"
    assert failures(hold(host, BASE, asked)) == [f"context_length: loaded with {found}, 16384 expected"]


@pytest.mark.parametrize("version", ["0.5.7", "0.33.0-rc2"])
def test_more_than_the_weights_can_do_is_not_believed(version: str) -> None:
    with a_host(version) as host:
        host.stranger.pull(BASE)
        asked = {"context_length": 200_000, "options": {"num_ctx": 400_000}}
        assert failures(hold(host, BASE, asked)) == [
            "context_length: loaded with 131072 tokens, 200000 expected"
        ]


def test_the_context_of_a_runner_that_is_listed_under_another_name_counts(newest: LiveHost) -> None:
    newest.stranger.pull(EMBEDDER)
    newest.stranger.create("twin", BASE, system="Be a twin.")
    assert failures(hold(newest, BASE, {"options": {"num_ctx": 8192}, "context_length": 8192})) == []
    hold(newest, EMBEDDER, {"prompt": "hi"})
    wanted: dict[str, object] = {"prompt": "hi", "options": {"num_ctx": 8192}, "context_length": 8193}
    assert failures(hold(newest, "twin:latest", wanted)) == [
        "context_length: loaded with 8192 tokens, 8193 expected"
    ]


def test_without_a_line_in_ps_the_context_is_what_was_asked_for(newest: LiveHost) -> None:
    """As where a model is unloaded after each answer (OLLAMA_KEEP_ALIVE=0)."""
    newest.proxy.edit = lambda request, body: b'{"models": []}' if request.path == "/api/ps" else body
    newest.stranger.create("narrow", BASE, parameters={"num_ctx": 1024})
    asked: list[Mapping[str, object]] = [
        {"prompt": "hi", "context_length": 1025},
        {"prompt": "hi", "context_length": 2049, "options": {"num_ctx": 2048}},
    ]
    assert failures(hold(newest, "narrow:latest", *asked)) == [
        "context_length: loaded with 1024 tokens, 1025 expected",
        "context_length: loaded with 2048 tokens, 2049 expected",
    ]


def test_the_longest_load_counts_not_the_last(newest: LiveHost) -> None:
    def slow_once(request: Request, body: bytes) -> bytes:
        answered = len(bodies(newest, "/api/generate"))
        return (
            body.replace(b'"load_duration":1000000', b'"load_duration":9000000000') if answered == 1 else body
        )

    newest.proxy.edit = slow_once
    verdict = hold(newest, BASE, PONG, PONG | {"max_load": "5s"})
    assert failures(verdict) == ["max_load: loading took 9.0s, 5.0s allowed"]
    assert verdict.load_s == 9


def test_a_schema_is_sent_where_servers_take_one(host: LiveHost) -> None:
    schema = {"type": "object"}
    hold(
        host, BASE, {"prompt": "hi", "json_schema": schema}, {"prompt": "hi", "json": True}, {"prompt": "hi"}
    )
    sent = [body.get("format") for body in bodies(host, "/api/generate")]
    assert sent == ["json" if host.version == "0.3.4" else schema, "json", None]


def test_a_fault_that_passes_is_asked_again(newest: LiveHost) -> None:
    def fail_once(request: Request, body: bytes) -> bytes:
        is_first = request.path == "/api/generate" and len(bodies(newest, "/api/generate")) == 1
        return b'{"error": "llama runner process has terminated"}\n' if is_first else body

    newest.proxy.edit = fail_once
    assert failures(hold(newest, BASE, PONG)) == []


@contextmanager
def a_faulty_host(*rules: Mapping[str, object]) -> Iterator[LiveHost]:
    """The newest host with BASE on it, whose faults begin now."""
    script = parse_faults(json.dumps({"faults": list(rules)}))
    with a_host() as healthy:
        healthy.stranger.pull(BASE)
        with Sandbox(healthy.sandbox.store.root, faults=with_faults(script)) as sandbox:
            yield dataclasses.replace(healthy, sandbox=sandbox)


def test_a_model_that_never_answers_fails() -> None:
    with a_faulty_host({"on": {"endpoint": "generate"}, "do": {"stall": True}}) as host:
        limits = TimeLimits(idle_s=PATIENCE_S, stall_s=PATIENCE_S, quiet_s=0.2)
        [failure] = hold(host, BASE, PONG, limits=limits).failures
    assert "nothing moved for 0.2s" in failure.message


@pytest.mark.parametrize("endpoint", ["show", "any"])
def test_a_server_that_answers_nothing_at_all_says_nothing_about_a_model(endpoint: str) -> None:
    with (
        a_faulty_host({"on": {"endpoint": endpoint}, "do": {"stall": True}}) as host,
        pytest.raises(TimeoutExceeded),
    ):
        hold(host, BASE, PONG, limits=HASTY)


def test_a_server_that_falls_silent_while_it_is_asked_says_nothing_about_a_model() -> None:
    silent = [{"on": {"endpoint": endpoint}, "do": {"stall": True}} for endpoint in ("generate", "version")]
    with a_faulty_host(*silent) as host, pytest.raises(TimeoutExceeded, match="ask for the version"):
        hold(host, BASE, PONG, limits=TimeLimits(idle_s=1, stall_s=PATIENCE_S, quiet_s=0.2))


NO_ROOM_FOUR_TIMES = {
    "on": {"endpoint": "generate"},
    "do": {"status": 500, "body": json.dumps({"error": NO_ROOM})},
    "times": 12,  # each look of the engine is three requests
}


def tags_until_it_works(host: LiveHost, *models: ModelSpec) -> list[dict[str, str]]:
    """What is there after each run that cannot prove the models for want of memory; the last run can."""
    found: list[dict[str, str]] = []
    host.options = replace(host.options, ask_registry=False)
    while True:
        report = host.run(models)
        if report.exit_code == exits.DONE:
            assert_converged(host, report.hosts[0])
            return found
        assert report.exit_code == exits.PARTIAL
        assert NO_ROOM in str(failed_actions(report.hosts[0]))
        found.append(host.stranger.tags())


def test_a_first_pull_stays_unproven_while_the_host_has_no_room_for_it() -> None:
    with a_faulty_host(NO_ROOM_FOUR_TIMES) as host:
        pulled = host.stranger.tags()
        host.stranger.delete(BASE)
        model = a_model(BASE, expect=(PONG,), retries=0)
        assert tags_until_it_works(host, model) == [pulled] * 4


@pytest.mark.parametrize("is_pulled", [True, False])
def test_what_was_there_serves_on_while_the_host_has_no_room_for_what_comes(is_pulled: bool) -> None:
    with a_faulty_host(NO_ROOM_FOUR_TIMES) as host:
        host.stranger.pull(THINKER)
        host.stranger.copy(THINKER, BASE)
        bot = a_model("bot", a_build(BASE, system="Be brief."), expect=(PONG,), retries=0)
        model = a_model(BASE, update="latest", expect=(PONG,), retries=0) if is_pulled else bot
        before = host.stranger.tags()
        assert tags_until_it_works(host, model) == [before] * 4
        assert host.stranger.tags() != before


@pytest.mark.parametrize(
    ("error", "is_about_the_model"),
    [
        (build_answer_error("gpu-1", "generate", status, '{"error": "x"}', {}), is_about_the_model)
        for status, is_about_the_model in [
            *((400, True), (404, True), (500, True), (501, True), (401, False), (403, False), (408, False)),
            *((429, False), (499, False), (502, False), (503, False), (504, False)),
        ]
    ]
    + [
        (build_line_error("gpu-1", "generate", {"error": "the runner has terminated"}), True),
        *(
            (build_answer_error("gpu-1", "generate", 500, json.dumps({"error": text}), {}), False)
            for text in [
                NO_ROOM,
                "llama runner process has terminated: cudaMalloc failed: out of memory",
                "llama runner process has terminated: error loading model: unable to allocate CUDA0 buffer",
                "ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer of size 838447104",
                "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
                "llama runner process has terminated: signal: killed",
                "write /tmp/ollama: no space left on device",
            ]
        ),
        (build_line_error("gpu-1", "generate", {"error": "CUDA error: out of memory"}), False),
        (TimeoutExceeded("gpu-1: nothing moved"), True),
        (ConnectError("gpu-1: refused"), False),
        (ConnectionLost("gpu-1: cut"), False),
        (CutStream("gpu-1: ends"), False),
    ],
)
def test_only_what_the_model_can_help_is_a_verdict_over_it(
    error: RemoteError, is_about_the_model: bool
) -> None:
    assert is_verdict(error) is is_about_the_model


@pytest.mark.parametrize(
    ("shown", "capabilities"),
    [
        (ShownModel(capabilities=("x",)), ("x",)),
        (ShownModel(capabilities=()), ()),
        (ShownModel(template="{{ .Tools }} {{ .Suffix }}"), ("completion", "tools", "insert")),
        (
            ShownModel(model_info={"general.architecture": "bert", "bert.pooling_type": 1}),
            ("embedding",),
        ),
        (ShownModel(projector_info={"a": 1}), ("completion", "vision")),
        (
            ShownModel(model_info={"general.architecture": "mllama", "mllama.vision.block_count": 3}),
            ("completion", "vision"),
        ),
    ],
)
def test_capabilities_are_read_off_a_model_where_the_server_does_not_tell(
    shown: ShownModel, capabilities: tuple[str, ...]
) -> None:
    assert capabilities_of(shown) == capabilities


# several hosts


def a_spec(model: str, *declared: Mapping[str, object]) -> ModelSpec:
    return ModelSpec(name=name(model), source=Pull(ref=name(model)), expect=declared)


def verify(
    host: LiveHost, *models: ModelSpec, on_model: OnModel | None = None, **fields: Any
) -> HostVerdicts:
    with host.opened() as run:
        [verdicts] = verify_hosts(
            [HostTask(spec=host.spec, models=models)], replace(run, **fields), on_model=on_model
        )
    return verdicts


def test_every_model_is_tested_whatever_becomes_of_the_others(newest: LiveHost) -> None:
    told: list[str] = []
    found = verify(
        newest,
        a_spec("gone", PONG),
        a_spec(BASE.upper(), PONG),
        on_model=lambda host, model: told.append(f"{model} on {host}"),
    )
    gone, base = found.verdicts
    assert failures(gone) == ["answer: no such model on the host"]
    assert gone.failures[0].hint == "ollamaops apply makes it"
    assert base.is_met
    assert found.unreached is None
    assert told == ["gone:latest on gpu-1", f"{BASE.upper()} on gpu-1"]


def test_a_host_that_goes_away_half_way_keeps_its_verdicts(newest: LiveHost) -> None:
    newest.stranger.copy(BASE, "other")

    def go_away(host: str, model: ModelName) -> None:
        if model == name("other"):
            newest.sandbox.stop()

    found = verify(newest, a_spec(BASE, PONG), a_spec("other", PONG), a_spec("more", PONG), on_model=go_away)
    assert [verdict.is_met for verdict in found.verdicts] == [True]
    assert found.unreached is not None
    assert found.unreached.host == "gpu-1"


def test_a_host_that_cannot_be_opened_is_unreached(newest: LiveHost) -> None:
    def refuse(spec: HostSpec, cancel: CancelToken) -> OllamaClient:
        raise OllamaopsError("no secret", hint="export it")

    found = verify(newest, a_spec(BASE, PONG), open_client=refuse)
    assert (found.verdicts, found.unreached and found.unreached.hint) == ((), "export it")


def test_testing_can_be_stopped(newest: LiveHost) -> None:
    newest.cancel.cancel()
    with pytest.raises(Cancelled):
        verify(newest, a_spec(BASE, PONG))


def test_no_hosts_are_no_verdicts(newest: LiveHost) -> None:
    with newest.opened() as run:
        assert verify_hosts([], run) == ()
