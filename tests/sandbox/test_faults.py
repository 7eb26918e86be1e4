"""What a fault script promises: the fault it names, on the call it names, over a real connection."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import socket
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import requests
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from starlette.types import Message, Receive, Scope, Send

from ollamaops.errors import ManifestError
from ollamaops.sandbox import fault_script
from ollamaops.sandbox.fault_injection import FaultInjector, with_faults
from ollamaops.sandbox.fault_script import (
    Call,
    ChangeModel,
    Cut,
    DiskFull,
    ErrorThenSuccess,
    Fault,
    FaultScript,
    Matcher,
    Refuse,
    Reset,
    Restart,
    Stall,
    Status,
    TruncateJson,
    VanishBlob,
    load_faults,
    parse_faults,
)
from ollamaops.sandbox.fault_transport import FaultProtocol, ListenerGate, transport_of
from ollamaops.sandbox.server import Sandbox
from ollamaops.sandbox.store import Store

BLOB = b"weights"
WEIGHTS = Path(__file__).parents[1] / "contract" / "weights" / "tiny-ascii-f16.gguf"
DIGEST = "sha256:9d7183f16acce70658f686ae7f1a4d20b9ad9a9ad3f9b6b8cd1e6c8b3ad0e9d6"


# --- which rule fires -----------------------------------------------------------------------------------------------


def a_script(*rules: str) -> FaultScript:
    return parse_faults("faults:\n" + "\n".join(f"  - {{{rule}}}" for rule in rules))


def statuses(script: FaultScript, calls: int, call: Call | None = None) -> list[int | None]:
    """The status of each of so many calls; None where nothing happened."""
    decided = [script.decide(call or Call(endpoint="tags")) for _ in range(calls)]
    return [fault.action.status if fault and isinstance(fault.action, Status) else None for fault in decided]


@pytest.mark.parametrize(
    ("when", "hit"),
    [
        ("call: 2", [2]),
        ("call: [2..4]", [2, 3, 4]),
        ("call: 2..3", [2, 3]),
        ("call: [1, 4..5]", [1, 4, 5]),
        ("call: 5..", [5, 6]),
        ("times: 2", [1, 2]),
        ("call: 3.., times: 1", [3]),
        ("share: 1", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_rule_fires_at_the_calls_it_names(when: str, hit: list[int]) -> None:
    decided = statuses(a_script(f"{when}, do: {{status: 503}}"), 6)
    assert [number for number, status in enumerate(decided, 1) if status] == hit


def test_a_rule_without_calls_always_fires_and_an_empty_script_never() -> None:
    assert statuses(a_script("do: {status: 503}"), 3) == [503] * 3
    assert statuses(parse_faults("faults: []"), 3) == statuses(parse_faults("[]"), 3) == [None] * 3


def test_the_first_rule_that_fires_wins_and_every_rule_counts_every_call() -> None:
    script = a_script("call: 1, do: {status: 500}", "call: 2, do: {status: 502}", "do: {status: 503}")
    assert statuses(script, 3) == [500, 502, 503]
    assert (script.seen, script.hits) == ([3, 3, 3], [1, 1, 1])


def test_a_share_is_drawn_by_the_seed_and_by_nothing_else() -> None:
    rule = "on: {endpoint: tags}, share: 0.3, seed: 7, do: {status: 503}"
    alone = statuses(a_script(rule), 200)
    assert alone == statuses(a_script(rule), 200) != statuses(a_script(rule.replace("7", "8")), 200)
    assert 40 <= 200 - alone.count(None) <= 80
    disturbed = a_script(rule)
    mixed: list[int | None] = []
    for _ in range(200):
        disturbed.decide(Call(endpoint="ps", method="GET"))
        mixed += statuses(disturbed, 1)
    assert mixed == alone


@given(st.floats(0.01, 1), st.integers(1, 5), st.integers(0, 99))
def test_a_rule_never_fires_more_often_than_it_may(share: float, times: int, seed: int) -> None:
    script = a_script(f"share: {share:.3f}, seed: {seed}, times: {times}, do: {{status: 503}}")
    assert 50 - statuses(script, 50).count(None) <= times


@pytest.mark.parametrize(
    ("matcher", "call", "matches"),
    [
        (Matcher(), Call(endpoint="root", method="GET"), True),
        (Matcher(endpoint="any"), Call(endpoint="pull"), True),
        (Matcher(endpoint="pull"), Call(endpoint="push"), False),
        (Matcher(endpoint="blobs", method="HEAD"), Call(endpoint="blobs", method="POST"), False),
        (Matcher(model="llama3*"), Call(endpoint="pull", models=("llama3.2:3b",)), True),
        (Matcher(model="LLAMA3.2:3B"), Call(endpoint="pull", models=("llama3.2:3b",)), True),
        (Matcher(model="m"), Call(endpoint="pull", models=("m:latest",)), True),
        (Matcher(model="m:latest"), Call(endpoint="pull", models=("m",)), True),
        (Matcher(model="m"), Call(endpoint="pull", models=("m:other",)), False),
        (Matcher(model="m"), Call(endpoint="tags"), False),
        (Matcher(model="b"), Call(endpoint="copy", models=("a", "b")), True),
        (Matcher(digest="9D71"), Call(endpoint="blobs", digest=DIGEST), True),
        (Matcher(digest=DIGEST.replace(":", "-")), Call(endpoint="blobs", digest=DIGEST), True),
        (Matcher(digest="sha256:aa"), Call(endpoint="blobs", digest=DIGEST), False),
    ],
)
def test_a_rule_counts_the_calls_it_is_on(matcher: Matcher, call: Call, matches: bool) -> None:
    assert matcher.matches(call) is matches


# --- reading scripts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "fault"),
    [
        ("{status: 503}", Fault(action=Status(status=503))),
        (
            "{status: 429, retry_after: 2, html: true}",
            Fault(action=Status(status=429, retry_after="2", html=True)),
        ),
        ("{status: 500, body: no}", Fault(action=Status(status=500, body="no"))),
        ("{status: 500, body: '503'}", Fault(action=Status(status=500, body="503"))),
        ("{latency: 200ms}", Fault(latency_s=0.2)),
        ("{latency: 1.5, status: 500}", Fault(latency_s=1.5, action=Status(status=500))),
        ("{bandwidth: 1MB/s}", Fault(bandwidth_bytes_per_s=10**6)),
        ("{bandwidth: 4096, reset: after}", Fault(bandwidth_bytes_per_s=4096, action=Reset("after"))),
        ("{refuse: true}", Fault(action=Refuse(1.0))),
        ("{refuse: 5s}", Fault(action=Refuse(5.0))),
        ("{reset: before}", Fault(action=Reset("before"))),
        ("{reset: during}", Fault(action=Reset("during"))),
        ("{cut: looks-complete}", Fault(action=Cut("looks-complete"))),
        ("{cut: mid-line}", Fault(action=Cut("mid-line"))),
        ("{cut: 3}", Fault(action=Cut(3))),
        ("{cut: 2 lines}", Fault(action=Cut(2))),
        ("{stall: true}", Fault(action=Stall())),
        (
            "{stall: {with_progress: true, for: 30s, after: 2}}",
            Fault(action=Stall(with_progress=True, for_s=30, after_lines=2)),
        ),
        ("{error_then_success: boom}", Fault(action=ErrorThenSuccess("boom"))),
        ("{truncate_json: true}", Fault(action=TruncateJson())),
        ("{disk_full: true}", Fault(action=DiskFull())),
        ("{vanish_blob: true}", Fault(action=VanishBlob())),
        ("{change_model: {model: m, delete: true}}", Fault(action=ChangeModel(model="m", delete=True))),
        ("{change_model: {model: m, copy_from: o}}", Fault(action=ChangeModel(model="m", copy_from="o"))),
        (
            "{change_model: {model: m, system: s, parameters: {top_k: 1}}}",
            Fault(action=ChangeModel(model="m", system="s", parameters={"top_k": 1})),
        ),
        ("{restart: true}", Fault(action=Restart())),
        ("{restart: {prune: true, when: before}}", Fault(action=Restart(prune=True, when="before"))),
    ],
)
def test_every_action_is_parsed(do: str, fault: Fault) -> None:
    assert a_script(f"do: {do}").decide(Call(endpoint="tags")) == fault


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("faults: [", "faults.yaml:2:1: not valid YAML"),
        ("", "faults.yaml: the file is empty"),
        (b"\xff\xff", "faults.yaml: not valid YAML"),
        ("- &a [*a]", "faults.yaml:1:3: a value contains itself"),
        ("- do: {status: 503, status: 500}", "faults.yaml:1:21: duplicate key 'status'"),
        ("faults:", "faults.yaml:1:8: faults: None is not of type 'array'"),
        ("rules: []", "faults.yaml:1:1: faults: "),
        ("faults:\n  - on: {endpoint: pul}\n    do: {status: 503}", "faults.yaml:2:20: faults.0.on.endpoint: "),
        ("faults:\n  - call: 0\n    do: {status: 503}", "faults.yaml:2:11: faults.0.call: "),
        ("- do: {statuss: 503}", "faults.yaml:1:7: faults.0.do: Additional properties are not allowed"),
        ("- do: {status: 99}", "faults.yaml:1:16: faults.0.do.status: 99 is less than the minimum of 200"),
        ("- do: {}", "faults.yaml:1:7: faults.0.do: "),
        ("- on: {}", "faults.yaml:1:3: faults.0: 'do' is a required property"),
        ("- do: {latency: soon}", "faults.yaml:1:3: 'soon' is not a duration"),
        ("- do: {bandwidth: fast}", "faults.yaml:1:3: 'fast' is not a size"),
        ("- do: {reset: after, cut: 1}", "faults.yaml:1:3: reset and cut cannot happen to one call"),
        ("- do: {html: true}", "faults.yaml:1:3: html needs a status"),
        ("- do: {change_model: {model: m, delete: true, system: s}}", "faults.yaml:1:22: faults.0.do.change_model: "),
        ("- do: {disk_full: false}", "faults.yaml:1:19: faults.0.do.disk_full: True was expected"),
    ],
)  # fmt: skip
def test_a_bad_script_is_refused_with_the_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_faults(text)
    assert str(caught.value).startswith(problem)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_faults("- do: {status: 1}\n- do: {cut: -1}\n- {}\n")
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


def test_a_script_is_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text("- do: {status: 503}\n")
    assert statuses(load_faults(path), 1) == [503]
    path.write_text("- do: {}\n")
    with pytest.raises(ManifestError, match=re.escape(f"{path}:1:7")):
        load_faults(path)


def test_all_problems_of_values_come_at_once() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_faults("- do: {latency: x}\n- do: {bandwidth: y}\n")
    assert [problem.line for problem in caught.value.problems] == [1, 2]


def test_the_documented_example_is_a_valid_script() -> None:
    example = str(fault_script.__doc__).split("::\n\n", 1)[1].split("\nThe list", 1)[0]
    script = parse_faults(textwrap.dedent(example))
    assert statuses(script, 2, Call(endpoint="pull", models=("llama3.2",)))[1] == 503


# --- over a real connection -----------------------------------------------------------------------------------------

PULL = [
    {"status": "pulling manifest"},
    {"status": "pulling", "completed": 1},
    {"status": "pulling", "completed": 2},
]
SUCCESS = {"status": "success"}
LINES = [json.dumps(line).encode() + b"\n" for line in [*PULL, SUCCESS]]


@dataclass
class TinyServer:
    """A few endpoints of a server, as plain ASGI; `done` names the calls that were carried out."""

    store: Store
    models: list[str] = field(default_factory=lambda: ["m"])
    done: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = str(scope["path"]), str(scope["method"])
        call = f"{method} {path}"
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body", False):
            message = await receive()
            body += message.get("body", b"")
        if path == "/api/pull":
            await self.pull(send)
            self.done.append(call)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif path.startswith("/api/blobs/"):
            self.done.append(call)
            await self.blob(path.removeprefix("/api/blobs/"), method, body, send)
        elif path == "/api/tags":
            self.done.append(call)
            await self.respond(send, 200, json.dumps({"models": self.models}).encode())
        else:
            self.done.append(call)
            await self.respond(send, 200, b"")

    async def pull(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for line in LINES:
            await send({"type": "http.response.body", "body": line, "more_body": True})
            await asyncio.sleep(0)

    async def blob(self, digest: str, method: str, body: bytes, send: Send) -> None:
        if method == "HEAD":
            await self.respond(send, 200 if self.store.has_blob(digest) else 404, b"")
            return
        try:
            self.store.add_blob(body)
        except OSError as error:
            await self.respond(send, 500, json.dumps({"error": str(error)}).encode())
            return
        await self.respond(send, 201, b"")

    def change(self, action: ChangeModel) -> None:
        assert action.delete
        self.models.remove(action.model)

    async def respond(self, send: Send, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class StartedServer(uvicorn.Server):
    """Says when it listens, and stops at once instead of at the next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._asked_to_stop = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        self.listens.set()

    async def main_loop(self) -> None:
        await self._asked_to_stop.wait()

    def stop(self) -> None:
        self.should_exit = True
        with suppress(RuntimeError):  # it has stopped already
            self._loop.call_soon_threadsafe(self._asked_to_stop.set)


@dataclass
class Running:
    """A served script and what one can learn of it."""

    app: TinyServer
    server: StartedServer
    port: int
    waits: list[float] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: object) -> requests.Response:
        return self.call("GET", path, **options)

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            ask = cast(Callable[..., requests.Response], session.request)
            return ask(method, self.url + path, timeout=PATIENCE_S, **options)

    def pull(self) -> requests.Response:
        return self.call("POST", "/api/pull", json={"model": "m"})

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as peer:
            yield peer


Serve = Callable[..., Running]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(script: str, sleep: Callable[[float], object] | None = None) -> Running:
            app = TinyServer(Store(tmp_path / "store"))
            running = Running(app, cast(StartedServer, None), 0)

            async def no_wait(seconds: float) -> None:
                running.waits.append(seconds)
                await asyncio.sleep(0)

            injector = FaultInjector(
                app,
                parse_faults(script),
                app.store,
                forget=lambda: running.forgotten.append("all"),
                change=app.change,
                sleep=cast("Callable[[float], asyncio.Future[None]]", sleep or no_wait),
            )

            async def told(scope: Scope, receive: Receive, send: Send) -> None:
                running.begun.release()
                try:
                    await injector(scope, receive, send)
                finally:
                    running.ended.release()

            config = uvicorn.Config(
                told, host="127.0.0.1", port=0, http=FaultProtocol, lifespan="off", log_config=None
            )
            running.server = StartedServer(config)
            injector.attach(running.server)
            stack.enter_context(_in_a_thread(running.server))
            running.port = running.server.servers[0].sockets[0].getsockname()[1]
            return running

        yield start


@contextmanager
def _in_a_thread(server: StartedServer) -> Iterator[None]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listens.wait(PATIENCE_S)
        yield
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_call_without_a_fault_is_served_untouched(serve: Serve) -> None:
    running = serve("- {on: {endpoint: push}, do: {status: 500}}")
    answer = running.pull()
    assert (answer.status_code, answer.content) == (200, b"".join(LINES))
    assert running.get("/api/tags").json() == {"models": ["m"]}


def test_a_status_is_ollamas_error_document_and_the_call_is_not_carried_out(serve: Serve) -> None:
    running = serve("- {on: {endpoint: pull, model: m}, call: 1, do: {status: 503, retry_after: 2}}")
    answer = running.pull()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json() == {"error": "service unavailable"}
    assert running.app.done == []
    assert running.pull().status_code == 200


def test_a_proxys_error_is_html_and_a_body_is_sent_as_given(serve: Serve) -> None:
    running = serve(
        "- {call: 1, do: {status: 502, html: true}}\n"
        "- {call: 2, do: {status: 500, body: text}}\n"
        "- {call: 3, do: {status: 599, body: '{}'}}\n"
        "- {call: 4, do: {status: 204}}"
    )
    page = running.get("/api/tags")
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
    assert "<title>502 Bad Gateway</title>" in page.text
    assert running.get("/api/tags").text == "text"
    assert running.get("/api/tags").json() == {}
    assert running.get("/api/tags").content == b""


def test_latency_comes_before_the_call_is_served(serve: Serve) -> None:
    running = serve("- do: {latency: 120ms}")
    assert running.get("/api/tags").status_code == 200
    assert sum(running.waits) == pytest.approx(0.12)


def test_bandwidth_limits_the_bytes_of_upload_and_answer(serve: Serve) -> None:
    running = serve("- do: {bandwidth: 100B/s}")
    assert running.call("POST", f"/api/blobs/{DIGEST}", data=b"x" * 200).status_code == 201
    assert sum(running.waits) == pytest.approx(2)
    answer = running.get("/api/tags")
    assert answer.json() == {"models": ["m"]}
    assert sum(running.waits) == pytest.approx(2 + len(answer.content) / 100)


@pytest.mark.parametrize(("when", "carried_out"), [("before", False), ("after", True)])
def test_a_reset_before_or_after_gives_no_answer(serve: Serve, when: str, carried_out: bool) -> None:
    running = serve(f"- {{call: 1, do: {{reset: {when}}}}}")
    with pytest.raises(requests.ConnectionError):
        running.pull()
    assert bool(running.app.done) is carried_out
    assert running.pull().status_code == 200


def test_a_reset_during_comes_after_the_first_line(serve: Serve) -> None:
    running = serve("- do: {reset: during}")
    with running.connection() as peer:
        received = _conversation(peer, "POST", "/api/pull", b'{"model": "m"}')
    assert received.reset
    assert LINES[0] in received.data
    assert LINES[1] not in received.data


def test_a_reset_during_an_answer_of_one_line_leaves_half_of_it(serve: Serve) -> None:
    running = serve("- do: {reset: during}")
    with running.connection() as peer:
        received = _conversation(peer, "GET", "/api/tags")
    assert received.reset
    assert b'{"models' in received.data
    assert b'["m"]}' not in received.data


@dataclass
class Received:
    data: bytes = b""
    reset: bool = False


def _conversation(peer: socket.socket, method: str, path: str, body: bytes = b"") -> Received:
    """All that comes back for one request, and whether a reset ended it."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    peer.sendall(head.encode() + body)
    received = Received()
    try:
        while data := peer.recv(65536):
            received.data += data
    except ConnectionResetError:
        received.reset = True
    return received


@pytest.mark.parametrize(
    ("cut", "content", "carried_out"),
    [
        ("looks-complete", b"".join(LINES[:-1]), True),
        ("mid-line", b"".join(LINES[:-1]) + LINES[-1][: len(LINES[-1]) // 2], True),
        ("2", b"".join(LINES[:2]), False),
        ("0 lines", b"", False),
        ("9", b"".join(LINES), True),
    ],
)
def test_a_cut_answer_ends_cleanly(serve: Serve, cut: str, content: bytes, carried_out: bool) -> None:
    running = serve(f"- do: {{cut: {cut}}}")
    with running.connection() as peer:
        received = _conversation(peer, "POST", "/api/pull", b'{"model": "m"}')
    assert not received.reset
    assert received.data.endswith(b"0\r\n\r\n")
    assert running.pull().content == content
    assert bool(running.app.done) is carried_out


def test_truncated_json_is_half_of_the_document(serve: Serve) -> None:
    running = serve("- do: {truncate_json: true}")
    whole = json.dumps({"models": ["m"]}).encode()
    answer = running.get("/api/tags")
    assert (answer.status_code, answer.content) == (200, whole[: len(whole) // 2])


def test_an_error_that_success_follows_does_nothing(serve: Serve) -> None:
    running = serve("- do: {error_then_success: boom}")
    assert running.pull().content == b'{"error": "boom"}\n{"status": "success"}\n'
    whole = running.call("POST", "/api/create", json={"model": "m", "stream": False})
    assert (whole.status_code, whole.json()) == (500, {"error": "boom"})
    assert running.app.done == []


def test_a_stall_goes_on_after_its_time(serve: Serve) -> None:
    running = serve("- do: {stall: {for: 180ms}}")
    assert running.pull().content == b"".join(LINES)
    assert sum(running.waits) == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("stall", "place"), [("with_progress: true", 1), ("with_progress: true, after: 3", 2)]
)
def test_a_stall_with_progress_repeats_a_line(serve: Serve, stall: str, place: int) -> None:
    running = serve(f"- do: {{stall: {{{stall}, for: 200ms}}}}")
    content = running.pull().content
    repeated = LINES[place]
    assert content == b"".join([*LINES[: place + 1], repeated * 4, *LINES[place + 1 :]])


def test_an_answer_of_one_line_stalls_before_it(serve: Serve) -> None:
    running = serve("- do: {stall: {for: 100ms, with_progress: true}}")
    assert running.get("/api/tags").json() == {"models": ["m"]}
    assert sum(running.waits) == pytest.approx(0.1)


def test_an_endless_stall_ends_when_the_client_goes(serve: Serve) -> None:
    running = serve("- do: {stall: true}", sleep=asyncio.sleep)
    with running.connection() as peer:
        body = b'{"model": "m"}'
        peer.sendall(
            f"POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        received = b""
        while LINES[0] not in received:
            received += peer.recv(65536)
        assert not running.ended.acquire(blocking=False)
    assert running.ended.acquire(timeout=PATIENCE_S)


@pytest.mark.parametrize("do", ["stall: {with_progress: true}", "latency: 10m"])
def test_waiting_ends_when_the_server_stops(serve: Serve, do: str) -> None:
    running = serve(f"- do: {{{do}}}", sleep=asyncio.sleep)
    with running.connection() as peer:
        body = b'{"model": "m"}'
        peer.sendall(
            f"POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert running.begun.acquire(timeout=PATIENCE_S)
        running.server.stop()
        with suppress(ConnectionResetError):
            while peer.recv(65536):
                pass
        assert running.ended.acquire(timeout=PATIENCE_S)


def test_refused_connections_are_refused_until_the_time_is_over(serve: Serve) -> None:
    over = threading.Event()

    async def sleep(_: float) -> None:
        await asyncio.to_thread(over.wait, PATIENCE_S)

    running = serve("- {call: 2, do: {refuse: 5s}}", sleep=sleep)
    with running.connection() as idle:
        assert running.get("/api/tags").status_code == 200
        with pytest.raises(requests.ConnectionError):
            running.get("/api/tags")
        with pytest.raises(ConnectionRefusedError), running.connection():
            pass
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
    over.set()
    assert _first_answer(running).json() == {"models": ["m"]}


def _first_answer(running: Running) -> requests.Response:
    """Ask until the server is back."""
    for _ in range(10_000):
        with suppress(requests.ConnectionError):
            return running.get("/api/tags")
    raise AssertionError("the server did not come back")


def test_a_server_that_stops_while_it_refuses_stays_away(serve: Serve) -> None:
    over = threading.Event()

    async def sleep(_: float) -> None:
        await asyncio.to_thread(over.wait, PATIENCE_S)

    running = serve("- do: {refuse: true}", sleep=sleep)
    with pytest.raises(requests.ConnectionError):
        running.get("/api/tags")
    running.server.stop()
    over.set()
    with pytest.raises(requests.ConnectionError):
        _ = [running.get("/api/tags") for _ in range(3)]


@asynccontextmanager
async def a_listening_server(store: Path) -> AsyncIterator[uvicorn.Server]:
    """uvicorn in the running loop; what still listens at the end is a leak, which pytest makes an error."""
    config = uvicorn.Config(
        TinyServer(Store(store)), port=0, http=FaultProtocol, lifespan="off", log_config=None
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    yield server
    server.should_exit = True
    await server.shutdown()


async def _until(event: asyncio.Event, _: float) -> None:
    await event.wait()


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("last", [0, 1])
def test_the_gate_opens_when_the_last_of_two_refusals_is_over(last: int, tmp_path: Path) -> None:
    async def steps() -> list[bool]:
        async with a_listening_server(tmp_path) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            gate = ListenerGate(server)
            ends = [asyncio.Event(), asyncio.Event()]
            refusals = [asyncio.create_task(gate.refuse(1, partial(_until, end))) for end in ends]
            await asyncio.sleep(0)
            seen = [_is_refused(port)]
            for number in (1 - last, last):
                ends[number].set()
                await refusals[number]
                seen.append(_is_refused(port))
        return [*seen, _is_refused(port)]

    assert asyncio.run(steps()) == [True, True, False, True]


@pytest.mark.parametrize("turns", range(6))
def test_a_server_that_stops_while_the_gate_opens_stops_listening(turns: int, tmp_path: Path) -> None:
    async def steps() -> bool:
        async with a_listening_server(tmp_path) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            over = asyncio.Event()
            refusal = asyncio.create_task(ListenerGate(server).refuse(1, partial(_until, over)))
            await asyncio.sleep(0)
            over.set()
            for _ in range(turns):
                await asyncio.sleep(0)
        refusal.cancel()
        await asyncio.wait([refusal])
        return _is_refused(port)

    assert asyncio.run(steps())


def test_a_full_disk_fails_what_is_written_during_the_call(serve: Serve) -> None:
    running = serve("- {on: {endpoint: blobs, method: POST}, call: 1, do: {disk_full: true}}")
    answer = running.call("POST", f"/api/blobs/{DIGEST}", data=BLOB)
    assert answer.status_code == 500
    assert "no space left on device" in answer.json()["error"]
    assert running.call("POST", f"/api/blobs/{DIGEST}", data=BLOB).status_code == 201


def test_a_blob_vanishes_between_head_and_create(serve: Serve) -> None:
    running = serve("- {on: {endpoint: blobs, method: HEAD}, call: 1, do: {vanish_blob: true}}")
    digest, _ = running.app.store.add_blob(BLOB)
    assert running.call("HEAD", f"/api/blobs/{digest}").status_code == 200
    assert running.call("HEAD", f"/api/blobs/{digest}").status_code == 404


def test_blobs_that_a_create_names_vanish_before_it(serve: Serve) -> None:
    running = serve("- {on: {endpoint: create}, do: {vanish_blob: true}}")
    digest, _ = running.app.store.add_blob(BLOB)
    running.call("POST", "/api/create", json={"model": "m", "files": {"m.gguf": digest}})
    assert not running.app.store.has_blob(digest)
    assert running.app.done == ["POST /api/create"]


def test_another_client_deletes_a_model_before_the_answer_ends(serve: Serve) -> None:
    running = serve("- {on: {endpoint: tags}, call: 2, do: {change_model: {model: m, delete: true}}}")
    assert [running.get("/api/tags").json()["models"] for _ in range(3)] == [["m"], ["m"], []]


def test_a_restart_forgets_loaded_models_prunes_and_drops_connections(serve: Serve) -> None:
    running = serve("- {on: {endpoint: blobs, method: POST}, do: {restart: {prune: true}}}")
    with running.connection() as other:
        assert running.get("/api/tags").status_code == 200
        digest, _ = running.app.store.add_blob(BLOB)
        assert running.call("POST", f"/api/blobs/{digest}", data=BLOB).status_code == 201
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    assert running.forgotten == ["all"]
    assert running.call("HEAD", f"/api/blobs/{digest}").status_code == 404


def test_a_restart_before_a_call_loses_the_answer_and_keeps_blobs(serve: Serve) -> None:
    running = serve("- {call: 1, do: {restart: {when: before}}}")
    digest, _ = running.app.store.add_blob(BLOB)
    with pytest.raises(requests.ConnectionError):
        running.pull()
    assert (running.app.done, running.forgotten) == ([], ["all"])
    assert running.call("HEAD", f"/api/blobs/{digest}").status_code == 200


def test_a_call_without_a_readable_body_names_no_model(serve: Serve) -> None:
    running = serve("- {on: {model: m}, do: {status: 418}}\n- {on: {endpoint: root}, do: {status: 419}}")
    assert running.call("POST", "/api/push", json={"NAME": "m"}).status_code == 418
    assert running.get("/").status_code == 419
    assert running.call("POST", "/api/pull", data=b"not json").status_code == 200
    assert running.call("POST", "/api/pull", data=b"[]").status_code == 200


def test_other_protocols_pass_and_resets_need_the_fault_protocol(tmp_path: Path) -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    async def unused() -> Message:
        return {"type": "http.disconnect"}

    async def ignore(_: Message) -> None: ...

    injector = FaultInjector(app, parse_faults("- do: {refuse: true}"), Store(tmp_path))
    asyncio.run(injector({"type": "lifespan"}, unused, ignore))
    assert passed == ["lifespan"]
    with pytest.raises(RuntimeError, match="attach"):
        asyncio.run(injector({"type": "http", "path": "/", "method": "GET"}, unused, ignore))
    with pytest.raises(RuntimeError, match="FaultProtocol"):
        transport_of({})


# --- around the sandbox itself --------------------------------------------------------------------------------------


class Client:
    """A client of a sandbox that takes what it gets."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.is_old = sandbox.version == "0.3.4"

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            ask = cast(Callable[..., requests.Response], session.request)
            return ask(method, self.sandbox.url + path, timeout=PATIENCE_S, **options)

    def upload(self) -> str:
        digest = f"sha256:{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}"
        self.call("POST", f"/api/blobs/{digest}", data=WEIGHTS.read_bytes()).raise_for_status()
        return digest

    def create(self, digest: str, name: str = "m", **further: object) -> requests.Response:
        new = {"model": name, "files": {"m.gguf": digest}}
        old = {"name": name, "modelfile": f"FROM @{digest}\n"}
        return self.call("POST", "/api/create", json={**(old if self.is_old else new), **further})

    def names(self) -> list[str]:
        return [model["name"] for model in self.call("GET", "/api/tags").json()["models"]]

    def system(self) -> str | None:
        answer = self.call("POST", "/api/show", json={"model": "m"}).json()
        return cast("str | None", answer.get("system"))


@contextmanager
def a_client(script: str, version: str = "0.33.0-rc2") -> Iterator[Client]:
    with Sandbox(as_version=version, faults=with_faults(parse_faults(script))) as sandbox:
        yield Client(sandbox)


VERSIONS = pytest.mark.parametrize("version", ["0.3.4", "0.6.8", "0.33.0-rc2"])


@VERSIONS
def test_a_create_fails_without_its_blob_and_works_with_it(version: str) -> None:
    with a_client(
        "- {on: {endpoint: blobs, method: HEAD}, call: 1, do: {vanish_blob: true}}", version
    ) as client:
        digest = client.upload()
        assert client.call("HEAD", f"/api/blobs/{digest}").status_code == 200
        assert '"error"' in client.create(digest).text
        assert client.names() == []
        assert '"error"' not in client.create(client.upload()).text
        assert client.names() == ["m:latest"]


@VERSIONS
def test_a_full_disk_is_reported_in_the_servers_words_and_keeps_the_old_model(version: str) -> None:
    with a_client("- {on: {endpoint: create}, call: 2, do: {disk_full: true}}", version) as client:
        digest = client.upload()
        assert '"error"' not in client.create(digest).text
        further = {"modelfile": f"FROM @{digest}\nSYSTEM hi"} if client.is_old else {"system": "hi"}
        assert "no space left on device" in client.create(digest, **further).text
        assert client.system() in (None, "")
        assert '"error"' not in client.create(digest, **further).text
        assert client.system() == "hi"


@VERSIONS
def test_another_client_changes_a_model_after_the_first_show(version: str) -> None:
    change = "{model: m, system: Be rude., template: '{{ .Prompt }}!', parameters: {top_k: 3}}"
    with a_client(
        f"- {{on: {{endpoint: show}}, call: 1, do: {{change_model: {change}}}}}", version
    ) as client:
        client.create(client.upload())
        assert client.system() in (None, "")
        shown = client.call("POST", "/api/show", json={"model": "m"}).json()
    assert (shown["system"], shown["template"]) == ("Be rude.", "{{ .Prompt }}!")
    assert shown["parameters"].split() == ["top_k", "3"]


@VERSIONS
def test_a_change_that_the_server_refuses_fails_the_call(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    for change in (
        "{model: m, copy_from: ghost}",
        "{model: 'm m', system: x}",
        "{model: ghost, delete: true}",
    ):
        with a_client(f"- do: {{change_model: {change}}}", version) as client:
            assert client.call("GET", "/api/tags").status_code == 500
    assert caplog.text.count("could not be changed") >= 3


def test_another_client_deletes_or_replaces_a_model() -> None:
    script = (
        "- {on: {endpoint: tags}, call: 1, do: {change_model: {model: n, copy_from: m}}}\n"
        "- {on: {endpoint: tags}, call: 2, do: {change_model: {model: m, delete: true}}}"
    )
    with a_client(script) as client:
        client.create(client.upload())
        looks = [sorted(client.names()) for _ in range(3)]
    assert looks == [["m:latest"], ["m:latest", "n:latest"], ["n:latest"]]


@VERSIONS
def test_a_restart_that_prunes_takes_the_upload_and_the_loaded_models(version: str) -> None:
    script = "- {on: {endpoint: blobs, method: POST}, call: 2, do: {restart: {prune: true}}}"
    with a_client(script, version) as client:
        digest = client.upload()
        client.create(digest)
        client.call("POST", "/api/generate", json={"model": "m"}).raise_for_status()
        assert len(client.call("GET", "/api/ps").json()["models"]) == 1
        other = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
        assert client.call("POST", f"/api/blobs/{other}", data=BLOB).status_code == 201
        assert client.call("HEAD", f"/api/blobs/{other}").status_code == 404
        assert client.call("GET", "/api/ps").json() == {"models": []}
        assert client.names() == ["m:latest"]


def test_an_answer_without_lines_can_be_cut_and_stalled(serve: Serve) -> None:
    running = serve(
        "- {call: 1, do: {cut: looks-complete}}\n- {call: 2, do: {stall: {for: 50ms, with_progress: true}}}"
    )
    answers = [running.call("POST", "/api/create", json={"model": "m"}).content for _ in range(2)]
    assert answers == [b"", b""]


@pytest.mark.parametrize("cut", ["looks-complete", "1"])
def test_a_create_whose_answer_is_cut_is_carried_out_or_abandoned(cut: str) -> None:
    with a_client(f"- {{on: {{endpoint: create}}, call: 1, do: {{cut: {cut}}}}}") as client:
        digest = client.upload()
        assert "success" not in client.create(digest).text
        if cut == "looks-complete":
            assert client.names() == ["m:latest"]
        assert "success" in client.create(digest).text


def test_a_refusing_sandbox_comes_back_at_its_address() -> None:
    with a_client("- {on: {endpoint: tags}, call: 1, do: {refuse: 50ms}}") as client:
        with pytest.raises(requests.ConnectionError):
            client.names()
        for _ in range(100_000):
            with suppress(requests.ConnectionError):
                assert client.names() == []
                break
        else:
            raise AssertionError("the sandbox did not come back")


@pytest.mark.parametrize("do", ["stall: {with_progress: true}", "stall: true", "latency: 10m"])
def test_a_sandbox_stops_in_the_middle_of_a_stall_and_logs_no_error(
    do: str, caplog: pytest.LogCaptureFixture
) -> None:
    with a_client(f"- {{on: {{endpoint: pull}}, do: {{{do}}}}}") as client, ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(client.sandbox.address, timeout=PATIENCE_S))
        body = b'{"model": "llama3.2:1b"}'
        peer.sendall(b"POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if "stall" in do:
            assert peer.recv(65536).startswith(b"HTTP/1.1 200")
        else:
            assert client.call("GET", "/api/version").status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
