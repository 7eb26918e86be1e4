"""Which error a failed exchange is: the exceptions of requests, urllib3, http.client, ssl and the OS, mapped once.

Pure. Easily missed: the outer exception says little (requests wraps urllib3, urllib3 wraps the OS), so the whole
chain of causes is looked at, and the first row of the table that fits any of them wins. Messages are our own
words, because foreign ones carry addresses of objects, URLs and header values, secrets among them.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import requests.exceptions as r
import urllib3.exceptions as u

from ollamaops.errors import (
    ConnectError,
    ConnectionLost,
    InvalidValue,
    OllamaopsError,
    ProtocolError,
    RemoteError,
    TimeoutExceeded,
    TlsError,
)
from ollamaops.units import format_duration

FAILURES: Final = (r.RequestException, u.HTTPError, http.client.HTTPException, OSError, UnicodeError)
"""Everything that an exchange may raise because of the network, the peer or the settings."""

_LISTEN_HINT = "is Ollama running there, and does it listen on that address (OLLAMA_HOST on the host)?"
_NAME_HINT = "check the host in url"
_ROUTE_HINT = "check url and the network between here and there"
_CA_HINT = "give the authority that signed it as tls: {ca: FILE}"
_PLAIN_HINT = "a server without TLS is http:// in url"
TLS_HINT: Final = "a server with TLS is https:// in url"
_PROXY_HINT = "check proxy:, HTTP_PROXY, HTTPS_PROXY and NO_PROXY"

# exceptions → our error, why (None: the system's words), hint. The first row that fits a cause wins.
Row = tuple[tuple[type[BaseException], ...], type[OllamaopsError], str | None, str | None]
_TABLE: Final[tuple[Row, ...]] = (
    ((u.NameResolutionError, socket.gaierror), ConnectError, "the name of the host is not known", _NAME_HINT),
    ((ssl.SSLCertVerificationError, ssl.CertificateError), TlsError, None, _CA_HINT),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), ConnectionLost, "the connection was cut", None),
    ((ssl.SSLError, u.SSLError, r.SSLError), TlsError, None, _PLAIN_HINT),
    (
        (u.ProxySchemeUnknown, u.ProxySchemeUnsupported),
        InvalidValue,
        "this kind of proxy is not supported",
        _PROXY_HINT,
    ),
    ((r.InvalidProxyURL,), InvalidValue, "the address of the proxy cannot be read", _PROXY_HINT),
    ((u.ProxyError, r.ProxyError), ConnectError, "the proxy does not let us through", _PROXY_HINT),
    ((ConnectionRefusedError,), ConnectError, "connection refused", _LISTEN_HINT),
    ((u.NewConnectionError,), ConnectError, None, _ROUTE_HINT),
    (
        (u.ConnectTimeoutError, r.ConnectTimeout),
        ConnectError,
        "no connection within {connect}",
        _ROUTE_HINT,
    ),
    ((u.TimeoutError, r.Timeout, TimeoutError), TimeoutExceeded, "nothing moved for {idle}", None),
    ((u.IncompleteRead, http.client.IncompleteRead), ConnectionLost, "the answer was cut short", None),
    (
        (http.client.RemoteDisconnected,),
        ConnectionLost,
        "the connection was closed before an answer came",
        None,
    ),
    ((ConnectionError,), ConnectionLost, "the connection was cut", None),
    ((u.DecodeError, r.ContentDecodingError), ProtocolError, "the answer cannot be unpacked", None),
    (
        (u.LocationValueError, r.InvalidURL, r.MissingSchema, r.InvalidSchema, r.URLRequired, UnicodeError),
        InvalidValue,
        "the address cannot be used",
        "write url as http://host:port",
    ),
    ((u.InvalidHeader, r.InvalidHeader), InvalidValue, "a header cannot be sent", None),
    (
        (
            http.client.BadStatusLine,
            http.client.UnknownProtocol,
            http.client.LineTooLong,
            u.HeaderParsingError,
        ),
        ProtocolError,
        "the answer is not HTTP",
        TLS_HINT,
    ),
    ((u.ResponseNotChunked, u.BodyNotHttplibCompatible), ProtocolError, "the answer is not HTTP", None),
    ((u.ProtocolError, r.ChunkedEncodingError), ConnectionLost, "the connection was cut", None),
    ((u.HostChangedError, r.TooManyRedirects), ProtocolError, "redirected", None),
    (
        (r.InvalidJSONError, r.HTTPError, u.ResponseError, r.RetryError),
        ProtocolError,
        "an unexpected answer",
        None,
    ),
    (
        (u.UnrewindableBodyError, r.UnrewindableBodyError, r.StreamConsumedError),
        ConnectionLost,
        "sent half",
        None,
    ),
    ((http.client.HTTPException,), ProtocolError, "the answer is not HTTP", None),
    ((u.PoolError, r.ConnectionError), ConnectionLost, "the connection was cut", None),
    ((u.TimeoutStateError, r.RequestException, u.HTTPError), ConnectionLost, "the exchange failed", None),
    ((OSError,), ConnectionLost, None, None),
)


def build_transport_error(
    error: Exception, *, host: str, what: str, address: str, connect_s: float, idle_s: float
) -> OllamaopsError:
    """Our error for a failed exchange. `address` is host and port, `what` was asked for, the rest are the limits."""
    cause, (_, kind, why, hint) = find_row(error)
    reason = (why or _words_of(cause)).format(
        connect=format_duration(connect_s), idle=format_duration(idle_s)
    )
    place = f" ({address})" if issubclass(kind, ConnectError | TlsError) else ""
    message = ": ".join(part for part in (host, what, reason + place) if part)
    if issubclass(kind, RemoteError):
        return kind(message, host=host, hint=hint)
    return kind(message, hint=hint)


def find_row(error: BaseException) -> tuple[BaseException, Row]:
    """The first row of the table that fits a cause of `error`, and that cause."""
    causes = list(_causes(error))
    for row in _TABLE:
        for cause in causes:
            if isinstance(cause, row[0]):
                return cause, row
    return error, _TABLE[-1]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything it wraps: as argument, as reason, as cause or context."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (*current.args, getattr(current, "reason", None), current.__cause__, current.__context__)
        waiting.extend(item for item in inner if isinstance(item, BaseException))


def _words_of(error: BaseException) -> str:
    """What the system says of a failure, without its numbers: `no route to host`."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = getattr(cause, "verify_message", "") or "not trusted"
            return f"the certificate is not accepted: {reason.lower()}"
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "reason", None) or "handshake failed"
            return f"no TLS connection: {reason.replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return os.strerror(cause.errno).lower()
    return "no TLS connection" if isinstance(error, u.SSLError | r.SSLError) else "the exchange failed"
