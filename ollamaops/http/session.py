"""How one host is connected to: address, credentials, headers, certificates, proxies, limits of time.

Decides what a session is made of, asks nothing. Easily missed: a secret is in clear here, so it is in no `repr` and
no message, and a header that HTTP cannot carry is refused before requests would quote it.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from requests.utils import get_environ_proxies

from ollamaops.about import __version__
from ollamaops.errors import InvalidValue, TlsError
from ollamaops.http.connection import WatchedAdapter
from ollamaops.http.redaction import Redaction, secrets_of_headers, secrets_of_proxy

_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\xa0-\xff]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a host asks for. Secrets are here in clear, and never in `repr`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
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


def build_headers(host_name: str, headers: Mapping[str, str], auth: Credentials | None) -> dict[str, str]:
    """What goes with every request. InvalidValue, without the value, for what HTTP cannot carry."""
    built = {
        "User-Agent": f"ollamaops/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        **headers,
    }
    if auth is not None and auth.header is not None:
        built = {name: value for name, value in built.items() if name.lower() != "authorization"}
        built["Authorization"] = auth.header
    for name, value in built.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise InvalidValue(
                f"{host_name}: the header '{name}' has characters that HTTP cannot carry",
                hint="a secret must be one line of plain characters without blanks around it",
            )
    return built


def build_redaction(
    headers: Mapping[str, str], auth: Credentials | None, proxies: Mapping[str, str]
) -> Redaction:
    """What no text of the server, or of a proxy before it, may show: all that tells who we are."""
    sent = {**headers, "Authorization": auth.header} if auth is not None and auth.header else headers
    return Redaction(
        [*secrets_of_headers(sent), *(s for url in proxies.values() for s in secrets_of_proxy(url))]
    )


def build_session(host_name: str, tls: TlsFiles) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = WatchedAdapter(pool_connections=2, pool_maxsize=32)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    _check_tls_files(host_name, tls)
    if tls.cert is not None:
        session.cert = (tls.cert, tls.key) if tls.key is not None else tls.cert
    session.verify = tls.verify and (tls.ca or _authorities_of_environment() or True)
    return session


def _check_tls_files(host_name: str, tls: TlsFiles) -> None:
    """TlsError, which names the file, for one that is missing or not what it should be.

    Found out only while connecting, it would look like a fault of the server.
    """
    for path in filter(None, (tls.ca, tls.cert, tls.key)):
        if not Path(path).exists():
            raise TlsError(f"{host_name}: tls: no file '{path}'", host=host_name)
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
    """The error with the reason, as far as OpenSSL tells one that people can read."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    why = (
        f" ({str(reason).replace('_', ' ').lower()})" if reason and "unknown error" not in str(reason) else ""
    )
    return TlsError(
        f"{host_name}: tls: {what}{why}",
        host=host_name,
        hint="it must be PEM: text between BEGIN and END lines",
    )


def _authorities_of_environment() -> str | None:
    """The bundle that the environment names, as requests and OpenSSL users expect; None: requests' own."""
    named = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return next((path for path in named if path and Path(path).exists()), None)


def choose_proxies(url: str, proxy: str | None) -> dict[str, str]:
    """An explicit proxy always; those of the environment unless NO_PROXY or loopback says otherwise."""
    if proxy is not None:
        return {"http": proxy, "https": proxy} if proxy else {}
    return {} if _is_loopback(urlsplit(url).hostname or "") else get_environ_proxies(url)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
