"""One host's HTTP: JSON in and out, and NDJSON streams, on top of `http/`.

Nothing here retries or follows a redirect.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from ollamaops.errors import CutStream, ProtocolError, RemoteError, cut_text
from ollamaops.http.cancel import CancelToken
from ollamaops.http.exchange import Exchange, Request
from ollamaops.http.file_body import FileBlock, Upload
from ollamaops.http.redaction import Redaction
from ollamaops.http.session import (
    Credentials,
    HttpSession,
    TimeLimits,
    TlsFiles,
    check_headers,
    split_credentials,
)
from ollamaops.http.transport_errors import Hints
from ollamaops.ollama.answer_errors import build_answer_error, is_web_page, text_of_error

MAX_ANSWER_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 16 << 20
_SPOKEN: Final = ("error", "status")
_TELLING: Final = ("Content-Type", "Location", "Retry-After")
_ROUTERS: Final = {"x-olla-": "the router Olla", "x-litellm-": "the router LiteLLM"}
_HINTS: Final = Hints(
    unknown_name="check the host in url",
    untrusted="give the authority that signed it as tls: {ca: FILE}",
    no_tls="a server without TLS is http:// in url",
    is_tls="a server with TLS is https:// in url",
    refused="is Ollama running there, and does it listen on that address (OLLAMA_HOST on the host)?",
    unreachable="check url and the network between here and there",
    address="write url as http://host:port",
    foreign="check url: something between here and Ollama, or another program, may be answering",
    proxy="check proxy:, HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
)

JsonObject = Mapping[str, object]


class JsonAnswer(Struct, frozen=True):
    """A complete 2xx answer. `json` is None when the body is empty or not JSON."""

    status: int
    text: str
    headers: Mapping[str, str]
    json: object = None

    @property
    def router(self) -> str:
        """What tells by a header that it hands requests to several servers; "" if nothing does."""
        names = [name.lower() for name in self.headers]
        known = (who for start, who in _ROUTERS.items() if any(name.startswith(start) for name in names))
        return next(known, "")


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
        self.clock = clock
        self._session = HttpSession(
            host_name, tls=tls, proxy=proxy, limits=limits, cancel=cancel, hints=_HINTS, clock=clock
        )
        self._private = _private(headers or {}, auth or url_auth)
        check_headers(host_name, self._private)
        self._redaction = self._session.redaction(self.url, self._private)

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    @property
    def limits(self) -> TimeLimits:
        """How long things may take."""
        return self._session.limits

    @property
    def cancel(self) -> CancelToken:
        """What ends every exchange."""
        return self._session.cancel

    @property
    def requests_sent(self) -> int:
        """How many requests went out, for those who promise how few it takes."""
        return self._session.requests_sent

    def renew_connections(self) -> None:
        """Let the next requests connect anew."""
        self._session.renew_connections()

    def without_cancel(self) -> Transport:
        """The same connections, for requests that must go on when the run is cancelled."""
        transport = copy.copy(self)
        transport._session = self._session.without_cancel()  # noqa: SLF001  a copy of ourselves
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
    ) -> JsonAnswer:
        """Ask and read the whole answer, which is 2xx; anything else is a RemoteError or Cancelled.

        `what` names the purpose in messages. `idle_s` bounds the silence (default: the host's), `sent_idle_s` that
        after the last byte of an upload is out (default: the same), `deadline_s` the whole exchange.
        """
        with self._exchange(method, path, body, upload, what, idle_s, deadline_s) as exchange:
            if upload is not None and sent_idle_s is not None:
                upload = _Followed(upload, lambda: exchange.allow_silence(sent_idle_s))
            self._send(exchange, body, upload)
            return self._read_answer(exchange)

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
        exchange = self._exchange(method, path, body, None, what, idle_s, deadline_s)
        return Stream(exchange, lambda: self._send(exchange, body, None), self._redaction)

    def _exchange(
        self,
        method: str,
        path: str,
        body: JsonObject | None,
        upload: Upload | None,
        what: str,
        idle_s: float | None,
        deadline_s: float | None,
    ) -> Exchange:
        kind = (
            "application/json"
            if body is not None
            else "application/octet-stream"
            if upload is not None
            else ""
        )
        request = Request(
            method=method,
            url=self.url + path,
            host=self.host_name,
            what=what or f"{method} {path}",
            headers={"Content-Type": kind} if kind else {},
            private=self._private,
            idle_s=idle_s,
            deadline_s=deadline_s,
        )
        return Exchange(self._session, request)

    def _send(self, exchange: Exchange, body: JsonObject | None, upload: Upload | None) -> None:
        """Send the request and take the head of the answer; an error for anything but 2xx."""
        data: bytes | Upload | None = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        elif upload is not None:
            data = upload if len(upload) else b""  # which still has a Content-Length
        exchange.send(data)
        if not exchange.is_ok:
            raise self._error_of_answer(exchange)

    def _read_answer(self, exchange: Exchange) -> JsonAnswer:
        """The whole body, parsed when it is JSON; half an object is CutStream, a web page under 200 ProtocolError."""
        text = exchange.read_all(MAX_ANSWER_BYTES).decode("utf-8", "replace")
        if is_web_page(text):
            raise exchange.error(ProtocolError, self._redaction.hide(text_of_error(text)), _HINTS.foreign)
        value = _without_secrets(_parse_json(text), self._redaction)
        if value is None and text.lstrip().startswith("{"):
            raise exchange.error(CutStream, "the answer ends in the middle of its JSON")
        return JsonAnswer(exchange.status, text, exchange.headers, value)

    def _error_of_answer(self, exchange: Exchange) -> RemoteError:
        hide = self._redaction.hide
        return build_answer_error(
            self.host_name,
            exchange.request.what,
            exchange.status,
            hide(exchange.read_start().decode("utf-8", "replace")),
            {name: hide(exchange.headers.get(name, "")) for name in _TELLING},
            exchange.request.method,
            told_who=bool(self._private),
        )


class Stream:
    """The lines of an NDJSON answer, each a JSON object, delivered at once. Use it as a context, then iterate.

    The end of iteration means that the answer ended properly. A connection cut is ConnectionLost, half a line
    CutStream, a line that is not a JSON object ProtocolError.
    """

    def __init__(self, exchange: Exchange, send: Callable[[], None], redaction: Redaction) -> None:
        self._exchange = exchange
        self._send = send
        self._redaction = redaction

    def __enter__(self) -> Stream:
        try:
            self._send()
        except BaseException:
            self._exchange.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exchange.close()

    def __iter__(self) -> Iterator[JsonObject]:
        """Each complete line, as an object, as soon as it is here."""
        rest = bytearray()
        number = 0
        for block in self._exchange.blocks():
            *lines, tail = block.split(b"\n")
            if lines:
                lines[0] = bytes(rest) + lines[0]
                rest.clear()
            for line in filter(bytes.strip, lines):
                number += 1
                yield self._parse_line(line, number)
            rest += tail
            if len(rest) > MAX_LINE_BYTES:
                raise self._foreign(f"line {number + 1} is longer than {MAX_LINE_BYTES} bytes")
        if rest.strip():
            yield self._parse_last_line(bytes(rest), number + 1)

    def allow_silence(self, seconds: float) -> None:
        """From the next line on, the server may be silent for this long."""
        self._exchange.allow_silence(seconds)

    def _parse_line(self, line: bytes, number: int) -> JsonObject:
        text = line.decode("utf-8", "replace")
        value = _without_secrets(_parse_json(text), self._redaction)
        if isinstance(value, dict):
            return value
        said = cut_text(self._redaction.hide(text_of_error(text)), 80)
        raise self._foreign(f"line {number} is not a JSON object: {said}")

    def _parse_last_line(self, line: bytes, number: int) -> JsonObject:
        """A line without its newline: fine when complete (single objects end so), else the stream was cut."""
        if line.lstrip().startswith(b"{") and _parse_json(line.decode("utf-8", "replace")) is None:
            raise self._exchange.error(CutStream, f"the answer ends in the middle of line {number}")
        return self._parse_line(line, number)

    def _foreign(self, why: str) -> ProtocolError:
        return self._exchange.error(ProtocolError, why, _HINTS.foreign)


class _Followed(Struct, frozen=True):
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


def _private(headers: Mapping[str, str], auth: Credentials | None) -> dict[str, str]:
    """The manifest's headers and the credentials, which win over an Authorization header."""
    if auth is None or auth.header is None:
        return dict(headers)
    kept = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return {**kept, "Authorization": auth.header}


def _without_secrets(value: object, redaction: Redaction) -> object:
    """The same, its words about the request without what we sent. Models and their answers stay as they are."""
    if not isinstance(value, dict):
        return value
    spoken = {key: value[key] for key in _SPOKEN if key in value}
    return {**value, **{key: redaction.hide_in(said) for key, said in spoken.items()}}


def _parse_json(text: str) -> object:
    """The value of a JSON text; None when it is empty, null or not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
