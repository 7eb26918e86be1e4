"""One request and its answer: cancelled from any thread, bounded in time and bytes, and failing with our errors only.

This is the only place where exceptions of requests, urllib3 and the OS become ours. It follows no redirect and tries
nothing again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from ollamaops.errors import (
    Cancelled,
    ConnectionLost,
    ProtocolError,
    RemoteError,
    TimeoutExceeded,
)
from ollamaops.http.connection import Call
from ollamaops.http.file_body import Upload
from ollamaops.http.redaction import Redaction
from ollamaops.http.session import HttpSession, origin_of
from ollamaops.http.transport_errors import FAILURES, build_transport_error
from ollamaops.units import format_duration

if TYPE_CHECKING:
    import requests
    import urllib3

MAX_ERROR_BYTES: Final = 64 << 10
_READ_BYTES: Final = 64 << 10

Kind = TypeVar("Kind", bound=RemoteError)


class Request(Struct, frozen=True, kw_only=True):
    """What to ask. `host` and `what` are for messages; `private` headers stay with the origin of `url`.

    `idle_s` bounds each silence and `deadline_s` the whole exchange; None is the session's limit. `max_bytes` bounds
    the body of a 2xx answer for `redirects.Fetcher`; None means that it is not read.
    """

    method: str
    url: str
    host: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private: Mapping[str, str] = field(default_factory=dict)
    idle_s: float | None = None
    deadline_s: float | None = None
    max_bytes: int | None = None

    def moved_to(self, url: str) -> Request:
        """The same request for another URL; what is private is left behind when the origin changes."""
        stays = origin_of(url) == origin_of(self.url)
        return replace(self, url=url, private=self.private if stays else {})


class Exchange:
    """A request on its way, then its answer. Use it as a context, or close it."""

    def __init__(self, session: HttpSession, request: Request) -> None:
        self.request = request
        self._session = session
        self._idle_s = session.limits.idle_s if request.idle_s is None else request.idle_s
        self._deadline_s = session.limits.overall_s if request.deadline_s is None else request.deadline_s
        self._ends_at = None if self._deadline_s is None else session.clock() + self._deadline_s
        self._call = Call(self._idle_s)
        self._response: requests.Response | None = None
        self._is_empty = True  # as long as nothing of the body was read
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection, unless the answer was read to its end and the pool has it back."""
        if self._response is not None:
            self._response.close()
        self._stack.close()

    @property
    def url(self) -> str:
        """Where the answer comes from."""
        return self.request.url

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return self._begun.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The head of the answer, whatever the case of the names."""
        return self._begun.headers

    @property
    def is_ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def send(self, body: bytes | Upload | None = None) -> None:
        """Send the request and take the head of the answer, whatever its status. A RemoteError if none came.

        From here on the session's cancel token ends this exchange. InvalidValue for an address, a header or a proxy
        that cannot be used.
        """
        self._stack.callback(self._call.finish)
        self._stack.enter_context(self._session.cancel.calling(self._call.abort))
        request = self.request
        try:
            with self._failures():
                self._check_aborted()
                if self._session.is_closed:
                    raise self.error(ConnectionLost, "not sent: the session is closed")
                idle_s = self._time_left()
                self._call.allow_silence(idle_s)
                with self._call.sending():
                    self._response = self._session.send(
                        request.method, request.url, {**request.headers, **request.private}, body, idle_s
                    )
        except BaseException:
            self.close()
            raise

    def blocks(self) -> Iterator[bytes]:
        """What has arrived of the body, as it arrives, until its proper end."""
        while block := self._read(_READ_BYTES, decode=True):
            yield block

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of the body as they were sent, as many as are there; b"" at the end."""
        return self._read(size, decode=False)

    def read_all(self, max_bytes: int) -> bytes:
        """The whole body. ProtocolError if it is longer than that."""
        data = bytearray()
        for block in self.blocks():
            data += block
            if len(data) > max_bytes:
                why = f"the answer is longer than {max_bytes} bytes"
                raise self.error(ProtocolError, why, self._session.hints.foreign)
        return bytes(data)

    def read_start(self) -> bytes:
        """The start of the body of an error; what arrives of it, since the status is known and this is a bonus."""
        data = bytearray()
        with contextlib.suppress(RemoteError):
            for block in self.blocks():
                data += block
                if len(data) > MAX_ERROR_BYTES:
                    break
        return bytes(data[:MAX_ERROR_BYTES])

    def allow_silence(self, seconds: float) -> None:
        """From now on each read and write may take this long."""
        self._idle_s = seconds
        self._call.allow_silence(self._time_left())

    def redaction(self) -> Redaction:
        """What no text of the answer may show."""
        return self._session.redaction(self.request.url, self.request.private)

    def error(self, kind: type[Kind], why: str, hint: str | None = None) -> Kind:
        """An error of that kind about this exchange."""
        return kind(f"{self.request.host}: {self.request.what}: {why}", host=self.request.host, hint=hint)

    @property
    def _begun(self) -> requests.Response:
        assert self._response is not None, "send comes first"
        return self._response

    def _read(self, size: int, *, decode: bool) -> bytes:
        raw: urllib3.HTTPResponse = self._begun.raw
        with self._failures():
            if self._ends_at is not None:
                self._call.allow_silence(self._time_left())
            block = raw.read1(size, decode_content=decode)
            self._check_aborted()
        if raw.connection is None:  # the pool has it back, and another request may use it
            self._call.finish()
        if not block and self._is_empty and self.request.method != "HEAD" and _is_unframed(raw):
            raise self.error(ConnectionLost, "the answer was cut short")
        self._is_empty = False
        return block

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """The boundary: what requests, urllib3 and the OS raise inside becomes an error of ours."""
        try:
            yield
        except FAILURES as error:
            request = self.request
            if self._call.aborted:
                raise Cancelled(f"{request.host}: {request.what}: cancelled") from error
            ours = build_transport_error(
                error,
                host=request.host,
                what=request.what,
                address=urlsplit(request.url).netloc,
                connect_s=self._session.limits.connect_s,
                idle_s=self._idle_s,
                hints=self._session.hints,
            )
            if isinstance(ours, TimeoutExceeded):
                self._time_left()
            is_tls = self._session.hints.is_tls
            if isinstance(ours, ConnectionLost) and self._is_unheard() and is_tls:
                ours.hint = f"if this goes on: {is_tls}"
            raise ours from error

    def _is_unheard(self) -> bool:
        """Whether a first question in the clear met silence, as from a server that waits for TLS."""
        is_clear = self.request.url.startswith("http://")
        return is_clear and self.request.method == "GET" and self._response is None

    def _check_aborted(self) -> None:
        if self._call.aborted:
            raise ConnectionAbortedError

    def _time_left(self) -> float:
        """Seconds that the next wait may take; TimeoutExceeded when the overall time is up."""
        if self._ends_at is None or self._deadline_s is None:
            return self._idle_s
        left = self._ends_at - self._session.clock()
        if left <= 0:
            raise self.error(TimeoutExceeded, f"not done within {format_duration(self._deadline_s)}")
        return min(self._idle_s, left)


def _is_unframed(raw: urllib3.HTTPResponse) -> bool:
    """Whether nothing in the head says where the body ends: with an empty body, the head itself was cut.

    HTTP/1.0, 204 and `Connection: close` are what allows an answer to end with its connection (RFC 9112 §6.3).
    """
    framed = {"content-length", "transfer-encoding", "connection"} & {name.lower() for name in raw.headers}
    return not framed and raw.version == 11 and raw.status != 204
