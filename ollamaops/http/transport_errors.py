"""Which error a failed exchange is: the exceptions of requests, urllib3, http.client, ssl and the OS, mapped once.

The outer exception says little (requests wraps urllib3, urllib3 wraps the OS), so the whole chain of causes is
searched, and the first row of the table that fits any of them wins. Messages are in our own words, because foreign
ones carry addresses of objects, URLs and header values, which may be secret.
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
from msgspec import Struct

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


class Hints(Struct, frozen=True, kw_only=True):
    """What to do about a failure. A host and a registry are set up in different places, so each has its own."""

    unknown_name: str | None = None
    untrusted: str | None = None
    """The certificate is not accepted."""
    no_tls: str | None = None
    """The TLS handshake failed; the server may speak plain http."""
    is_tls: str | None = None
    """The answer is not HTTP; the server may speak TLS."""
    refused: str | None = None
    unreachable: str | None = None
    address: str | None = None
    """The address cannot be used at all."""
    foreign: str | None = None
    """Something else than what was meant may be answering."""
    proxy: str | None = "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"


# exceptions → our error, why (None: the system's words), field of Hints. The first row that fits a cause wins.
Row = tuple[tuple[type[BaseException], ...], type[OllamaopsError], str | None, str | None]
_TABLE: Final[tuple[Row, ...]] = (
    (
        (u.NameResolutionError, socket.gaierror),
        ConnectError,
        "the name of the host is not known",
        "unknown_name",
    ),
    ((ssl.SSLCertVerificationError, ssl.CertificateError), TlsError, None, "untrusted"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), ConnectionLost, "the connection was cut", None),
    ((ssl.SSLError, u.SSLError, r.SSLError), TlsError, None, "no_tls"),
    (
        (u.ProxySchemeUnknown, u.ProxySchemeUnsupported),
        InvalidValue,
        "this kind of proxy is not supported",
        "proxy",
    ),
    ((r.InvalidProxyURL,), InvalidValue, "the address of the proxy cannot be read", "proxy"),
    ((u.ProxyError, r.ProxyError), ConnectError, "the proxy does not let us through", "proxy"),
    ((ConnectionRefusedError,), ConnectError, "connection refused", "refused"),
    ((u.NewConnectionError,), ConnectError, None, "unreachable"),
    (
        (u.ConnectTimeoutError, r.ConnectTimeout),
        ConnectError,
        "no connection within {connect}",
        "unreachable",
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
        "address",
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
        "is_tls",
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
    error: Exception,
    *,
    host: str,
    what: str,
    address: str,
    connect_s: float,
    idle_s: float,
    hints: Hints | None = None,
) -> OllamaopsError:
    """Our error for a failed exchange. `address` is host and port, `what` was asked for, the rest are the limits."""
    cause, (_, kind, why, hint_name) = find_row(error)
    reason = (why or _words_of(cause)).format(
        connect=format_duration(connect_s), idle=format_duration(idle_s)
    )
    hint = getattr(hints or Hints(), hint_name) if hint_name else None
    place = f" ({address})" if issubclass(kind, ConnectError | TlsError) and address != host else ""
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
    """What the system says about a failure, without its numbers: `no route to host`."""
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
