"""Asking with GET and HEAD through redirects, which are followed here one by one.

What is private goes to the origin (scheme, host, port) it was meant for and to no other, so a redirect to a CDN
carries no credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urljoin

from ollamaops.errors import ConnectionLost, InvalidValue, ProtocolError
from ollamaops.http.answer import REDIRECTS, Answer
from ollamaops.http.exchange import Exchange, Request
from ollamaops.http.session import HttpSession, origin_of

_MAX_HOPS: Final = 5


class Fetcher:
    """Asks through one session and follows at most `max_hops` redirects. Safe to use from several threads."""

    def __init__(self, session: HttpSession, *, max_hops: int = _MAX_HOPS) -> None:
        self._session = session
        self._max_hops = max_hops

    def ask(self, request: Request) -> Answer:
        """The answer after redirects, whatever its status. A RemoteError when none arrived."""
        for hop in self.hops(request):
            answer = hop
        return answer

    def hops(self, request: Request) -> Iterator[Answer]:
        """Every answer on the way, the last of which is not a redirect. A RemoteError when it does not end."""
        for exchange in self._exchanges(request):
            with exchange:
                answer = _read(exchange)
            yield answer

    def open(self, request: Request) -> Exchange:
        """The answer after redirects, its body still to be read. A RemoteError when none arrived."""
        for exchange in self._exchanges(request):
            if exchange.status not in REDIRECTS:
                break
            exchange.close()
        return exchange

    def _exchanges(self, request: Request) -> Iterator[Exchange]:
        for _ in range(self._max_hops + 1):
            exchange = self._begin(request)
            yield exchange
            if exchange.status not in REDIRECTS:
                return
            request = request.moved_to(_target(exchange))
        raise exchange.error(ProtocolError, f"more than {self._max_hops} redirects")

    def _begin(self, request: Request) -> Exchange:
        """An exchange whose answer has begun.

        A request that changes nothing is sent once more when its connection is cut before the answer begins: servers
        close pooled connections without a word (RFC 9110 §9.2.2).
        """
        try:
            return self._send(request)
        except ConnectionLost:
            if request.method not in ("GET", "HEAD"):
                raise
        return self._send(request)

    def _send(self, request: Request) -> Exchange:
        exchange = Exchange(self._session, request)
        try:
            exchange.send()
        except (
            InvalidValue
        ) as error:  # not of the user's manifest: it is where a server sent us, or our environment
            raise ProtocolError(str(error), host=request.host, hint=error.hint) from error
        return exchange


def _read(exchange: Exchange) -> Answer:
    """The answer with its body, at most `max_bytes` of it; an error's body without what we sent."""
    body = b""
    if exchange.is_ok and exchange.request.max_bytes is not None:
        body = exchange.read_all(exchange.request.max_bytes)
    elif not exchange.is_ok and exchange.status not in REDIRECTS:
        text = exchange.read_start().decode("utf-8", errors="replace")
        body = exchange.redaction().hide(text).encode()
    return Answer(exchange.url, exchange.status, exchange.headers, body)


def _target(exchange: Exchange) -> str:
    """The absolute URL that a redirect points to.

    ProtocolError when there is none, or when it leads from https to http or not to a web address.
    """
    headers: Mapping[str, str] = exchange.headers
    try:
        target = urljoin(exchange.url, headers["Location"])
        scheme, name, _ = origin_of(target)
    except (KeyError, ValueError):
        scheme = name = target = ""
    if not name or scheme not in ("http", "https"):
        raise exchange.error(ProtocolError, f"a redirect (status {exchange.status}) without a place to go")
    if scheme == "http" and origin_of(exchange.url)[0] == "https":
        raise exchange.error(ProtocolError, f"a redirect from https to http on {name}")
    return target
