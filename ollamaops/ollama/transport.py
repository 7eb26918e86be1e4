"""One host's HTTP: a pooled session, JSON in and out, NDJSON streams, time limits, cancelling, and one error tree.

Decides how a request travels and which error a failure is. Leaves to client.py what is asked and to apply/ whether
it is tried again. Easily missed: nothing here retries, follows a redirect, keeps a cookie or reads ~/.netrc, and
environment proxies are not used for loopback (as Go programs, Ollama's own client among them, do it).
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from ollamaops.errors import (
    Cancelled,
    ConnectionLost,
    CutStream,
    OllamaopsError,
    ProtocolError,
    RemoteError,
    TimeoutExceeded,
    cut_text,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.http.connection import Call
from ollamaops.http.file_body import FileBlock
from ollamaops.http.session import (
    Credentials,
    TimeLimits,
    TlsFiles,
    build_headers,
    build_redaction,
    build_session,
    choose_proxies,
    split_credentials,
)
from ollamaops.http.transport_errors import FAILURES, TLS_HINT, build_transport_error
from ollamaops.ollama.answer_errors import build_answer_error, is_web_page, text_of_error
from ollamaops.units import format_duration

MAX_ANSWER_BYTES: Final = 256 << 20
MAX_ERROR_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 16 << 20
_READ_BYTES: Final = 64 << 10
_SPOKEN: Final = ("error", "status")

JsonObject = Mapping[str, object]


class Upload(Protocol):
    """A request body of known length that is read in blocks."""

    def __len__(self) -> int: ...
    def read(self, size: int = -1, /) -> bytes | FileBlock: ...


@dataclass(frozen=True, slots=True)
class _Followed:
    """An upload that calls `at_end` when it was asked for more than it has: its last block is out by then."""

    upload: Upload
    at_end: Callable[[], None]

    def __len__(self) -> int:
        return len(self.upload)

    def read(self, size: int = -1, /) -> bytes | FileBlock:
        block = self.upload.read(size)
        if not block:
            self.at_end()
        return block


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete 2xx answer. `json` is None when the body is empty or no JSON."""

    status: int
    text: str
    headers: Mapping[str, str]
    json: object = None


@dataclass(slots=True)
class _Sent:
    """A count that copies of a transport share."""

    requests: int = 0


class Transport:
    """One host. Safe to use from several threads; close it, or use it as a context, when done.

    `cancel` ends every exchange, which then raises Cancelled.
    """

    def __init__(
        self,
        host_name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: Credentials | None = None,
        tls: TlsFiles | None = None,
        proxy: str | None = None,
        limits: TimeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        cancel: CancelToken | None = None,
    ) -> None:
        self.host_name = host_name
        self.url, url_auth = split_credentials(host_name, url)
        self.limits = limits or TimeLimits()
        self.clock = clock
        self.cancel = cancel or CancelToken()
        self._sent = _Sent()
        self._session = build_session(host_name, tls or TlsFiles())
        self._session.proxies.update(choose_proxies(self.url, proxy))
        self._session.headers.clear()
        self._session.headers.update(build_headers(host_name, headers or {}, auth or url_auth))
        self.redaction = build_redaction(headers or {}, auth or url_auth, self._session.proxies)
        self.tells_who = (auth or url_auth) is not None or bool(headers)

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    @property
    def requests_sent(self) -> int:
        """How many requests went out, for those who promise how few it takes."""
        return self._sent.requests

    def without_cancel(self) -> Transport:
        """The same session, for requests that must go on when the run is cancelled."""
        transport = copy.copy(self)
        transport.cancel = CancelToken()
        return transport

    def __repr__(self) -> str:
        return f"Transport({self.host_name!r}, {self.url!r})"

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the pooled connections."""
        self._session.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: JsonObject | None = None,
        upload: Upload | None = None,
        what: str = "",
        idle_s: float | None = None,
        sent_idle_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Answer:
        """Ask and read the whole answer, which is 2xx; anything else is a RemoteError or Cancelled.

        `what` names the purpose in messages. `idle_s` bounds the silence (default: the host's), `sent_idle_s` that
        after the last byte of an upload is out (default: the same), `deadline_s` the whole exchange.
        """
        exchange = _Exchange(self, method, path, what, idle_s, deadline_s)
        exchange.open()
        if upload is not None and sent_idle_s is not None:
            upload = _Followed(upload, lambda: exchange.allow_silence(sent_idle_s))
        try:
            exchange.send(body, upload)
            return exchange.read_answer()
        finally:
            exchange.close()

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: JsonObject | None = None,
        what: str = "",
        idle_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Stream:
        """Ask and hand out the lines of the answer as they come. The request is sent when the Stream is entered."""
        return Stream(_Exchange(self, method, path, what, idle_s, deadline_s), body)

    def send(self, request: requests.PreparedRequest, idle_s: float) -> requests.Response:
        """The head of one answer, its body still to be read. Raises what requests and urllib3 raise."""
        self._sent.requests += 1
        session = self._session
        return session.send(
            request,
            stream=True,
            allow_redirects=False,
            timeout=(min(self.limits.connect_s, idle_s), idle_s),
            proxies=session.proxies,
            verify=session.verify,
            cert=session.cert,
        )

    def prepare(
        self, method: str, path: str, body: JsonObject | None, upload: Upload | None
    ) -> requests.PreparedRequest:
        """The request with the session's headers; an empty upload still has a Content-Length."""
        data: object = None
        headers = {}
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/json"
        elif upload is not None:
            data = upload if len(upload) else b""
            headers["Content-Type"] = "application/octet-stream"
        request = requests.Request(method, self.url + path, headers=headers, data=data)
        return self._session.prepare_request(request)


class Stream:
    """The lines of an NDJSON answer, each a JSON object, delivered at once. Use it as a context, then iterate.

    The end of iteration means that the answer ended properly. A connection cut is ConnectionLost, half a line
    CutStream, a line that is no JSON object ProtocolError.
    """

    def __init__(self, exchange: _Exchange, body: JsonObject | None) -> None:
        self._exchange = exchange
        self._body = body

    def __enter__(self) -> Stream:
        self._exchange.open()
        try:
            self._exchange.send(self._body, None)
        except BaseException:
            self._exchange.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exchange.close()

    def __iter__(self) -> Iterator[JsonObject]:
        return self._exchange.read_lines()

    def allow_silence(self, seconds: float) -> None:
        """From the next line on, the server may be silent for this long."""
        self._exchange.allow_silence(seconds)


class _Exchange:
    """One request and its answer: the only place where foreign exceptions become ours."""

    def __init__(
        self,
        transport: Transport,
        method: str,
        path: str,
        what: str,
        idle_s: float | None,
        deadline_s: float | None,
    ) -> None:
        self._transport = transport
        self._method = method
        self._path = path
        self._what = what or f"{method} {path}"
        self._idle_s = transport.limits.idle_s if idle_s is None else idle_s
        self._deadline_s = transport.limits.overall_s if deadline_s is None else deadline_s
        self._ends_at = None if self._deadline_s is None else transport.clock() + self._deadline_s
        self._call = Call(self._idle_s)
        self._response: requests.Response | None = None
        self._stack = contextlib.ExitStack()

    def open(self) -> None:
        """From here on, the cancel token ends this exchange."""
        self._stack.callback(self._call.finish)
        self._stack.enter_context(self._transport.cancel.calling(self._call.abort))

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end and the pool has it back."""
        if self._response is not None:
            self._response.close()
        self._stack.close()

    def allow_silence(self, seconds: float) -> None:
        """From now on each read may take this long."""
        self._idle_s = seconds
        self._call.allow_silence(self._time_left())

    def send(self, body: JsonObject | None, upload: Upload | None) -> None:
        """Send the request and take the head of the answer; an error for anything but 2xx."""
        with self._failures():
            self._check_aborted()
            request = self._transport.prepare(self._method, self._path, body, upload)
            self._call.allow_silence(self._time_left())
            with self._call.sending():
                self._response = self._transport.send(request, self._time_left())
        if not 200 <= self._response.status_code < 300:
            raise self._error_of_answer(self._response)

    def read_answer(self) -> Answer:
        """The whole body, parsed when it is JSON; half an object is CutStream, a web page under 200 ProtocolError."""
        data = bytearray()
        for block in self._read_blocks():
            data += block
            if len(data) > MAX_ANSWER_BYTES:
                raise self._protocol_error(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        text = data.decode("utf-8", "replace")
        if is_web_page(text):
            raise self._protocol_error(self._hide(text_of_error(text)))
        value = self._without_secrets(_parse_json(text))
        if value is None and text.lstrip().startswith("{"):
            raise self._cut("the answer ends in the middle of its JSON")
        response = self._opened
        return Answer(response.status_code, text, response.headers, value)

    def read_lines(self) -> Iterator[JsonObject]:
        """Each complete line, as an object, as soon as it is here."""
        rest = bytearray()
        number = 0
        for block in self._read_blocks():
            *lines, tail = block.split(b"\n")
            if lines:
                lines[0] = bytes(rest) + lines[0]
                rest.clear()
            for line in filter(bytes.strip, lines):
                number += 1
                yield self._parse_line(line, number)
            rest += tail
            if len(rest) > MAX_LINE_BYTES:
                raise self._protocol_error(f"line {number + 1} is longer than {MAX_LINE_BYTES} bytes")
        if rest.strip():
            yield self._parse_last_line(bytes(rest), number + 1)

    @property
    def _opened(self) -> requests.Response:
        assert self._response is not None, "send comes before reading"
        return self._response

    def _read_blocks(self) -> Iterator[bytes]:
        """What has arrived, as it arrives, until the proper end of the body."""
        raw: urllib3.HTTPResponse = self._opened.raw
        is_empty = True
        while True:
            with self._failures():
                if self._ends_at is not None:
                    self._call.allow_silence(self._time_left())
                block = raw.read1(_READ_BYTES, decode_content=True)
                self._check_aborted()
            if raw.connection is None:  # the pool has it back, and another request may use it
                self._call.finish()
            if not block:
                break
            is_empty = False
            yield block
        if is_empty and self._method != "HEAD" and _is_unframed(raw):
            raise ConnectionLost(self._say("the answer was cut short"), host=self._transport.host_name)

    def _parse_line(self, line: bytes, number: int) -> JsonObject:
        value = self._without_secrets(_parse_json(line.decode("utf-8", "replace")))
        if isinstance(value, dict):
            return value
        text = self._hide(text_of_error(line.decode("utf-8", "replace")))
        raise self._protocol_error(f"line {number} is not a JSON object: {cut_text(text, 80)}")

    def _parse_last_line(self, line: bytes, number: int) -> JsonObject:
        """A line without its newline: fine when complete (single objects end so), else the stream was cut."""
        if line.lstrip().startswith(b"{") and _parse_json(line.decode("utf-8", "replace")) is None:
            raise self._cut(f"the answer ends in the middle of line {number}")
        return self._parse_line(line, number)

    def _error_of_answer(self, response: requests.Response) -> OllamaopsError:
        body = bytearray()
        with contextlib.suppress(RemoteError):  # the status is known, its text is a bonus
            for block in self._read_blocks():
                body += block
                if len(body) > MAX_ERROR_BYTES:
                    break
        return build_answer_error(
            self._transport.host_name,
            self._what,
            response.status_code,
            self._hide(body.decode("utf-8", "replace")),
            CaseInsensitiveDict({name: self._hide(value) for name, value in response.headers.items()}),
            self._method,
            told_who=self._transport.tells_who,
        )

    def _hide(self, text: str) -> str:
        return self._transport.redaction.hide(text)

    def _without_secrets(self, value: object) -> object:
        """The same, its words about the request without what we sent. Models and their answers stay as they are."""
        if not isinstance(value, dict):
            return value
        spoken = {key: value[key] for key in _SPOKEN if key in value}
        return {**value, **{key: self._transport.redaction.hide_in(said) for key, said in spoken.items()}}

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """The boundary: what requests, urllib3 and the OS raise inside becomes an error of ours."""
        try:
            yield
        except FAILURES as error:
            if self._call.aborted:
                raise Cancelled(self._say("cancelled")) from error
            ours = build_transport_error(
                error,
                host=self._transport.host_name,
                what=self._what,
                address=self._transport.address,
                connect_s=self._transport.limits.connect_s,
                idle_s=self._idle_s,
            )
            if isinstance(ours, TimeoutExceeded):
                self._time_left()
            if isinstance(ours, ConnectionLost) and self._is_unheard():
                ours.hint = f"if this goes on: {TLS_HINT}"
            raise ours from error

    def _is_unheard(self) -> bool:
        """Whether a first question in the clear met silence, as from a server that waits for TLS."""
        is_clear = self._transport.url.startswith("http://")
        return is_clear and self._method == "GET" and self._response is None

    def _check_aborted(self) -> None:
        if self._call.aborted:
            raise ConnectionAbortedError

    def _time_left(self) -> float:
        """Seconds that the next wait may take; TimeoutExceeded when the overall time is up."""
        if self._ends_at is None or self._deadline_s is None:
            return self._idle_s
        left = self._ends_at - self._transport.clock()
        if left <= 0:
            raise TimeoutExceeded(
                self._say(f"not done within {format_duration(self._deadline_s)}"),
                host=self._transport.host_name,
            )
        return min(self._idle_s, left)

    def _cut(self, why: str) -> CutStream:
        return CutStream(self._say(why), host=self._transport.host_name)

    def _protocol_error(self, why: str) -> ProtocolError:
        return ProtocolError(
            self._say(why),
            host=self._transport.host_name,
            hint="check url: something between here and Ollama, or another program, may be answering",
        )

    def _say(self, why: str) -> str:
        return f"{self._transport.host_name}: {self._what}: {why}"


def _is_unframed(raw: urllib3.HTTPResponse) -> bool:
    """Whether nothing in the head says where the body ends: with an empty body, the head itself was cut.

    HTTP/1.0, 204 and `Connection: close` are what allows an answer to end with its connection (RFC 9112 §6.3).
    """
    framed = {"content-length", "transfer-encoding", "connection"} & {name.lower() for name in raw.headers}
    return not framed and raw.version == 11 and raw.status != 204


def _parse_json(text: str) -> object:
    """The value of a JSON text; None when it is empty, null or no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
