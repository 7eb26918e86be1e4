"""HTTP to a registry as the server's own Go client speaks it: one request at a time, errors in Go's words.

Redirects are followed only where the caller says so, because pulling a blob depends on the one that is not.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlencode, urljoin, urlsplit

_TIMEOUT_S = 30.0
_REDIRECTS = 10
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(Exception):
    """What the server says of a failed request."""


class RegistryNotFound(RegistryError):
    """404."""

    def __init__(self) -> None:
        super().__init__("file does not exist")


@dataclass(frozen=True)
class Reply:
    """An answer whose head was read; `body` is still open."""

    status: int
    headers: Mapping[str, str]
    body: http.client.HTTPResponse
    url: str

    def location(self) -> str:
        """Where the answer points to, absolute; empty when it does not."""
        target = self.headers.get("docker-upload-location") or self.headers.get("location", "")
        return urljoin(self.url, target) if target else ""

    def read(self) -> bytes:
        """The rest of the body. RegistryError when it is cut."""
        try:
            return self.body.read()
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError("unexpected EOF") from error

    def read_some(self, most: int) -> bytes:
        """The next bytes of the body as they arrive. RegistryError when there are no more."""
        try:
            data = self.body.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError("unexpected EOF") from error
        if not data:
            raise RegistryError("EOF")
        return data


class RegistryHTTP:
    """Requests to one registry, with the token that it asked for."""

    def __init__(self, user_agent: str) -> None:
        self._user_agent = user_agent
        self._token = ""

    @contextmanager
    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        follow: bool = True,
    ) -> Iterator[Reply]:
        """The answer below 400, after getting a token if the registry wants one. RegistryError.

        With `follow` False, a redirect to another host name is an answer.
        """
        with self._once(method, url, headers or {}, body, follow=follow) as reply:
            if reply.status != 401:
                _check(reply)
                yield reply
                return
            self._token = self._fetch_token(reply)
        with self._once(method, url, headers or {}, body, follow=follow) as reply:
            _check(reply)
            yield reply

    @contextmanager
    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None,
        *,
        follow: bool,
    ) -> Iterator[Reply]:
        first = urlsplit(url).hostname
        for _ in range(_REDIRECTS + 1):
            with self._send(method, url, headers, body) as reply:
                target = reply.location() if reply.status in {301, 302, 303, 307, 308} else ""
                if not target or (not follow and urlsplit(target).hostname != first):
                    yield reply
                    return
                url = target
        raise RegistryError(f"{method.capitalize()} {json.dumps(url)}: stopped after {_REDIRECTS} redirects")

    @contextmanager
    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | BinaryIO | None
    ) -> Iterator[Reply]:
        parts = urlsplit(url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        sent = {"User-Agent": self._user_agent, **headers}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            try:
                connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), body, sent)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                reason = go_reason(error, parts.hostname or "", connection.port)
                raise RegistryError(f"{method.capitalize()} {json.dumps(url)}: {reason}") from error
            found = {key.lower(): value for key, value in response.getheaders()}
            yield Reply(response.status, found, response, url)
        finally:
            connection.close()

    def _fetch_token(self, reply: Reply) -> str:
        challenge = dict(_CHALLENGE.findall(reply.headers.get("www-authenticate", "")))
        realm = challenge.pop("realm", "")
        if not realm:
            raise RegistryError("unauthorized: access denied")
        with self._once("GET", f"{realm}?{urlencode(challenge)}", {}, None, follow=True) as answer:
            if answer.status >= 400:
                raise RegistryError("unauthorized: access denied")
            try:
                document = json.loads(answer.read())
            except ValueError as error:
                raise RegistryError(str(error)) from error
        token = document.get("token") or document.get("access_token") if isinstance(document, dict) else ""
        return str(token or "")


def _check(reply: Reply) -> None:
    if reply.status == 401:
        raise RegistryError("unauthorized: access denied")
    if reply.status == 404:
        raise RegistryNotFound
    if reply.status >= 400:
        text = reply.read().decode("utf-8", "replace")
        raise RegistryError(f"{reply.status}: {text}")


def go_reason(error: Exception, host: str, port: int) -> str:
    """Why a connection failed, as Go's net/http says it."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"tls: failed to verify certificate: {error.verify_message}"
        case ssl.SSLError():
            return "http: server gave HTTP response to HTTPS client"
        case socket.gaierror():
            return f"dial tcp: lookup {host}: no such host"
        case ConnectionRefusedError():
            return f"dial tcp {host}:{port}: connect: connection refused"
        case TimeoutError():
            return f"dial tcp {host}:{port}: i/o timeout"
        case _:
            return "EOF"
