"""How requests travel: in blocks, at once, within limits, cancellable, and every failure one of ours."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import inspect
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests.exceptions
import urllib3.exceptions
from certificates import Pki
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from scripted_host import (
    Asked,
    Script,
    ScriptedHost,
    Wire,
    always,
    free_port,
    full_listener,
    reply,
    routes,
    silent,
)

from ollamaops.errors import (
    AccessDenied,
    Cancelled,
    ConnectError,
    ConnectionLost,
    CutStream,
    InvalidValue,
    NotFound,
    OllamaopsError,
    ProtocolError,
    RemoteError,
    ServerFault,
    TimeoutExceeded,
    TlsError,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import Credentials, TimeLimits, TlsFiles
from ollamaops.http.transport_errors import FAILURES, build_transport_error, find_row
from ollamaops.ollama import transport as transport_module
from ollamaops.ollama.transport import Transport


def connected(host: ScriptedHost, **options: object) -> Transport:
    limits = options.pop("limits", TimeLimits(connect_s=PATIENCE_S, idle_s=PATIENCE_S))
    return Transport("gpu-1", host.url, limits=limits, **options)  # type: ignore[arg-type]


def lines_of(host: ScriptedHost, **options: object) -> list[object]:
    with connected(host) as transport, transport.stream("GET", "/s", **options) as stream:  # type: ignore[arg-type]
        return list(stream)


# requests and answers


def test_a_json_answer_is_parsed_and_its_head_is_kept() -> None:
    with ScriptedHost(always({"a": 1}, 201, X_Thing="t")) as host, connected(host) as transport:
        answer = transport.request("POST", "/api/x?y=1", body={"b": "ü\ud800"})
    assert (answer.status, answer.json, answer.headers["x-thing"]) == (201, {"a": 1}, "t")
    asked = host.asked[0]
    assert (asked.method, asked.path, asked.json) == ("POST", "/api/x?y=1", {"b": "ü\ud800"})
    assert asked.headers["Content-Type"] == "application/json"


def test_what_is_sent_names_us_and_neither_origin_nor_cookies() -> None:
    script = always({}, Set_Cookie="a=b")
    with ScriptedHost(script) as host, connected(host) as transport:
        transport.request("GET", "/1")
        transport.request("GET", "/2")
    second = host.asked[1].headers
    assert second["User-Agent"].startswith("ollamaops/")
    assert second["Accept-Encoding"] == "identity"
    assert not {"Origin", "Cookie", "Authorization", "Content-Type"} & set(second)


def test_connections_are_used_again_and_requests_counted() -> None:
    with ScriptedHost(always({})) as host, connected(host) as transport:
        for _ in range(3):
            transport.request("GET", "/")
        assert transport.requests_sent == 3
    assert host.connections == 1


def test_a_path_prefix_of_the_url_is_kept() -> None:
    with ScriptedHost(always({})) as host, Transport("gpu-1", host.url + "/ollama/") as transport:
        transport.request("GET", "/api/tags")
    assert host.paths() == ["GET /ollama/api/tags"]


def test_an_empty_answer_and_one_that_is_no_json_have_no_json() -> None:
    script = routes({"/0": reply(200), "/1": reply(200, b"Ollama is running")})
    with ScriptedHost(script) as host, connected(host) as transport:
        assert transport.request("GET", "/0").json is None
        assert transport.request("HEAD", "/0").text == ""
        answer = transport.request("GET", "/1")
    assert (answer.json, answer.text) == (None, "Ollama is running")


def test_a_compressed_answer_is_unpacked() -> None:
    script = reply(200, gzip.compress(b'{"a":1}'), Content_Encoding="gzip")
    with ScriptedHost(script) as host, connected(host) as transport:
        assert transport.request("GET", "/").json == {"a": 1}


def test_a_web_page_under_200_is_no_answer() -> None:
    script = reply(200, b"<html><title>Sign in</title>", "text/html")
    with (
        ScriptedHost(script) as host,
        connected(host) as transport,
        pytest.raises(ProtocolError, match=r"^gpu-1: list models: Sign in \(a web page, not from Ollama\)$"),
    ):
        transport.request("GET", "/api/tags", what="list models")


def test_an_error_answer_becomes_an_error_and_the_connection_stays_usable() -> None:
    script = routes({"/x": always({"error": "gone"}, 404), "/y": always({})})
    with ScriptedHost(script) as host, connected(host) as transport:
        with pytest.raises(NotFound, match=r"^gpu-1: GET /x: gone$"):
            transport.request("GET", "/x")
        transport.request("GET", "/y")
    assert host.connections == 1


def test_an_error_answer_that_breaks_off_still_says_its_status() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.head(503, Content_Length="100", Retry_After="3")
        wire.send(b'{"err')
        wire.close()

    with (
        ScriptedHost(script) as host,
        connected(host) as transport,
        pytest.raises(ServerFault) as caught,
    ):
        transport.request("GET", "/")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 3)


def test_an_endless_error_answer_is_not_read_to_its_end() -> None:
    sent = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin("text/html", 502)
        try:
            while True:
                wire.chunk(b"<html>" + b"x" * 60_000)
        finally:
            sent.set()

    with (
        ScriptedHost(script) as host,
        connected(host) as transport,
        pytest.raises(ServerFault),
    ):
        transport.request("GET", "/")
    assert sent.wait(PATIENCE_S)


def test_an_endless_answer_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 100_000)

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        while True:
            wire.chunk(b"[" * 60_000)

    with (
        ScriptedHost(script) as host,
        connected(host) as transport,
        pytest.raises(ProtocolError, match="longer than 100000 bytes"),
    ):
        transport.request("GET", "/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_secrets_stay_here(status: int) -> None:
    with ScriptedHost(always({})) as other:
        script = reply(status, Location=other.url + "/api/tags")
        with (
            ScriptedHost(script) as host,
            connected(host, auth=Credentials(bearer="s3cret")) as transport,
            pytest.raises(ProtocolError, match=f"HTTP {status}: redirected to '{other.url}/api/tags'"),
        ):
            transport.request("GET", "/api/tags")
    assert other.asked == []
    assert len(host.asked) == 1


# streams


def test_lines_are_delivered_as_they_come() -> None:
    """The server sends a line only after the one before was taken."""
    taken = threading.Semaphore(0)

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        for number in range(5):
            wire.line({"n": number})
            assert taken.acquire(timeout=PATIENCE_S)
        wire.end()

    seen = []
    with ScriptedHost(script) as host, connected(host) as transport, transport.stream("GET", "/") as stream:
        for line in stream:
            seen.append(line["n"])
            taken.release()
    assert seen == [0, 1, 2, 3, 4]


def test_lines_of_a_connection_that_ends_with_the_answer_are_delivered_as_they_come() -> None:
    """An old proxy sends neither a length nor chunks."""
    taken = threading.Semaphore(0)

    def script(asked: Asked, wire: Wire) -> None:
        wire.head(200, Connection="close")
        for number in range(3):
            wire.send(b'{"n": %d}\n' % number)
            assert taken.acquire(timeout=PATIENCE_S)
        wire.close()

    seen = []
    with ScriptedHost(script) as host, connected(host) as transport, transport.stream("GET", "/") as stream:
        for line in stream:
            seen.append(line["n"])
            taken.release()
    assert seen == [0, 1, 2]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=50) | st.integers(), max_size=3), max_size=5
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_lines_come_whole_however_they_are_cut_into_chunks(
    values: list[dict[str, str | int]], sizes: list[int]
) -> None:
    data = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        at, turn = 0, 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            wire.chunk(data[at : at + size])
            at, turn = at + size, turn + 1
        wire.end()

    with ScriptedHost(script) as host:
        assert lines_of(host) == values


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_whatever_end_in_anything_but_lines_or_an_error_of_ours(data: bytes, headed: bool) -> None:
    sent = CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if headed and data else data
    with ScriptedHost(cut_after(sent, Wire.close)) as host:
        with contextlib.suppress(OllamaopsError):
            assert all(isinstance(line, dict) for line in lines_of(host))
        with connected(host) as transport, contextlib.suppress(OllamaopsError):
            assert 200 <= transport.request("GET", "/").status < 300


def streamed(data: bytes, then: Callable[[Wire], None] = Wire.end) -> Script:
    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        if data:
            wire.chunk(data)
        then(wire)

    return script


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n \n", []),
        (b'{"a":1}', [{"a": 1}]),
        (b'{"a":1}\r\n{"b":2}\n', [{"a": 1}, {"b": 2}]),
        (b'{"a":1}\n\n{"b":2}', [{"a": 1}, {"b": 2}]),
    ],
)
def test_blank_lines_and_a_missing_last_newline_do_no_harm(data: bytes, lines: list[object]) -> None:
    with ScriptedHost(streamed(data)) as host:
        assert lines_of(host) == lines


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b'{"a":1}\n{"status":"succ', CutStream, "ends in the middle of line 2"),
        (b'{"a":1}\nnonsense\n', ProtocolError, "line 2 is not a JSON object: nonsense"),
        (b"[1]\n", ProtocolError, "line 1 is not a JSON object"),
        (b"null\n", ProtocolError, "line 1 is not a JSON object"),
        (b'"text"', ProtocolError, "line 1 is not a JSON object"),
        (b"\xff\xfe\n", ProtocolError, "line 1 is not a JSON object"),
        (b"[" * 100_000 + b"\n", ProtocolError, "line 1 is not a JSON object"),
        (b'{"a":' + b"9" * 5000 + b"}\n", ProtocolError, "line 1 is not a JSON object"),
        (b"<html><title>Login</title></html>", ProtocolError, "Login (a web page, not from Ollama)"),
    ],
)
def test_what_is_no_stream_of_objects_is_refused(data: bytes, error: type[ProtocolError], words: str) -> None:
    with ScriptedHost(streamed(data)) as host, pytest.raises(error) as caught:
        lines_of(host)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_an_endless_line_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_LINE_BYTES", 100_000)

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        while True:
            wire.chunk(b"x" * 10_000)

    with (
        ScriptedHost(script) as host,
        pytest.raises(ProtocolError, match="line 1 is longer than 100000 bytes"),
    ):
        lines_of(host)


def test_a_stream_that_is_refused_is_an_error_before_its_first_line() -> None:
    with (
        ScriptedHost(always({"error": "no"}, 401)) as host,
        connected(host) as transport,
        pytest.raises(AccessDenied),
        transport.stream("POST", "/"),
    ):
        pass


def test_a_stream_that_is_left_early_drops_its_connection() -> None:
    gone = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.line({})
        wire.sock.settimeout(PATIENCE_S)
        if wire.sock.recv(1) == b"":
            gone.set()
        wire.close()

    with ScriptedHost(script) as host, connected(host) as transport:
        with transport.stream("GET", "/") as stream:
            next(iter(stream))
        assert gone.wait(PATIENCE_S)


# broken connections


def cut_after(data: bytes, how: Callable[[Wire], None]) -> Script:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(data)
        how(wire)

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"


@pytest.mark.parametrize("how", [Wire.close, Wire.reset])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        SIZED,
        SIZED + b'{"status":"success"}\n',
        CHUNKED,
        CHUNKED + b"15\r\n",
        CHUNKED + b'15\r\n{"status":',
        CHUNKED + b'15\r\n{"status":"success"}\n\r\n',
    ],
)
def test_a_connection_cut_anywhere_is_a_transient_error(data: bytes, how: Callable[[Wire], None]) -> None:
    """Even after a line that looks like the end: without the proper end of the answer nothing is over."""
    with ScriptedHost(cut_after(data, how)) as host:
        with pytest.raises(RemoteError) as caught:
            lines_of(host)
        with connected(host) as transport, pytest.raises(RemoteError) as again:
            transport.request("GET", "/")
    for error in (caught.value, again.value):
        assert error.transient or data == b"HTTP/1.1 2"
        assert error.host == "gpu-1"


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"HTTP/9.9 200 OK\r\n\r\n", b"\r\n\r\n"],
)
def test_another_protocol_is_told_so(data: bytes) -> None:
    with (
        ScriptedHost(cut_after(data, Wire.close)) as host,
        connected(host) as transport,
        pytest.raises(RemoteError) as caught,
    ):
        transport.request("GET", "/")
    assert type(caught.value) in (ProtocolError, ConnectionLost)
    assert "not HTTP" in str(caught.value) or "before an answer" in str(caught.value)


def test_a_chunk_with_a_nonsense_length_is_a_cut_connection() -> None:
    with ScriptedHost(cut_after(CHUNKED + b"zz\r\n", Wire.close)) as host, pytest.raises(ConnectionLost):
        lines_of(host)


def test_a_gzip_that_is_none_is_a_protocol_error() -> None:
    script = reply(200, b"{}", Content_Encoding="gzip")
    with ScriptedHost(script) as host, pytest.raises(ProtocolError, match="cannot be unpacked"):
        lines_of(host)


def test_bytes_after_the_end_do_not_reach_the_next_answer() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(
            b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"bad"'
        )

    with ScriptedHost(script) as host, connected(host) as transport:
        assert transport.request("GET", "/1").json == {}
        assert transport.request("GET", "/2").json == {}


def test_nobody_there_is_a_connect_error_with_the_way_out() -> None:
    port = free_port()
    with Transport("gpu-1", f"http://127.0.0.1:{port}") as transport, pytest.raises(ConnectError) as caught:
        transport.request("GET", "/api/tags", what="list models")
    assert str(caught.value) == f"gpu-1: list models: connection refused (127.0.0.1:{port})"
    assert "OLLAMA_HOST" in (caught.value.hint or "")


def test_an_unknown_name_is_a_connect_error() -> None:
    with (
        Transport("gpu-1", "http://no-such-host.invalid:1") as transport,
        pytest.raises(ConnectError) as caught,
    ):
        transport.request("GET", "/")
    assert str(caught.value) == "gpu-1: GET /: the name of the host is not known (no-such-host.invalid:1)"


def test_a_name_that_cannot_be_one_is_an_invalid_value() -> None:
    with Transport("gpu-1", f"http://{'x' * 64}.example") as transport, pytest.raises(InvalidValue):
        transport.request("GET", "/")


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is often ::1 first, where an Ollama bound to 127.0.0.1 does not listen."""
    real = socket.getaddrinfo

    def both(host: str, port: int, *args: object, **kinds: object) -> list[object]:
        refused = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))
        return [refused, *real("127.0.0.1", port, type=socket.SOCK_STREAM)]

    with ScriptedHost(always({})) as host, Transport("gpu-1", host.url) as transport:
        monkeypatch.setattr(socket, "getaddrinfo", both)
        assert transport.request("GET", "/").status == 200


# limits of time


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def half_silent(asked: Asked, wire: Wire) -> None:
    wire.begin()
    wire.line({"n": 1})
    silent(asked, wire)


def test_silence_ends_in_a_timeout() -> None:
    with (
        ScriptedHost(silent) as host,
        connected(host) as transport,
        pytest.raises(TimeoutExceeded, match=r"^gpu-1: GET /: nothing moved for 0\.1s$"),
    ):
        transport.request("GET", "/", idle_s=0.1)


def test_silence_in_the_middle_ends_in_a_timeout() -> None:
    with ScriptedHost(half_silent) as host, pytest.raises(TimeoutExceeded, match=r"nothing moved for 0\.1s"):
        lines_of(host, idle_s=0.1)


def test_more_silence_can_be_allowed_on_the_way() -> None:
    with (
        ScriptedHost(half_silent) as host,
        connected(host) as transport,
        transport.stream("GET", "/", idle_s=PATIENCE_S) as stream,
    ):
        lines = iter(stream)
        next(lines)
        stream.allow_silence(0.1)
        with pytest.raises(TimeoutExceeded, match=r"nothing moved for 0\.1s"):
            next(lines)


def test_the_whole_is_bounded_whatever_keeps_coming() -> None:
    clock = Clock()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        while True:
            wire.line({})

    with (
        ScriptedHost(script) as host,
        connected(host, clock=clock) as transport,
        transport.stream("GET", "/", deadline_s=60) as stream,
    ):
        lines = iter(stream)
        next(lines)
        clock.now += 61
        with pytest.raises(TimeoutExceeded, match=r"^gpu-1: GET /: not done within 1m00s$"):
            list(lines)


def test_the_end_of_the_whole_cuts_the_silence_short() -> None:
    with ScriptedHost(silent) as host, connected(host) as transport, pytest.raises(TimeoutExceeded):
        transport.request("GET", "/", idle_s=PATIENCE_S, deadline_s=0.1)


def test_a_host_may_have_a_limit_for_every_whole() -> None:
    limits = TimeLimits(idle_s=PATIENCE_S, overall_s=0.1)
    with ScriptedHost(silent) as host, connected(host, limits=limits) as transport:
        with pytest.raises(TimeoutExceeded, match=r"not done within 0\.1s$"):
            transport.request("GET", "/")
        with pytest.raises(TimeoutExceeded, match=r"not done within 0\.2s$"):
            transport.request("GET", "/", deadline_s=0.2)


def test_a_connection_that_never_comes_is_no_connection_and_no_silence() -> None:
    with (
        full_listener() as port,
        Transport("gpu-1", f"http://127.0.0.1:{port}", limits=TimeLimits(connect_s=0.1)) as transport,
        pytest.raises(ConnectError) as caught,
    ):
        transport.request("GET", "/")
    assert str(caught.value) == f"gpu-1: GET /: no connection within 0.1s (127.0.0.1:{port})"


# cancelling


def cancelled_while(
    transport: Transport, action: Callable[[], object], ready: Callable[[], object]
) -> Cancelled:
    """What `action` raises when another thread cancels the transport as soon as `ready` returns."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  handed to the test's thread
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    ready()
    transport.cancel.cancel()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert isinstance(caught[0], Cancelled), caught
    return caught[0]


def told(script: Script) -> tuple[Script, threading.Event]:
    """The script, and an event that is set when a request has come in."""
    came = threading.Event()

    def wrapped(asked: Asked, wire: Wire) -> None:
        came.set()
        script(asked, wire)

    return wrapped, came


def test_cancelling_ends_a_stream_between_lines() -> None:
    script, came = told(half_silent)

    def follow() -> None:
        with transport.stream("GET", "/") as stream:
            list(stream)

    with ScriptedHost(script) as host, connected(host) as transport:
        cancelled_while(transport, follow, came.wait)


def test_cancelling_ends_a_stream_without_length_too() -> None:
    """There the cut looks like the proper end of the answer."""

    def script(asked: Asked, wire: Wire) -> None:
        wire.head(200, Connection="close")
        wire.send(b'{"status":"success"}\n')
        came.set()
        silent(asked, wire)

    came = threading.Event()

    def follow() -> None:
        with transport.stream("GET", "/") as stream:
            list(stream)

    with ScriptedHost(script) as host, connected(host) as transport:
        cancelled_while(transport, follow, came.wait)


def test_cancelling_ends_the_wait_for_a_connection() -> None:
    waiting = threading.Event()

    with full_listener() as port, Transport("gpu-1", f"http://127.0.0.1:{port}") as transport:

        def ask() -> None:
            waiting.set()
            transport.request("GET", "/")

        cancelled_while(transport, ask, waiting.wait)


class EndlessUpload:
    """A body that never ends and tells when it is being read."""

    def __init__(self) -> None:
        self.blocks = threading.Semaphore(0)

    def __len__(self) -> int:
        return 1 << 40

    def read(self, size: int = -1, /) -> bytes:
        self.blocks.release()
        return b"x" * size


def test_cancelling_ends_an_upload_that_the_server_does_not_read() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        stop.wait(PATIENCE_S)
        wire.close()

    stop = threading.Event()
    body = EndlessUpload()
    with ScriptedHost(script, reads_body=False) as host, connected(host) as transport:
        cancelled_while(transport, lambda: transport.request("POST", "/", upload=body), body.blocks.acquire)
        stop.set()


def test_a_token_that_is_set_already_sends_nothing() -> None:
    with ScriptedHost(always({})) as host, connected(host) as transport:
        transport.cancel.cancel()
        with pytest.raises(Cancelled):
            transport.request("GET", "/")
        with pytest.raises(Cancelled), transport.stream("GET", "/"):
            pass
    assert host.asked == []


def test_a_token_that_is_set_later_does_not_touch_finished_requests() -> None:
    with ScriptedHost(always({})) as host, connected(host) as transport:
        transport.request("GET", "/")
        transport.cancel.cancel()
        assert transport.without_cancel().request("GET", "/").status == 200
    assert host.connections == 1


def test_a_token_is_asked_and_waited_for() -> None:
    token = CancelToken()
    assert not token.is_set()
    assert not token.wait(0)
    token.check()
    told: list[str] = []
    with token.calling(lambda: told.append("first")):
        token.cancel()
        with token.calling(lambda: told.append("late")):
            pass
    token.cancel()
    assert told == ["first", "late"]
    assert token.wait(0)
    with pytest.raises(Cancelled, match=r"^stopped by test$"):
        token.check("stopped by test")


# who we are, and whom we trust


def test_credentials_go_with_every_request() -> None:
    for auth, header in (
        (Credentials(bearer="t0ken"), "Bearer t0ken"),
        (Credentials(basic=("öps", "p:w")), "Basic w7ZwczpwOnc="),
        (Credentials(), None),
    ):
        with ScriptedHost(always({})) as host, connected(host, auth=auth) as transport:
            transport.request("GET", "/")
            with transport.stream("GET", "/") as stream:
                list(stream)
        assert [asked.headers.get("Authorization") for asked in host.asked] == [header, header]


def test_user_and_password_in_the_url_are_basic_auth_and_go_nowhere_else() -> None:
    with ScriptedHost(always({"error": "x"}, 500)) as host:
        transport = Transport("gpu-1", host.url.replace("//", "//me:p%40ss@"))
        with transport, pytest.raises(ServerFault) as caught:
            transport.request("GET", "/")
    assert host.asked[0].headers["Authorization"] == "Basic bWU6cEBzcw=="
    assert "p@ss" not in str(caught.value) + repr(transport) + transport.url
    assert transport.address == f"127.0.0.1:{host.port}"


def test_headers_of_the_manifest_are_sent_and_auth_wins() -> None:
    headers = {"X-Team": "ml", "authorization": "Basic old", "User-Agent": "me"}
    with (
        ScriptedHost(always({})) as host,
        connected(host, headers=headers, auth=Credentials(bearer="new")) as transport,
    ):
        transport.request("GET", "/")
    sent = host.asked[0].headers
    assert (sent["X-Team"], sent["Authorization"], sent["User-Agent"]) == ("ml", "Bearer new", "me")


@pytest.mark.parametrize("secret", ["s3cret\nline", "s3cret\rx", "s3cret日本", "s3cret\x00", "s3cret "])
def test_a_secret_that_http_cannot_carry_is_refused_without_being_shown(secret: str) -> None:
    for auth, headers in ((Credentials(bearer=secret), {}), (None, {"X-Key": secret})):
        with pytest.raises(InvalidValue) as caught:
            Transport("gpu-1", "http://localhost", auth=auth, headers=headers)
        assert "s3cret" not in str(caught.value) + str(caught.value.hint)


def test_a_name_of_a_header_that_http_cannot_carry_is_refused() -> None:
    with pytest.raises(
        InvalidValue, match=r"^gpu-1: the header 'X Key' has characters that HTTP cannot carry$"
    ):
        Transport("gpu-1", "http://localhost", headers={"X Key": "x"})


def test_no_secret_is_in_any_repr() -> None:
    auth = Credentials(bearer="s3cret")
    transport = Transport("gpu-1", "http://localhost:11434", auth=auth, headers={"X-Key": "s3cret"})
    assert "s3cret" not in repr(auth) + repr(Credentials(basic=("u", "s3cret"))) + repr(transport)
    assert repr(Credentials()) == "Credentials(none)"
    transport.close()


@pytest.mark.parametrize(
    "url", ["localhost:11434", "ftp://x", "http://", "http://[::1", "http://x:99999", ""]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue, match=r"^gpu-1: the address of the host cannot be used$"):
        Transport("gpu-1", url)


# proxies


def proxied(asked: Asked, wire: Wire) -> None:
    """A proxy that answers everything by itself."""
    wire.json({"through": "proxy", "auth": asked.headers.get("Proxy-Authorization", "")})


def test_an_explicit_proxy_is_always_used() -> None:
    with ScriptedHost(proxied) as proxy:
        url = proxy.url.replace("//", "//me:pw@")
        with Transport("gpu-1", "http://127.0.0.1:9", proxy=url) as transport:
            answer = transport.request("GET", "/api/tags")
    assert answer.json == {"through": "proxy", "auth": "Basic bWU6cHc="}
    assert proxy.asked[0].path == "http://127.0.0.1:9/api/tags"


def test_a_proxy_of_the_environment_is_used_unless_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedHost(proxied) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "gpu-2.invalid")
        with Transport("gpu-1", "http://gpu-1.invalid") as transport:
            assert transport.request("GET", "/").status == 200
        with Transport("gpu-2", "http://gpu-2.invalid") as transport, pytest.raises(ConnectError):
            transport.request("GET", "/")
        with Transport("gpu-1", "http://gpu-1.invalid", proxy="") as transport, pytest.raises(ConnectError):
            transport.request("GET", "/")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.9.9.9"])
def test_a_proxy_of_the_environment_is_never_used_for_loopback(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedHost(always({"through": "nothing"})) as host:
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
        with Transport("gpu-1", f"http://{name}:{host.port}") as transport:
            if name != "127.9.9.9":
                assert transport.request("GET", "/").json == {"through": "nothing"}
            else:
                with pytest.raises(ConnectError, match="connection refused"):
                    transport.request("GET", "/")


def test_a_proxy_that_refuses_is_named() -> None:
    refuse = reply(407, b"", "text/html")
    with (
        ScriptedHost(refuse) as proxy,
        Transport("gpu-1", "https://gpu-1.invalid", proxy=proxy.url) as transport,
        pytest.raises(ConnectError, match="the proxy does not let us through") as caught,
    ):
        transport.request("GET", "/")
    assert "NO_PROXY" in (caught.value.hint or "")


def test_a_proxy_that_is_not_there_is_a_connect_error() -> None:
    with (
        Transport("gpu-1", "http://gpu-1.invalid", proxy=f"http://127.0.0.1:{free_port()}") as transport,
        pytest.raises(ConnectError),
    ):
        transport.request("GET", "/")


@pytest.mark.parametrize("proxy", ["gopher://x:1", "socks5://127.0.0.1:1", "http://"])
def test_a_proxy_that_cannot_be_used_is_an_invalid_value(proxy: str) -> None:
    with Transport("gpu-1", "http://gpu-1.invalid", proxy=proxy) as transport, pytest.raises(InvalidValue):
        transport.request("GET", "/")


# TLS


def test_a_certificate_of_a_given_authority_is_accepted(pki: Pki) -> None:
    with (
        ScriptedHost(always({"a": 1}), tls=pki.server_context()) as host,
        connected(host, tls=TlsFiles(ca=str(pki.ca))) as transport,
    ):
        assert transport.request("GET", "/").json == {"a": 1}
        with transport.stream("GET", "/") as stream:
            assert list(stream) == [{"a": 1}]
    assert host.connections == 1


def test_a_certificate_of_an_unknown_authority_is_refused_with_the_way_out(pki: Pki) -> None:
    with ScriptedHost(always({}), tls=pki.server_context()) as host:
        for tls in (TlsFiles(), TlsFiles(ca=str(pki.other_ca))):
            with connected(host, tls=tls) as transport, pytest.raises(TlsError) as caught:
                transport.request("GET", "/")
            assert "the certificate is not accepted" in str(caught.value)
            assert "tls: {ca: FILE}" in (caught.value.hint or "")
            assert not caught.value.transient
    assert host.asked == []


def test_a_certificate_for_another_name_is_refused(pki: Pki) -> None:
    with ScriptedHost(always({}), tls=pki.server_context()) as host:
        url = f"https://localhost:{host.port}"
        with (
            Transport("gpu-1", url, tls=TlsFiles(ca=str(pki.ca))) as transport,
            pytest.raises(TlsError) as caught,
        ):
            transport.request("GET", "/")
    assert "localhost" in str(caught.value)


def test_a_file_of_tls_that_is_not_there_or_not_one_is_refused(pki: Pki, tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"^gpu-1: tls: no file '/no/such/file'$"):
        Transport("gpu-1", "https://localhost", tls=TlsFiles(ca="/no/such/file"))
    (tmp_path / "junk.pem").write_text("junk")
    junk = str(tmp_path / "junk.pem")
    for tls in (TlsFiles(ca=junk), TlsFiles(ca=str(pki.ca), cert=junk)):
        with pytest.raises(TlsError, match=f"'{junk}'"):
            Transport("gpu-1", "https://localhost", tls=tls)


def test_a_plain_server_is_told_from_a_tls_one() -> None:
    def answer_plainly() -> None:
        client = listener.accept()[0]
        client.recv(1)
        client.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_plainly)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Transport("gpu-1", url) as transport,
            pytest.raises(TlsError, match="wrong version number") as caught,
        ):
            transport.request("GET", "/")
        thread.join()
    assert "http://" in (caught.value.hint or "")


def test_cancelling_works_over_tls(pki: Pki) -> None:
    script, came = told(half_silent)

    def follow() -> None:
        with transport.stream("GET", "/") as stream:
            list(stream)

    with (
        ScriptedHost(script, tls=pki.server_context()) as host,
        connected(host, tls=TlsFiles(ca=str(pki.ca))) as transport,
    ):
        cancelled_while(transport, follow, came.wait)


# uploads


class Body:
    """An upload of known bytes that remembers how large the blocks were."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int = -1, /) -> bytes:
        self.sizes.append(size)
        block = self.data[self.at : self.at + size]
        self.at += len(block)
        return block


def test_an_upload_is_read_in_blocks_of_a_mebibyte_and_has_its_length() -> None:
    body = Body(bytes(range(256)) * 12_000)
    with ScriptedHost(always({}, 201)) as host, connected(host) as transport:
        assert transport.request("POST", "/api/blobs/x", upload=body).status == 201
    asked = host.asked[0]
    assert asked.body == body.data
    assert asked.headers["Content-Length"] == str(len(body))
    assert "Transfer-Encoding" not in asked.headers
    assert set(body.sizes) == {1 << 20}


def test_an_empty_upload_has_a_length_too() -> None:
    with ScriptedHost(always({}, 201)) as host, connected(host) as transport:
        transport.request("POST", "/", upload=Body(b""))
    assert host.asked[0].headers["Content-Length"] == "0"


def test_an_upload_through_a_proxy_keeps_its_blocks() -> None:
    body = Body(b"x" * 3_000_000)
    with (
        ScriptedHost(proxied) as proxy,
        Transport("gpu-1", "http://gpu-1.invalid", proxy=proxy.url) as transport,
    ):
        transport.request("POST", "/", upload=body)
    assert proxy.asked[0].body == body.data
    assert set(body.sizes) == {1 << 20}


# the boundary of errors


def foreign_exceptions() -> Iterator[type[Exception]]:
    """Every exception that requests, urllib3, http.client, ssl and the OS can raise."""
    for module, root in (
        (requests.exceptions, requests.exceptions.RequestException),
        (urllib3.exceptions, urllib3.exceptions.HTTPError),
        (http.client, http.client.HTTPException),
        (ssl, ssl.SSLError),
        (socket, OSError),
    ):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, root):
                yield found
    yield UnicodeError
    yield from OSError.__subclasses__()


def empty(kind: type[Exception]) -> Exception:
    """An exception of that kind, whatever its constructor wants."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    "kind", sorted(set(foreign_exceptions()), key=lambda kind: f"{kind.__module__}.{kind}")
)
def test_every_foreign_exception_has_its_row(kind: type[Exception]) -> None:
    error = empty(kind)
    assert isinstance(error, FAILURES)
    ours = build_transport_error(error, host="gpu-1", what="ask", address="x:1", connect_s=1, idle_s=2)
    assert isinstance(ours, RemoteError | InvalidValue)
    assert str(ours).startswith("gpu-1: ask: ")
    if kind.__module__.partition(".")[0] in ("requests", "urllib3") and kind.__name__ not in (
        "RequestException",
        "HTTPError",
    ):
        _, row = find_row(error)
        assert row[0] != (OSError,)


@pytest.mark.parametrize(
    ("kind", "transient"),
    [
        (requests.exceptions.ConnectTimeout, True),
        (requests.exceptions.ReadTimeout, True),
        (requests.exceptions.SSLError, False),
        (requests.exceptions.ChunkedEncodingError, True),
        (requests.exceptions.InvalidURL, False),
        (requests.exceptions.InvalidSchema, False),
        (urllib3.exceptions.ReadTimeoutError, True),
        (urllib3.exceptions.ProtocolError, True),
        (http.client.BadStatusLine, False),
        (http.client.RemoteDisconnected, True),
        (ConnectionResetError, True),
        (BrokenPipeError, True),
        (ssl.SSLEOFError, True),
        (ssl.SSLCertVerificationError, False),
    ],
)
def test_only_what_may_pass_is_transient(kind: type[Exception], transient: bool) -> None:
    error = build_transport_error(empty(kind), host="", what="x", address="", connect_s=1, idle_s=1)
    assert error.transient is transient


def test_the_innermost_cause_decides_and_no_foreign_words_are_shown() -> None:
    inner = ConnectionRefusedError(111, "Connection refused")
    middle = urllib3.exceptions.NewConnectionError(None, f"<object at 0x7f> {'s3cret'}")  # type: ignore[arg-type]
    middle.__cause__ = inner
    outer = requests.exceptions.ConnectionError("http://me:s3cret@x", middle)
    error = build_transport_error(outer, host="gpu-1", what="ask", address="x:1", connect_s=1, idle_s=1)
    assert (type(error), str(error)) == (ConnectError, "gpu-1: ask: connection refused (x:1)")


def test_causes_that_go_in_a_circle_end() -> None:
    one, other = requests.exceptions.ConnectionError("one"), OSError(113, "No route to host")
    one.__cause__, other.__cause__ = other, one
    error = build_transport_error(other, host="gpu-1", what="ask", address="x:1", connect_s=1, idle_s=1)
    assert type(error) is ConnectionLost


def test_what_the_system_says_is_said_where_we_have_no_words() -> None:
    error = OSError(113, "No route to host")
    new = urllib3.exceptions.NewConnectionError(None, "x")  # type: ignore[arg-type]
    new.__cause__ = error
    ours = build_transport_error(new, host="gpu-1", what="ask", address="x:1", connect_s=1, idle_s=1)
    assert (type(ours), str(ours)) == (ConnectError, "gpu-1: ask: no route to host (x:1)")


def test_an_error_of_ours_passes_the_boundary_as_it_is() -> None:
    class Failing(Body):
        def read(self, size: int = -1, /) -> bytes:
            raise OllamaopsError("the file has gone")

    with ScriptedHost(always({})) as host, connected(host) as transport:
        with pytest.raises(OllamaopsError, match=r"^the file has gone$"):
            transport.request("POST", "/", upload=Failing(b"x" * 10))
        assert transport.request("GET", "/").status == 200


def test_importing_the_package_imports_no_requests() -> None:
    code = "import sys, ollamaops.ollama.features, ollamaops.ollama.wire; print('requests' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
