"""The client's verdicts: what counts as done, what as failed, what is refused before it does harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from scripted_host import (
    HEX,
    Asked,
    Script,
    ScriptedHost,
    Serving,
    Wire,
    always,
    reply,
    routes,
    streaming,
    tagged,
)

from ollamaops.errors import (
    Cancelled,
    CutStream,
    DiskFull,
    InvalidRequest,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RegistryRefused,
    RemoteError,
    ServerFault,
    TimeoutExceeded,
)
from ollamaops.http.session import TimeLimits
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.inference import ChatRequest, EmbedRequest, GenerateRequest
from ollamaops.ollama.messages import Message
from ollamaops.ollama.stall import Watch
from ollamaops.ollama.transport import Transport
from ollamaops.ollama.wire import CreateRequest, Progress

CONTRACT = Path(__file__).parents[1] / "contract"
VERSIONS = ["0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2"]
DIGEST = Digest.parse(HEX)
BOT = ModelName.parse("bot")
BASE = ModelName.parse("base")
SUCCESS = {"status": "success"}
WRITING = {"status": "writing manifest"}


# what the server is


def test_the_version_is_asked_once_for_the_features() -> None:
    with Serving({}, "0.12.6") as serving:
        assert str(serving.client.version()) == "0.12.6"
        assert serving.client.features() is serving.client.features()
        assert serving.client.features().stream_ends_at_error
        assert serving.client.transport.requests_sent == 2


@pytest.mark.parametrize(
    ("answer", "structured"),
    [
        (always({"error": "neither 'from' or 'files' was specified"}, 400), True),
        (always({"error": "path or modelfile are required"}, 400), False),
        (always({"error": "path or Modelfile are required"}, 400), False),
        (always({"error": "forbidden"}, 403), True),
        (always({}), True),
    ],
)
def test_a_server_without_a_version_is_asked_what_it_takes(answer: Script, structured: bool) -> None:
    with Serving({"/api/create": answer}, "0.0.0") as serving:
        features = serving.client.features()
        assert serving.body("/api/create") == {"model": "x", "stream": False}
    assert features.structured_create is structured
    assert features.models_from_modelfile is not structured
    assert not features.stream_ends_at_error
    assert str(features.version) == "0.0.0"


@pytest.mark.parametrize("answer", [always({}), always([]), always({"version": 3}), reply(200, b"hello")])
def test_a_version_that_is_none_is_a_protocol_error(answer: Script) -> None:
    with (
        Serving({"/api/version": answer}) as serving,
        pytest.raises(ProtocolError, match="ask for the version"),
    ):
        serving.client.version()


def test_another_program_at_the_address_is_told_so() -> None:
    with (
        Serving({"/api/tags": reply(404, b"not here", "text/plain")}) as serving,
        pytest.raises(ProtocolError) as caught,
    ):
        serving.client.tags()
    assert "there is no Ollama API at this address" in (caught.value.hint or "")


# what is there


def test_models_are_listed() -> None:
    with Serving({"/api/tags": tagged("a:latest", "b:v1"), "/api/ps": always({"models": None})}) as serving:
        assert [model.name for model in serving.client.tags()] == ["a:latest", "b:v1"]
        assert serving.client.ps() == ()


def test_a_model_is_shown_by_name_and_verbosely_when_asked() -> None:
    with Serving({"/api/show": always({"template": "{{ .Prompt }}"})}) as serving:
        assert serving.client.show(BOT).template == "{{ .Prompt }}"
        assert serving.body("/api/show") == {"model": "bot:latest"}
        serving.client.show(BOT, verbose=True)
        assert serving.body("/api/show") == {"model": "bot:latest", "verbose": True}


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_a_blob_is_looked_for_by_digest(status: int, there: bool) -> None:
    path = f"/api/blobs/sha256:{HEX}"
    with Serving({path: lambda asked, wire: wire.head(status, Content_Length="0")}) as serving:
        assert serving.client.has_blob(DIGEST) is there
        assert serving.host.paths() == [f"HEAD {path}"]


def test_a_blob_is_not_taken_for_missing_because_a_proxy_says_so() -> None:
    missing: Script = lambda asked, wire: wire.head(404, "text/html", Content_Length="0")  # noqa: E731
    with Serving({f"/api/blobs/sha256:{HEX}": missing}) as serving, pytest.raises(ProtocolError):
        serving.client.has_blob(DIGEST)


# copy and delete


def test_a_copy_names_both() -> None:
    with Serving({"/api/copy": reply(200)}) as serving:
        serving.client.copy(ModelName.parse("hf.co/a/b:Q4"), BOT)
        assert serving.body("/api/copy") == {"source": "hf.co/a/b:Q4", "destination": "bot:latest"}


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (reply(200), True),
        (always({"error": "model 'bot' not found"}, 404), False),
        (always({"code": "not_found", "error": "model not found"}, 404), False),
        (
            always(
                {
                    "error": "open /m/manifests/registry.ollama.ai/library/bot/latest: no such file or directory"
                },
                500,
            ),
            False,
        ),
    ],
)
def test_deleting_what_is_not_there_is_no_error_on_any_version(answer: Script, there: bool) -> None:
    with Serving({"/api/delete": answer}) as serving:
        assert serving.client.delete(BOT) is there
        assert serving.host.paths() == ["DELETE /api/delete"]
        assert serving.body("/api/delete") == {"model": "bot:latest"}


def test_a_delete_that_a_proxy_lost_is_not_taken_for_done() -> None:
    with (
        Serving({"/api/delete": reply(404, b"<html>404", "text/html")}) as serving,
        pytest.raises(ProtocolError),
    ):
        serving.client.delete(BOT)
    with (
        Serving({"/api/delete": always({"error": "remove /m/blobs/x: permission denied"}, 500)}) as serving,
        pytest.raises(ServerFault),
    ):
        serving.client.delete(BOT)


LOCAL = ModelName.parse("base:local")


@pytest.mark.parametrize(
    "act",
    [
        lambda client: client.delete(LOCAL),
        lambda client: client.show(LOCAL),
        lambda client: client.pull(LOCAL),
        lambda client: client.load(LOCAL),
        lambda client: client.unload(LOCAL),
        lambda client: client.generate(GenerateRequest(model=LOCAL)),
        lambda client: client.generate_stream(GenerateRequest(model=LOCAL)),
        lambda client: client.chat(ChatRequest(model=LOCAL)),
        lambda client: client.chat_stream(ChatRequest(model=LOCAL)),
        lambda client: client.embed(EmbedRequest(model=LOCAL)),
        lambda client: client.create(CreateRequest(model=BOT, from_=LOCAL)),
    ],
)
def test_a_local_suffix_never_acts_on_another_model(act: Callable[[OllamaClient], object]) -> None:
    with (
        Serving({}, "0.18.0") as serving,
        pytest.raises(InvalidRequest, match="'base:local' for 'base:latest'"),
    ):
        act(serving.client)
    assert serving.host.paths() == ["GET /api/version"]


def test_a_local_suffix_is_an_ordinary_tag_before_018() -> None:
    with Serving({"/api/delete": reply(200)}, "0.17.7") as serving:
        assert serving.client.delete(LOCAL)


# following a stream


def follow(lines: Iterable[object], act: Callable[[OllamaClient], None] | None = None) -> list[Progress]:
    """What a pull (or `act`) reports when the server streams `lines`."""
    seen: list[Progress] = []
    script = streaming(*lines)
    with Serving({"/api/pull": script, "/api/push": script, "/api/create": script}) as serving:
        if act is None:
            serving.client.pull(BOT, on_progress=seen.append)
        else:
            act(serving.client)
    return seen


LAYER = {"status": "pulling 0123", "digest": f"sha256:{HEX}", "total": 10, "completed": 10}


def test_every_line_is_reported_and_success_at_the_end_is_done() -> None:
    lines = [{"status": "pulling manifest"}, LAYER, {"status": "verifying sha256 digest"}, WRITING, SUCCESS]
    seen = follow(lines)
    assert [progress.status for progress in seen] == [
        "pulling manifest",
        "pulling 0123",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert seen[1] == Progress(
        status="pulling 0123", digest=f"sha256:{HEX}", total_bytes=10, completed_bytes=10
    )


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"status": "pulling manifest"}],
        [LAYER, WRITING],
        [SUCCESS, WRITING],
        [{"status": "Success"}],
        [{}],
    ],
)
def test_a_stream_without_success_as_its_last_word_is_cut(lines: list[object]) -> None:
    with pytest.raises(CutStream, match="without success"):
        follow(lines)


def test_a_stream_that_is_cut_after_success_is_not_done() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line(SUCCESS)
        wire.close()

    with Serving({"/api/pull": script}) as serving, pytest.raises(RemoteError) as caught:
        serving.client.pull(BOT)
    assert caught.value.transient


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (
            [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}],
            RegistryRefused,
        ),
        ([LAYER, {"error": "write x: no space left on device"}, SUCCESS], DiskFull),
        ([{"error": "boom"}, WRITING, SUCCESS], ServerFault),
        ([{"error": "boom"}, {"error": "no space left on device"}], ServerFault),
        ([{"error": "whatever", "status": 400}], InvalidRequest),
        ([SUCCESS, {"error": "couldn't remove unused layers"}], ServerFault),
        ([{"error": ""}, SUCCESS], ServerFault),
    ],
)
def test_every_error_line_is_fatal_whatever_follows(lines: list[object], error: type[RemoteError]) -> None:
    with pytest.raises(error, match=r"^gpu-1: pull bot:latest: ") as caught:
        follow(lines)
    assert type(caught.value) is error


def test_a_line_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ProtocolError, match="total is a string, not an integer"):
        follow([{"status": "pulling", "total": "many"}])


def test_after_an_error_line_the_rest_is_heard_so_that_the_server_can_finish() -> None:
    finished = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.ndjson([{"error": "boom"}, *[{"status": "x"}] * 500, SUCCESS])
        finished.set()

    with Serving({"/api/pull": script}) as serving:
        with pytest.raises(ServerFault):
            serving.client.pull(BOT)
        assert finished.is_set()


def test_after_an_error_line_a_cut_does_not_hide_the_error() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line({"error": "no space left on device"})
        wire.reset()

    with Serving({"/api/pull": script}) as serving, pytest.raises((DiskFull, RemoteError)):
        serving.client.pull(BOT)


def test_a_failing_listener_stops_the_pull_and_is_heard() -> None:
    def fail(progress: Progress) -> None:
        raise OllamaopsError("the disk of the log is full")

    with (
        Serving({"/api/pull": streaming(LAYER, SUCCESS)}) as serving,
        pytest.raises(OllamaopsError, match="the disk of the log is full"),
    ):
        serving.client.pull(BOT, on_progress=fail)


def test_pull_and_push_ask_as_told() -> None:
    script = streaming(SUCCESS)
    with Serving({"/api/pull": script, "/api/push": script}) as serving:
        serving.client.pull(BOT)
        assert serving.body("/api/pull") == {"model": "bot:latest", "stream": True}
        serving.client.push(ModelName.parse("localhost:5000/me/bot:v1"), insecure=True)
        assert serving.body("/api/push") == {
            "model": "localhost:5000/me/bot:v1",
            "insecure": True,
            "stream": True,
        }
        serving.client.pull(BOT, insecure=True)
        assert serving.body("/api/pull")["insecure"] is True


# stalls


class Clock:
    """A clock that moves when it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_layer(completed: int, digest: str = "sha256:x") -> Progress:
    return Progress(status="pulling x", digest=digest, total_bytes=100, completed_bytes=completed)


A_BIG_LAYER = Progress(status="pulling x", digest="sha256:x", total_bytes=400 * 10**9, completed_bytes=1)
ANOTHER_LAYER = Progress(status="pulling y", digest="sha256:y", total_bytes=40 * 10**9, completed_bytes=1)
VERIFYING = Progress(status="verifying sha256 digest")


def watched(*steps: tuple[float, Progress]) -> float:
    """The patience left after each progress came so many seconds after the one before (stall 300, quiet 3600)."""
    clock = Clock()
    watch = Watch(300, 3600, clock)
    for seconds, progress in steps:
        clock.now += seconds
        watch.see(progress)
    return watch.patience_s


@pytest.mark.parametrize(
    ("steps", "patience_s"),
    [
        ([], 300),
        ([(100, Progress(status="pulling manifest"))], 300),
        ([(0, a_layer(0)), (299, a_layer(0))], 1),
        ([(0, a_layer(0)), (150, a_layer(0)), (150, a_layer(0))], 0),
        ([(0, a_layer(50)), (400, a_layer(50))], -100),
        ([(0, a_layer(50)), (200, a_layer(51)), (200, a_layer(51))], 100),
        ([(0, a_layer(50)), (200, a_layer(10)), (200, a_layer(11))], 300),
        ([(0, a_layer(50)), (200, a_layer(10)), (200, a_layer(10))], -100),
        ([(0, a_layer(1)), (200, a_layer(1, "sha256:y")), (200, a_layer(1))], 100),
        ([(0, a_layer(100)), (200, Progress(status="verifying sha256 digest"))], 3600),
        ([(0, Progress(status="writing manifest")), (200, Progress(status="writing manifest"))], 3400),
        ([(0, Progress(status="parsing GGUF")), (200, Progress(status="writing manifest"))], 3600),
        # 400 GB and 40 GB more at 20 MB/s, the layer in between told of twice
        ([(0, A_BIG_LAYER), (0, A_BIG_LAYER), (0, ANOTHER_LAYER), (9, VERIFYING)], 22_000),
        ([(0, A_BIG_LAYER), (9, VERIFYING), (20_001, VERIFYING)], -1),
        ([(0, ANOTHER_LAYER), (9, VERIFYING)], 3600),
        ([(0, A_BIG_LAYER)], 300),
    ],
)
def test_a_stall_is_completed_standing_still_not_silence(
    steps: list[tuple[float, Progress]], patience_s: float
) -> None:
    assert watched(*steps) == patience_s


@given(st.lists(st.integers(0, 100), min_size=1), st.floats(0, 299))
def test_what_moves_before_the_limit_never_stalls(completed: list[int], seconds: float) -> None:
    rising = sorted(set(completed))
    assert watched(*[(seconds, a_layer(count)) for count in rising]) == 300


def test_a_pull_whose_lines_go_on_without_bytes_is_stopped() -> None:
    """Ollama up to 0.32.1 goes on reporting a download that never got its first byte."""
    clock = Clock()
    gone = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        try:
            while True:
                wire.line(LAYER | {"completed": 4, "total": 1000})
        finally:
            gone.set()

    def tick(progress: Progress) -> None:
        clock.now += 10

    with ScriptedHost(routes({"/api/pull": script})) as host:
        client = OllamaClient(Transport("gpu-1", host.url, clock=clock))
        with pytest.raises(TimeoutExceeded) as caught:
            client.pull(BOT, on_progress=tick, stall_s=60)
        assert gone.wait(PATIENCE_S)
        client.close()
    assert str(caught.value) == "gpu-1: pull bot:latest: stalled: no new byte for 1m00s at 4 B of 1.0 kB"
    assert clock.now <= 1000 + 80


class SkippingClock:
    """A clock of which time can be skipped, so that a limit is long until a line has come, and then nearly over."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_s

    def skip(self, seconds: float) -> None:
        self.skipped_s += seconds


def test_a_pull_that_says_nothing_is_stopped() -> None:
    clock = SkippingClock()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line({"status": "pulling manifest"})
        wire.sock.settimeout(PATIENCE_S)
        wire.sock.recv(1)
        wire.close()

    with ScriptedHost(routes({"/api/pull": script})) as host:
        client = OllamaClient(Transport("gpu-1", host.url, clock=clock))
        with pytest.raises(TimeoutExceeded) as caught:
            client.pull(BOT, on_progress=lambda _: clock.skip(PATIENCE_S - 0.1), stall_s=PATIENCE_S)
        client.close()
    assert str(caught.value) == (
        "gpu-1: pull bot:latest: stalled: nothing new for 10m00s after 'pulling manifest'"
    )
    assert "resumes" in (caught.value.hint or "")


def test_a_pull_that_never_begins_is_stopped() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.sock.settimeout(PATIENCE_S)
        wire.sock.recv(1)
        wire.close()

    stalled = pytest.raises(TimeoutExceeded, match=r"stalled: nothing new for 0\.1s after 'the request'$")
    with Serving({"/api/pull": script}) as serving, stalled:
        serving.client.pull(BOT, stall_s=0.1)
    overdue = pytest.raises(TimeoutExceeded, match=r"^gpu-1: pull bot:latest: not done within 0\.1s$")
    with Serving({"/api/pull": script}, limits=TimeLimits(overall_s=0.1)) as serving, overdue:
        serving.client.pull(BOT)


def test_a_quiet_step_may_take_long() -> None:
    """Verifying a big download says nothing for minutes; only `quiet_s` bounds it."""
    clock = SkippingClock()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line({"status": "verifying sha256 digest"})
        wire.line(SUCCESS)
        wire.end()

    with ScriptedHost(routes({"/api/pull": script})) as host:
        limits = TimeLimits(quiet_s=3 * PATIENCE_S)
        client = OllamaClient(Transport("gpu-1", host.url, clock=clock, limits=limits))
        client.pull(BOT, on_progress=lambda _: clock.skip(PATIENCE_S), stall_s=PATIENCE_S - 1)
        client.close()


def test_a_pull_is_cancelled_from_another_thread() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line(LAYER)
        wire.sock.settimeout(PATIENCE_S)
        wire.sock.recv(1)
        wire.close()

    with Serving({"/api/pull": script}) as serving:
        cancel = serving.client.transport.cancel.cancel
        with pytest.raises(Cancelled):
            serving.client.pull(BOT, on_progress=lambda _: threading.Thread(target=cancel).start())


# create


def create(serving: Serving, **request: Any) -> list[str]:
    """Ask for a model, and what was reported."""
    seen: list[str] = []
    request.setdefault("model", BOT)
    serving.client.create(CreateRequest(**request), on_progress=lambda progress: seen.append(progress.status))
    return seen


@pytest.mark.parametrize("version", ["0.5.5", "0.6.8", "0.12.5", "0.33.0", "0.0.0"])
def test_a_model_from_files_is_created_with_a_stream_on_every_structured_version(version: str) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.json["stream"]:
            wire.ndjson([{"status": "parsing GGUF"}, WRITING, SUCCESS])
        else:
            wire.json({"error": "neither 'from' or 'files' was specified"}, 400)

    with Serving({"/api/create": script}, version) as serving:
        assert create(serving, files={"w.gguf": DIGEST}) == ["parsing GGUF", "writing manifest", "success"]
        assert serving.body("/api/create") == {
            "model": "bot:latest",
            "files": {"w.gguf": f"sha256:{HEX}"},
            "stream": True,
        }


@pytest.mark.parametrize("version", ["0.5.5", "0.6.8", "0.12.5"])
def test_a_missing_base_is_found_before_an_old_server_writes_an_empty_model(version: str) -> None:
    with (
        Serving({"/api/tags": tagged("other:latest")}, version) as serving,
        pytest.raises(NotFound, match=r"^gpu-1: create bot:latest: the base 'base:latest' is not there$"),
    ):
        create(serving, from_=BASE)
    assert serving.host.paths() == ["GET /api/version", "GET /api/tags"]


@pytest.mark.parametrize("version", ["0.5.5", "0.12.5"])
def test_a_model_from_a_base_is_created_without_a_stream_where_streams_go_on_after_errors(
    version: str,
) -> None:
    with Serving({"/api/tags": tagged("base:latest"), "/api/create": always(SUCCESS)}, version) as serving:
        assert create(serving, from_=BASE) == ["success"]
        serving.client.create(CreateRequest(model=BOT, from_=BASE))
        assert serving.body("/api/create") == {"model": "bot:latest", "from": "base:latest", "stream": False}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (always({"error": "pull model manifest: file does not exist"}, 500), RegistryRefused),
        (always({"error": "template error: x"}, 400), InvalidRequest),
        (always({"status": "writing manifest"}), CutStream),
        (always({"error": "boom"}), ServerFault),
        (reply(200), ProtocolError),
    ],
)
def test_an_unhappy_answer_without_a_stream_is_no_success(answer: Script, error: type[RemoteError]) -> None:
    table = {"/api/tags": tagged("base:latest"), "/api/create": answer}
    with Serving(table, "0.6.8") as serving, pytest.raises(error):
        create(serving, from_=BASE)


def test_the_base_is_asked_for_as_the_server_spells_it() -> None:
    """`from` is looked up by exact case; another spelling would be pulled from the registry."""
    for version, answer in (("0.6.8", always(SUCCESS)), ("0.33.0", streaming(SUCCESS))):
        with Serving(
            {"/api/tags": tagged("not a name", "Base:Latest"), "/api/create": answer}, version
        ) as serving:
            create(serving, from_=BASE)
            assert serving.body("/api/create")["from"] == "Base:Latest"


PULLED = [{"status": "pulling manifest"}, LAYER, WRITING, SUCCESS]


def test_a_base_that_the_server_pulls_on_the_way_is_not_the_end() -> None:
    table = {"/api/tags": tagged(), "/api/create": streaming(*PULLED, WRITING, SUCCESS)}
    with Serving(table) as serving:
        assert create(serving, from_=BASE)[-2:] == ["writing manifest", "success"]
        assert serving.body("/api/create") == {"model": "bot:latest", "from": "base:latest", "stream": True}


def test_a_create_that_ends_with_the_success_of_its_base_is_cut() -> None:
    with (
        Serving({"/api/tags": tagged(), "/api/create": streaming(*PULLED)}) as serving,
        pytest.raises(CutStream, match="ends after 'success', without success"),
    ):
        create(serving, from_=BASE)


def test_a_pull_may_say_success_once() -> None:
    follow(PULLED)


def test_an_error_as_the_first_item_is_an_http_status_since_0126() -> None:
    table = {"/api/create": always({"error": "unknown type"}, 400)}
    with Serving(table, "0.12.6") as serving, pytest.raises(InvalidRequest, match="unknown type"):
        create(serving, files={"w.gguf": DIGEST})


@pytest.mark.parametrize(
    ("request_", "version", "words"),
    [
        ({"files": {"w": DIGEST}}, "0.5.4", "takes a Modelfile only"),
        ({}, "0.33.0", "needs a base or files"),
        ({"from_": BASE, "files": {"w": DIGEST}}, "0.33.0", "needs a base or files"),
        ({"files": {"w": DIGEST}, "renderer": "r"}, "0.11.11", "would pass over 'renderer'"),
        ({"files": {"w": DIGEST}, "parser": "r"}, "0.11.11", "would pass over 'parser'"),
        ({"files": {"w": DIGEST}, "requires": "1"}, "0.13.5", "would pass over 'requires'"),
        ({"files": {"w": DIGEST}, "drafts": {"d": DIGEST}}, "0.24.0", "would pass over 'drafts'"),
    ],
)
def test_what_a_version_would_not_do_is_refused_before_it_is_asked(
    request_: dict[str, Any], version: str, words: str
) -> None:
    with Serving({}, version) as serving, pytest.raises(InvalidRequest) as caught:
        create(serving, **request_)
    assert words in str(caught.value)
    assert caught.value.hint
    assert serving.host.paths() == ["GET /api/version"]


def test_a_modelfile_goes_to_servers_that_take_one_and_to_no_others() -> None:
    with Serving({"/api/create": streaming(WRITING, SUCCESS)}, "0.5.4") as serving:
        serving.client.create_from_modelfile(BOT, "FROM base\n")
        assert serving.body("/api/create") == {
            "model": "bot:latest",
            "modelfile": "FROM base\n",
            "stream": True,
        }
        serving.client.create_from_modelfile(BOT, "FROM base\n", quantize="Q8_0")
        assert serving.body("/api/create")["quantize"] == "Q8_0"
    with Serving({}, "0.5.5") as serving, pytest.raises(InvalidRequest, match="take no Modelfile"):
        serving.client.create_from_modelfile(BOT, "FROM base\n")


# using models


def test_loading_waits_for_the_model_and_keeps_it_as_told() -> None:
    with Serving({"/api/generate": always({"done": True, "done_reason": "load"})}) as serving:
        serving.client.load(BOT)
        assert serving.body("/api/generate") == {"model": "bot:latest"}
        serving.client.load(BOT, keep_alive_s=-1)
        assert serving.body("/api/generate") == {"model": "bot:latest", "keep_alive": -1}
        serving.client.unload(BOT)
        assert serving.body("/api/generate") == {"model": "bot:latest", "keep_alive": 0}


@pytest.mark.parametrize(
    ("version", "path"), [("0.3.5", "/api/embeddings"), ("0.3.6", "/api/embed"), ("0.33.0", "/api/embed")]
)
def test_an_embedding_model_is_loaded_its_own_way(version: str, path: str) -> None:
    table = {
        "/api/generate": always({"error": '"bot" does not support generate'}, 400),
        path: always({"embeddings": []}),
    }
    with Serving(table, version) as serving:
        serving.client.load(BOT, keep_alive_s=0.5)
        assert serving.body(path)["keep_alive"] == "500ms"
        serving.client.unload(BOT)
        assert serving.body(path)["keep_alive"] == 0


def test_a_model_that_cannot_be_loaded_is_an_error() -> None:
    for status, error in ((404, NotFound), (400, InvalidRequest), (500, ServerFault)):
        with Serving({"/api/generate": always({"error": "no"}, status)}) as serving, pytest.raises(error):
            serving.client.load(BOT)


DONE = {"done": True, "done_reason": "stop", "eval_count": 2, "eval_duration": 1_000_000_000}


def test_generate_answers_at_once_or_in_pieces() -> None:
    pieces = streaming({"response": "He"}, {"response": "y"}, {"response": "", **DONE})
    whole = always({"response": "Hey", **DONE})
    script: Script = lambda asked, wire: (pieces if asked.json["stream"] else whole)(asked, wire)  # noqa: E731
    with Serving({"/api/generate": script}) as serving:
        request = GenerateRequest(model=BOT, prompt="hi", options={"seed": 1})
        answer = serving.client.generate(request)
        assert (answer.response, answer.done_reason, answer.timings.tokens_per_s) == ("Hey", "stop", 2)
        chunks = list(serving.client.generate_stream(request))
    assert "".join(chunk.response for chunk in chunks) == "Hey"
    assert [chunk.done for chunk in chunks] == [False, False, True]
    assert chunks[-1].timings == answer.timings


def test_chat_answers_at_once_or_in_pieces() -> None:
    def say(text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text}}

    pieces = streaming(say("He"), say("y"), {**say(""), **DONE})
    whole = always({**say("Hey"), **DONE})
    script: Script = lambda asked, wire: (pieces if asked.json["stream"] else whole)(asked, wire)  # noqa: E731
    with Serving({"/api/chat": script}) as serving:
        request = ChatRequest(model=BOT, messages=(Message("user", "hi"),))
        assert serving.client.chat(request).message == Message("assistant", "Hey")
        chunks = list(serving.client.chat_stream(request))
    assert "".join(chunk.message.content for chunk in chunks) == "Hey"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([{"response": "He"}], CutStream),
        ([], CutStream),
        ([{"response": "He"}, {"error": "an error was encountered while running the model"}], ServerFault),
        ([{"response": 5}], ProtocolError),
    ],
)
def test_pieces_that_do_not_end_well_are_an_error(lines: list[object], error: type[RemoteError]) -> None:
    with Serving({"/api/generate": streaming(*lines)}) as serving, pytest.raises(error):
        list(serving.client.generate_stream(GenerateRequest(model=BOT)))


def test_embeddings_come_as_vectors() -> None:
    with Serving({"/api/embed": always({"model": "bot", "embeddings": [[1, 0], [0, 1]]})}) as serving:
        answer = serving.client.embed(EmbedRequest(model=BOT, inputs=("a", "b")))
        assert answer.embeddings == ((1.0, 0.0), (0.0, 1.0))
        assert serving.body("/api/embed") == {"model": "bot:latest", "input": ["a", "b"]}


def test_the_client_is_a_context_and_names_its_host_by_its_address() -> None:
    with OllamaClient.connect("http://me:pw@127.0.0.1:1") as client:
        assert client.host == "127.0.0.1:1"


def test_generous_limits_are_the_default() -> None:
    limits = TimeLimits()
    assert (limits.connect_s, limits.idle_s, limits.stall_s, limits.quiet_s) == (30, 30, 300, 3600)
