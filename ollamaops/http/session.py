"""How we connect: credentials, certificates, proxies, limits of time, and the pool of connections that has them.

Nothing is asked here. Secrets are in clear here, so they appear in no `repr` and no message, and a header that HTTP
cannot carry is refused before requests would quote it.
"""

from __future__ import annotations

import base64
import copy
import ipaddress
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from msgspec import Struct
from requests.utils import get_environ_proxies

from ollamaops.about import __version__
from ollamaops.errors import InvalidValue, TlsError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.connection import WatchedAdapter
from ollamaops.http.file_body import Upload
from ollamaops.http.redaction import Redaction, secrets_of_headers, secrets_of_proxy
from ollamaops.http.transport_errors import Hints

OUR_HEADERS: Final = {
    "User-Agent": f"ollamaops/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
"""What goes with every request unless the caller says otherwise."""

_PORTS: Final = {"http": 80, "https": 443}
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\xa0-\xff]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class TimeLimits(Struct, frozen=True, kw_only=True):
    """Seconds. `connect_s`: until connected; `idle_s`: silence in a quick answer.

    `stall_s`: a transfer without new bytes, and answers that may wait for a disk; `quiet_s`: silence of a server
    that hashes, converts or loads a model, which says nothing for minutes. `overall_s`: a whole exchange, from the
    first byte sent to the last received; None for no bound.
    """

    connect_s: float = 30.0
    idle_s: float = 30.0
    stall_s: float = 300.0
    quiet_s: float = 3600.0
    overall_s: float | None = None


class Credentials(Struct, frozen=True, kw_only=True):
    """What a server asks for. Secrets are here in clear, and never in `repr`."""

    bearer: str | None = None
    basic: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"Credentials({'bearer' if self.bearer else 'basic' if self.basic else 'none'})"

    @property
    def header(self) -> str | None:
        """The value of Authorization (RFC 6750, RFC 7617 with UTF-8), None without credentials."""
        if self.bearer is not None:
            return f"Bearer {self.bearer}"
        if self.basic is not None:
            return "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return None


class TlsFiles(Struct, frozen=True, kw_only=True):
    """PEM files: `ca` trusted authorities instead of the usual ones, `cert` and `key` what we show the host."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True


def split_credentials(host_name: str, url: str) -> tuple[str, Credentials | None]:
    """The URL without a trailing slash and without user and password, which become basic auth."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise InvalidValue(
            f"{host_name}: the address of the host cannot be used", hint="write url as http://host:port"
        )
    user_info, _, address = parts.netloc.rpartition("@")
    clean = urlunsplit((parts.scheme, address, parts.path.rstrip("/"), "", ""))
    if not user_info:
        return clean, None
    user, _, password = user_info.partition(":")
    return clean, Credentials(basic=(unquote(user), unquote(password)))


def check_headers(host_name: str, headers: Mapping[str, str]) -> None:
    """InvalidValue, without the value, for a header that HTTP cannot carry."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise InvalidValue(
                f"{host_name}: the header '{name}' has characters that HTTP cannot carry",
                hint="a secret must be one line of plain characters without blanks around it",
            )


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL, the default port filled in."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


class HttpSession:
    """A pool of connections, for one host or for many servers. Safe to use from several threads.

    `proxy` overrides the environment; "" means none. `cancel` ends every exchange. `hints` say what to do about a
    failure, since a host and a registry are set up in different places. TlsError for a file of `tls` that is missing
    or not what it should be; `host_name` is for its message.
    """

    def __init__(
        self,
        host_name: str = "",
        *,
        tls: TlsFiles | None = None,
        proxy: str | None = None,
        limits: TimeLimits | None = None,
        cancel: CancelToken | None = None,
        hints: Hints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or TimeLimits()
        self.cancel = cancel or CancelToken()
        self.hints = hints or Hints()
        self.clock = clock
        self._proxy = proxy
        self._proxies: dict[tuple[str, str, int], dict[str, str]] = {}
        self._requests = _Session(host_name, tls or TlsFiles())

    @property
    def requests_sent(self) -> int:
        """How many requests went out, also through copies of this session."""
        return self._requests.count

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called, here or on a copy."""
        return self._requests.is_closed

    def close(self) -> None:
        """Drop the pooled connections."""
        self._requests.is_closed = True
        self._requests.close()

    def renew_connections(self) -> None:
        """Forget idle connections, so that the next requests connect anew."""
        self._requests.close()

    def without_cancel(self) -> HttpSession:
        """The same pool, for requests that must go on when the run is cancelled."""
        session = copy.copy(self)
        session.cancel = CancelToken()
        return session

    def proxies_for(self, url: str) -> dict[str, str]:
        """An explicit proxy always; those of the environment unless NO_PROXY or loopback says otherwise."""
        if self._proxy is not None:
            return {"http": self._proxy, "https": self._proxy} if self._proxy else {}
        origin = origin_of(url)
        if origin not in self._proxies:
            self._proxies[origin] = {} if _is_loopback(origin[1]) else get_environ_proxies(url)
        return self._proxies[origin]

    def redaction(self, url: str, private: Mapping[str, str]) -> Redaction:
        """What no text of a server, or of a proxy before it, may show: all that tells who we are."""
        proxies = self.proxies_for(url).values()
        return Redaction(
            [
                *secrets_of_headers(private),
                *(secret for proxy in proxies for secret in secrets_of_proxy(proxy)),
            ]
        )

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Upload | None, idle_s: float
    ) -> requests.Response:
        """The head of one answer, its body still to be read. Raises what requests and urllib3 raise."""
        session = self._requests
        request = session.prepare_request(
            requests.Request(method, url, headers={**OUR_HEADERS, **headers}, data=body)
        )
        session.count += 1
        return session.send(
            request,
            stream=True,
            allow_redirects=False,
            timeout=(min(self.limits.connect_s, idle_s), idle_s),
            proxies=self.proxies_for(url),
            verify=session.verify,
            cert=session.cert,
        )


class _Session(requests.Session):
    """requests' session without what it does by itself: no netrc, no cookies, no redirects."""

    def __init__(self, host_name: str, tls: TlsFiles) -> None:
        super().__init__()
        self.count = 0
        self.is_closed = False
        self.trust_env = False  # or ~/.netrc would be read
        self.headers.clear()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = WatchedAdapter(pool_maxsize=32)
        self.mount("http://", adapter)
        self.mount("https://", adapter)
        _check_tls_files(host_name, tls)
        if tls.cert is not None:
            self.cert = (tls.cert, tls.key) if tls.key is not None else tls.cert
        self.verify = tls.verify and (tls.ca or _authorities_of_environment() or True)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nothing to follow.

        Even when told not to follow redirects, requests would read the whole body of one and parse where it leads.
        """


def _check_tls_files(host_name: str, tls: TlsFiles) -> None:
    """TlsError, which names the file, for one that is missing or not what it should be.

    If it were only found while connecting, it would look like a fault of the server.
    """
    for path in filter(None, (tls.ca, tls.cert, tls.key)):
        if not Path(path).exists():
            raise TlsError(_named(host_name, f"tls: no file '{path}'"), host=host_name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None and not Path(tls.ca).is_dir():
        try:
            context.load_verify_locations(tls.ca)
        except (OSError, ValueError) as error:
            raise _bad_file(host_name, f"ca: '{tls.ca}' holds no certificate", error) from error
    if tls.cert is not None:
        key = f" with the key '{tls.key}'" if tls.key is not None else ""
        try:
            context.load_cert_chain(tls.cert, tls.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise _bad_file(host_name, f"cert: '{tls.cert}'{key} cannot be used", error) from error


def _no_password() -> str:
    """In place of OpenSSL's question on the terminal."""
    raise ValueError("the key has a password")


def _bad_file(host_name: str, what: str, error: OSError | ValueError) -> TlsError:
    """The error, with OpenSSL's reason where that is readable."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    why = (
        f" ({str(reason).replace('_', ' ').lower()})" if reason and "unknown error" not in str(reason) else ""
    )
    return TlsError(
        _named(host_name, f"tls: {what}{why}"),
        host=host_name,
        hint="it must be PEM: text between BEGIN and END lines",
    )


def _named(host_name: str, text: str) -> str:
    return f"{host_name}: {text}" if host_name else text


def _authorities_of_environment() -> str | None:
    """The bundle that the environment names; None for the one of requests.

    REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE are what requests reads itself, SSL_CERT_FILE is OpenSSL's.
    """
    named = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return next((path for path in named if path and Path(path).exists()), None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
