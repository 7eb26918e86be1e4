"""Asks registries for manifests and small blobs, over the v2 API, as an Ollama server would see them.

One method per question, no retries. Everything it raises is Cancelled, or a RemoteError whose `host` is the registry.

A manifest is first asked for with the one media type that Ollama asks for, because a registry may answer other media
types with other bytes. The others are offered only when that finds nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.errors import (
    DigestMismatch,
    InvalidValue,
    ProtocolError,
    cut_text,
)
from ollamaops.files.gguf_types import GgufHeader
from ollamaops.http.answer import Answer, error_kind, parse_retry_after
from ollamaops.http.cancel import CancelToken
from ollamaops.http.exchange import Request
from ollamaops.http.redirects import Fetcher
from ollamaops.http.session import HttpSession, TimeLimits, TlsFiles, origin_of
from ollamaops.http.transport_errors import Hints
from ollamaops.names import Digest, ModelName
from ollamaops.registry.challenge import Challenge, parse_challenges, token_url
from ollamaops.registry.documents import (
    LIST_TYPE,
    MANIFEST_TYPE,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    FetchedManifest,
    parse_document,
)
from ollamaops.registry.remote_header import read_remote_header

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_TOKEN_BYTES = 256 * 1024

_ANY_MANIFEST = ", ".join((MANIFEST_TYPE, OCI_MANIFEST_TYPE, LIST_TYPE, OCI_INDEX_TYPE))
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_PATIENCE, _SMALL_PATIENCE = 10, 2  # times the timeout
_NO_LOGIN_HINT = (
    "check that the model is there and public: ollamaops has no login for registries, so sizes and locks stay "
    "unknown; plan and apply ask none with --no-registry, and hosts pull with their own key"
)
_STATUS_HINTS = {401: _NO_LOGIN_HINT, 403: _NO_LOGIN_HINT, 404: "check the name and the tag"}
_HINTS = Hints(
    untrusted="name the file with the authority that signed it in SSL_CERT_FILE",
    no_tls="if the registry speaks plain http, say insecure: true with the model",
)


class _Target(Struct, frozen=True):
    """A repository on a registry: `base_url` ends before `/v2/`."""

    host: str
    base_url: str
    repository: str

    def url(self, kind: str, reference: str) -> str:
        return f"{self.base_url}/v2/{self.repository}/{kind}/{reference}"


class RegistryClient:
    """A client of any number of registries, to be closed or used with `with`. Safe with several threads.

    `timeout_s` bounds connecting and each silence. A whole manifest or token may take twice as long, a blob ten
    times.
    `endpoints` overrides the base URL of a registry host: `{"registry.ollama.ai": "http://127.0.0.1:5001"}`.
    `cancel` ends every question, which then raises Cancelled.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        endpoints: Mapping[str, str] | None = None,
        tls: TlsFiles | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        limits = TimeLimits(connect_s=timeout_s, idle_s=timeout_s)
        self._session = HttpSession(tls=tls, limits=limits, cancel=cancel, hints=_HINTS)
        self._fetcher = Fetcher(self._session)
        self._endpoints = {host.lower(): url.rstrip("/") for host, url in (endpoints or {}).items()}
        self._granted: dict[_Target, str] = {}

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def manifest(
        self, name: ModelName, insecure: bool = False, *, child: Digest | None = None
    ) -> FetchedManifest:
        """What the registry has under the tag of `name`, or the `child` of a list of manifests.

        NotFound, AccessDenied, TooManyRequests and the like by status; DigestMismatch when the bytes are not
        what the registry's Docker-Content-Digest (or `child`) says; ProtocolError when they are no manifest.
        """
        target = self._target(name, insecure)
        url = target.url("manifests", str(child) if child else name.tag)
        subject = f"manifest of {name.display}"
        ask = partial(self._ask, target, url, subject, patience=_SMALL_PATIENCE)
        answer = ask(accept=_ANY_MANIFEST if child else MANIFEST_TYPE)
        if answer.status in (404, 406) and child is None:
            answer = ask(accept=_ANY_MANIFEST)
        _raise_for_status(answer, target.host, subject)
        return _fetched(name, answer, target.host, subject, child)

    def tags(self, name: ModelName, insecure: bool = False) -> tuple[str, ...]:
        """The tags in the repository of `name`, as far as the registry lists them: ollama.com does not. Errors as
        those of `manifest`."""
        target = self._target(name, insecure)
        subject = f"tags of {name.display}"
        answer = self._ask(target, f"{target.base_url}/v2/{target.repository}/tags/list", subject)
        _raise_for_status(answer, target.host, subject)
        return _parse_tags(answer.body, target.host, subject)

    def blob_exists(self, name: ModelName, digest: Digest, insecure: bool = False) -> bool:
        """Whether the registry has the blob in the repository of `name`; its bytes are not read."""
        target = self._target(name, insecure)
        subject = f"blob {digest.short} of {name.display}"
        answer = self._ask(target, target.url("blobs", str(digest)), subject, method="HEAD")
        if answer.status == 404:
            return False
        if answer.status in (403, 405) and origin_of(answer.url) != origin_of(target.base_url):
            return True  # redirected to a store whose signed URLs are for GET only
        _raise_for_status(answer, target.host, subject)
        return True

    def blob(self, name: ModelName, digest: Digest, max_bytes: int, insecure: bool = False) -> bytes:
        """The bytes of a small blob (template, parameters, license), checked against `digest`.

        ProtocolError when it is larger than `max_bytes`, DigestMismatch when it is something else.
        """
        target = self._target(name, insecure)
        subject = f"blob {digest.short} of {name.display}"
        answer = self._ask(target, target.url("blobs", str(digest)), subject, max_bytes=max_bytes)
        _raise_for_status(answer, target.host, subject)
        _check_digest(answer.body, digest, target.host, subject)
        return answer.body

    def blob_header(
        self, name: ModelName, digest: Digest, size_bytes: int, insecure: bool = False
    ) -> GgufHeader:
        """What a GGUF of that size says about itself; only its beginning is read, by ranges.

        Its bytes are not checked against `digest`.

        WeightsError when it is not a GGUF; ProtocolError when the registry gives no ranges.
        """
        target = self._target(name, insecure)
        subject = f"blob {digest.short} of {name.display}"
        url = target.url("blobs", str(digest))

        def fetch(start: int, end: int) -> bytes:
            asked = {"Range": f"bytes={start}-{end - 1}"}
            answer = self._ask(target, url, subject, headers=asked, max_bytes=end - start)
            _raise_for_status(answer, target.host, subject)
            if len(answer.body) != end - start or (answer.status != 206 and start):
                raise ProtocolError(f"{target.host}: {subject}: no range of it is given", host=target.host)
            return answer.body

        return read_remote_header(fetch, size_bytes, subject)

    def _target(self, name: ModelName, insecure: bool) -> _Target:
        host = name.registry_host
        base_url = self._endpoints.get(host.lower(), f"{'http' if insecure else 'https'}://{host}")
        return _Target(host, base_url, name.repository)

    def _ask(
        self,
        target: _Target,
        url: str,
        subject: str,
        *,
        method: str = "GET",
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
        max_bytes: int | None = MAX_MANIFEST_BYTES,
        patience: int = _PATIENCE,
    ) -> Answer:
        """The answer after redirects. When the registry itself says 401, asked once more with the token it wants."""
        request = Request(
            method=method,
            url=url,
            host=target.host,
            what=subject,
            headers={"Accept": accept, **(headers or {})},
            private=self._private(target),
            deadline_s=self._timeout_s * patience,
            max_bytes=max_bytes,
        )
        answer = self._fetcher.ask(request)
        if answer.status != 401 or origin_of(answer.url) != origin_of(target.base_url):
            return answer
        for challenge in parse_challenges(answer.headers.get("WWW-Authenticate", "")):
            if challenge.scheme == "bearer":
                self._granted[target] = self._fetch_token(target, challenge)
                return self._fetcher.ask(replace(request, private=self._private(target)))
        return answer

    def _private(self, target: _Target) -> dict[str, str]:
        """The headers that only this registry may see."""
        token = self._granted.get(target)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _fetch_token(self, target: _Target, challenge: Challenge) -> str:
        """The token that anybody gets from the realm of the challenge."""
        url = token_url(challenge, default_scope=f"repository:{target.repository}:pull")
        if url is None:
            raise ProtocolError(f"{target.host}: asks for a token from no valid address", host=target.host)
        subject = f"token from {urlsplit(url).netloc}"
        request = Request(
            method="GET",
            url=url,
            host=target.host,
            what=subject,
            headers={"Accept": "application/json"},
            deadline_s=self._timeout_s * _SMALL_PATIENCE,
            max_bytes=MAX_TOKEN_BYTES,
        )
        answer = self._fetcher.ask(request)
        _raise_for_status(answer, target.host, subject)
        return _parse_token(answer.body, target.host, subject)


def _fetched(
    name: ModelName, answer: Answer, host: str, subject: str, child: Digest | None
) -> FetchedManifest:
    for expected in filter(None, (_stated_digest(answer, host, subject), child)):
        _check_digest(answer.body, expected, host, subject)
    try:
        document = parse_document(answer.body)
    except ProtocolError as error:
        raise ProtocolError(f"{host}: {subject}: {error}", host=host) from None
    return FetchedManifest(name, answer.body, Digest.of(answer.body), document)


def _stated_digest(answer: Answer, host: str, subject: str) -> Digest | None:
    """What Docker-Content-Digest says; None when it is not there or not SHA-256."""
    text = answer.headers.get("Docker-Content-Digest", "").strip()
    if not text.startswith("sha256:"):
        return None
    try:
        return Digest.parse(text)
    except InvalidValue:
        raise ProtocolError(f"{host}: {subject}: Docker-Content-Digest is not a digest", host=host) from None


def _check_digest(body: bytes, expected: Digest, host: str, subject: str) -> None:
    found = Digest.of(body)
    if found != expected:
        raise DigestMismatch(
            f"{host}: {subject}: the bytes have the digest {found}, not {expected}",
            host=host,
            status=200,
            hint="the registry, or something before it, changed what was stored there",
        )


def _parse_tags(body: bytes, host: str, subject: str) -> tuple[str, ...]:
    """Those in `{"tags": […]}` that a model's name can have."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    tags = tree.get("tags") if isinstance(tree, dict) else None
    if not isinstance(tags, list):
        raise ProtocolError(f"{host}: {subject}: the answer has no list of tags", host=host)
    return tuple(tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag))


def _parse_token(body: bytes, host: str, subject: str) -> str:
    """The token in `{"token": …}` or `{"access_token": …}`."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    token = (tree.get("token") or tree.get("access_token")) if isinstance(tree, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ProtocolError(f"{host}: {subject}: the answer holds no token", host=host)
    return token


def _raise_for_status(answer: Answer, host: str, subject: str) -> None:
    """Nothing for 2xx; else the error of the tree, with the registry's own words."""
    if answer.is_ok:
        return
    text = _error_text(answer.body)
    why = f"status {answer.status}" + (f", {text}" if text else "")
    raise error_kind(answer.status)(
        f"{host}: {subject}: {why}",
        host=host,
        status=answer.status,
        text=text,
        retry_after_s=parse_retry_after(answer.headers.get("Retry-After")),
        hint=_STATUS_HINTS.get(answer.status),
    )


def _error_text(body: bytes) -> str:
    """The messages of the registry's JSON errors, else the text of the answer; one line, cut."""
    text = body.decode("utf-8", errors="replace")
    try:
        errors = json.loads(text)["errors"]
        return cut_text(", ".join(str(error["message"]) for error in errors))
    except (ValueError, RecursionError, LookupError, TypeError):
        return "" if text.lstrip().startswith("<") else cut_text(text)
