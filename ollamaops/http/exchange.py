"""One question to a registry and its answer: pooled, bounded in bytes and time, redirects followed by hand.

Turns every failure of the wire into the error tree and leaves the meaning of a status to client.py. The fact a
reader would miss: what is secret goes to the origin (scheme, host, port) it was meant for and to no other, so a
redirect to a CDN carries no credentials; and `~/.netrc` is never read.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.cookiejar import DefaultCookiePolicy
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import disable_warnings
from urllib3.exceptions import HTTPError, InsecureRequestWarning, NewConnectionError, ReadTimeoutError

from ollamaops.errors import (
    ConnectError,
    ConnectionLost,
    ProtocolError,
    RemoteError,
    TimeoutExceeded,
    TlsError,
)
from ollamaops.http.redaction import Redaction, secrets_of_headers, secrets_of_proxy

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PATIENCE = 10

_BLOCK_BYTES = 64 * 1024
_MAX_HOPS = 5
_PORTS = {"http": 80, "https": 443}
_AUTHORITY_HINT = "name the file with the authority that signed it in REQUESTS_CA_BUNDLE"
# exceptions → our error, why (empty: the system's words), hint; the first row that fits any cause wins
_Row = tuple[tuple[type[BaseException], ...], type[RemoteError], str, str | None]
_FAILURES: tuple[_Row, ...] = (
    ((requests.Timeout, ReadTimeoutError, TimeoutError), TimeoutExceeded, "no answer in time", None),
    ((ssl.SSLCertVerificationError,), TlsError, "the TLS certificate was not accepted", _AUTHORITY_HINT),
    ((ssl.SSLError, requests.exceptions.SSLError), TlsError, "the TLS handshake failed", None),
    ((socket.gaierror,), ConnectError, "the host name was not found", None),
    ((NewConnectionError, requests.exceptions.ProxyError), ConnectError, "", None),
    ((ConnectionError, http.client.IncompleteRead), ConnectionLost, "the connection was cut", None),
)


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask. `host` and `subject` are for messages; `private` headers stay with the origin of `url`.

    `max_bytes` bounds the body of a 2xx answer; None means that it is not read at all. The whole answer may take
    `patience` times the timeout.
    """

    method: str
    url: str
    host: str
    subject: str
    max_bytes: int | None
    public: Mapping[str, str]
    private: Mapping[str, str]
    patience: int = PATIENCE

    @property
    def redaction(self) -> Redaction:
        """What no text of the answer may show: whatever is private, and the password of a proxy."""
        proxies = _choose_proxies(self.url).values()
        return Redaction(
            [*secrets_of_headers(self.private), *(s for url in proxies for s in secrets_of_proxy(url))]
        )

    def moved_to(self, url: str) -> Question:
        """The same question for another URL; what is private is left behind when the origin changes."""
        stays = origin_of(url) == origin_of(self.url)
        return replace(self, url=url, private=self.private if stays else {})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `url` is where it came from after redirects; `body` of an error is cut, not refused."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def without(self, redaction: Redaction) -> Answer:
        """The same, its text without secrets: an answer that is an error may quote the question."""
        return replace(self, body=redaction.hide(self.body.decode("utf-8", errors="replace")).encode())


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL, the default port filled in."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def redirect_target(answer: Answer, question: Question) -> str:
    """The absolute URL that a redirect points to.

    ProtocolError when there is none, or when it leads from https to http or to no web address at all.
    """
    try:
        target = urljoin(answer.url, answer.headers["Location"])
        scheme, name, _ = origin_of(target)
    except (KeyError, ValueError):
        scheme = name = target = ""
    if not name or scheme not in _PORTS:
        raise _remote(ProtocolError, question, f"a redirect (status {answer.status}) without a place to go")
    if scheme == "http" and origin_of(answer.url)[0] == "https":
        raise _remote(ProtocolError, question, f"a redirect from https to http on {name}")
    return target


class OpenAnswer:
    """An answer whose body is still to be read, in pieces of any size. Use it as a context, or close it."""

    def __init__(self, question: Question, response: requests.Response) -> None:
        self.url = question.url
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._question = question
        self._response = response

    def __enter__(self) -> OpenAnswer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as many as are there; b"" at the end. A RemoteError when the connection fails."""
        try:
            data: bytes = self._response.raw.read1(size)
        except (HTTPError, OSError, http.client.HTTPException) as error:
            _raise_remote(error, self._question)
        return data

    def close(self) -> None:
        """Drop the connection, unless the body was read to its end and the pool has it back."""
        self._response.close()


class _Session(requests.Session):
    """A session that leaves redirects alone.

    Even when told not to follow them, requests would read the whole body of a redirect and parse where it leads.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nothing to follow."""


class Exchange:
    """Asks questions through one pooled session. Safe to use from several threads.

    `timeout_s` bounds connecting and the silence between two pieces of an answer, a question's `patience` times
    that the whole answer. `verify` is True, False or the path of a CA bundle. Proxies come from the environment,
    as does the CA bundle when `verify` is True. `max_hops` is how many redirects are followed.
    """

    def __init__(self, *, timeout_s: float, verify: bool | str = True, max_hops: int = _MAX_HOPS) -> None:
        self._timeout_s = timeout_s
        self._is_closed = False
        self._max_hops = max_hops
        self._verify = (_authorities_of_environment() or True) if verify is True else verify
        if verify is False:
            disable_warnings(InsecureRequestWarning)
        self._session = _Session()
        self._session.trust_env = False  # or ~/.netrc would be read
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for prefix in ("http://", "https://"):
            self._session.mount(prefix, HTTPAdapter(pool_maxsize=16))

    def close(self) -> None:
        """Close the pooled connections. What another thread asks from now on is ConnectionLost, and is not sent."""
        self._is_closed = True
        self._session.close()

    def ask(self, question: Question) -> Answer:
        """The answer after redirects, whatever its status. A RemoteError when none arrived."""
        for hop in self.hops(question):
            answer = hop
        return answer

    def hops(self, question: Question) -> Iterator[Answer]:
        """Every answer on the way, the last of which is no redirect. A RemoteError when it does not end."""
        for _ in range(self._max_hops + 1):
            answer = self.ask_once(question)
            yield answer
            if answer.status not in REDIRECTS:
                return
            question = question.moved_to(redirect_target(answer, question))
        raise _remote(ProtocolError, question, f"more than {self._max_hops} redirects")

    def open(self, question: Question) -> OpenAnswer:
        """The answer after redirects, its body still to be read. A RemoteError when none arrived."""
        for _ in range(self._max_hops + 1):
            try:
                response = self._send(question)
            except (requests.RequestException, HTTPError, UnicodeError) as error:
                _raise_remote(error, question)
            if response.status_code not in REDIRECTS:
                return OpenAnswer(question, response)
            response.close()
            answer = Answer(question.url, response.status_code, response.headers, b"")
            question = question.moved_to(redirect_target(answer, question))
        raise _remote(ProtocolError, question, f"more than {self._max_hops} redirects")

    def ask_once(self, question: Question) -> Answer:
        """The answer, which may be a redirect. A RemoteError when none arrived."""
        started = time.monotonic()
        try:
            with self._send(question) as response:
                body = self._read_body(question, response, started)
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            _raise_remote(error, question)
        answer = Answer(question.url, response.status_code, response.headers, body)
        return answer if answer.is_ok or answer.status in REDIRECTS else answer.without(question.redaction)

    def _send(self, question: Question) -> requests.Response:
        """The head of an answer. Raises what requests raises.

        What changes nothing is asked once more when the connection is cut before an answer: servers close pooled
        ones without a word (RFC 9110 §9.2.2).
        """
        try:
            return self._request(question)
        except requests.ConnectionError as error:
            if question.method not in ("GET", "HEAD") or _classify(error)[0] is not ConnectionLost:
                raise
        return self._request(question)

    def _request(self, question: Question) -> requests.Response:
        if self._is_closed:
            raise _remote(
                ConnectionLost, question, "not asked, there is nobody left who would hear the answer"
            )
        return self._session.request(
            question.method,
            question.url,
            headers={"Accept-Encoding": "identity", **question.public, **question.private},
            timeout=self._timeout_s,
            verify=self._verify,
            proxies=_choose_proxies(question.url),
            allow_redirects=False,
            stream=True,
        )

    def _read_body(self, question: Question, response: requests.Response, started: float) -> bytes:
        """The body, at most `max_bytes` of it; the start of it when the answer is an error."""
        if response.status_code in REDIRECTS or (response.ok and question.max_bytes is None):
            return b""
        limit = question.max_bytes if response.ok and question.max_bytes is not None else _BLOCK_BYTES
        overall_s = self._timeout_s * question.patience
        body = bytearray()
        while block := response.raw.read1(_BLOCK_BYTES, decode_content=True):
            body += block
            if len(body) > limit:
                break
            if time.monotonic() - started > overall_s:
                raise _remote(TimeoutExceeded, question, f"not complete after {overall_s:g}s")
        if len(body) > limit and response.ok:
            raise _remote(ProtocolError, question, f"more than {limit} bytes")
        return bytes(body[:limit])


def _authorities_of_environment() -> str | None:
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None


def _choose_proxies(url: str) -> dict[str, str]:
    """Those of the environment; none for this machine itself."""
    name = urlsplit(url).hostname or ""
    try:
        is_loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_loopback = name == "localhost" or name.endswith(".localhost")
    return {} if is_loopback else get_environ_proxies(url)


def _remote(kind: type[RemoteError], question: Question, why: str, hint: str | None = None) -> RemoteError:
    return kind(f"{question.host}: {question.subject}: {why}", host=question.host, hint=hint)


def _raise_remote(error: Exception, question: Question) -> NoReturn:
    kind, why, hint = _classify(error)
    raise _remote(kind, question, why, hint) from error


def _classify(error: Exception) -> tuple[type[RemoteError], str, str | None]:
    """Class, words and hint for a failure of the wire. Never the text of `error`: it may quote headers."""
    causes = _causes(error)
    for types, kind, why, hint in _FAILURES:
        if any(isinstance(cause, types) for cause in causes):
            return kind, why or _system_words(causes), hint
    return ProtocolError, f"the request or its answer is not valid HTTP ({type(error).__name__})", None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and what requests and urllib3 wrapped in it, outermost first."""
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        item = queue.pop(0)
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            queue += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
    return found


def _system_words(causes: list[BaseException]) -> str:
    """What the system said: `connection refused`, `no route to host`."""
    words = (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror)
    return next(words, "nobody answers").lower()
