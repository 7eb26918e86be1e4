"""Asks registries for manifests and small blobs, over the v2 API, as an Ollama server would see them.

One method per question, no retries, no policy. Everything it raises is a RemoteError whose `host` is the registry.
The fact a reader would miss: a manifest is first asked for with the one media type that Ollama asks for, because a
registry may answer other media types with other bytes; only where that finds nothing are all the others offered.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from urllib.parse import urlsplit

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    DigestMismatch,
    InvalidRequest,
    InvalidValue,
    NotFound,
    ProtocolError,
    ServerFault,
    TlsError,
    TooManyRequests,
    cut_text,
)
from ollamaops.http.exchange import (
    PATIENCE,
    Answer,
    Exchange,
    Question,
    origin_of,
)
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

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_TOKEN_BYTES = 256 * 1024

_ANY_MANIFEST = ", ".join((MANIFEST_TYPE, OCI_MANIFEST_TYPE, LIST_TYPE, OCI_INDEX_TYPE))
_USER_AGENT = "ollamaops"
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SMALL_PATIENCE = 2
_NO_LOGIN_HINT = (
    "check that the model is there and public: ollamaops has no login for registries, so sizes and locks stay "
    "unknown; plan and apply ask none with --no-registry, and hosts pull with their own key"
)
_PLAIN_HTTP_HINT = "if the registry speaks plain http, say insecure: true with the model"


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """User and password for one registry."""

    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of an Authorization header (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token for one registry, sent with every request to it."""

    token: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of an Authorization header (RFC 6750)."""
        return f"Bearer {self.token}"


Credentials = BasicCredentials | BearerToken


@dataclass(frozen=True, slots=True)
class _Target:
    """A repository on a registry: `base_url` ends before `/v2/`."""

    host: str
    base_url: str
    repository: str

    def url(self, kind: str, reference: str) -> str:
        return f"{self.base_url}/v2/{self.repository}/{kind}/{reference}"


class RegistryClient:
    """A client of any number of registries, to be closed or used with `with`. Safe with several threads.

    * `timeout_s` bounds connecting and each silence; a whole manifest or token may take twice as long, a blob ten
      times.
    * `insecure` are registry hosts that are asked over plain http, as `insecure: true` does for one model.
    * `endpoints` overrides the base URL of a registry host: `{"registry.ollama.ai": "http://127.0.0.1:5001"}`.
    * `credentials` and `headers` are per registry host and never sent to another one.
    * `verify` is True, False or the path of a CA bundle.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        insecure: Collection[str] = (),
        endpoints: Mapping[str, str] | None = None,
        credentials: Mapping[str, Credentials] | None = None,
        headers: Mapping[str, Mapping[str, str]] | None = None,
        verify: bool | str = True,
    ) -> None:
        self._exchange = Exchange(timeout_s=timeout_s, verify=verify)
        self._insecure = {host.lower() for host in insecure}
        self._endpoints = {host.lower(): url.rstrip("/") for host, url in (endpoints or {}).items()}
        self._credentials = {host.lower(): value for host, value in (credentials or {}).items()}
        self._headers = {host.lower(): value for host, value in (headers or {}).items()}
        self._granted: dict[_Target, str] = {}

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._exchange.close()

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

    def _target(self, name: ModelName, insecure: bool) -> _Target:
        host = name.registry_host.lower()
        scheme = "http" if insecure or host in self._insecure else "https"
        base_url = self._endpoints.get(host, f"{scheme}://{host}")
        return _Target(name.registry_host, base_url, name.repository)

    def _ask(
        self,
        target: _Target,
        url: str,
        subject: str,
        *,
        method: str = "GET",
        accept: str = "*/*",
        max_bytes: int | None = MAX_MANIFEST_BYTES,
        patience: int = PATIENCE,
    ) -> Answer:
        """The answer after redirects, and after one round of authentication if the registry asked for it."""
        public = {"User-Agent": _USER_AGENT, "Accept": accept}
        private = self._private(target)
        question = Question(method, url, target.host, subject, max_bytes, public, private, patience)
        try:
            return self._authorized(target, question, self._exchange.ask)
        except TlsError as error:
            error.hint = error.hint or _PLAIN_HTTP_HINT
            raise

    def _authorized(self, target: _Target, question: Question, ask: Callable[[Question], Answer]) -> Answer:
        """What `ask` finds; asked once more with new authorization when the registry itself says 401."""
        answer = ask(question)
        if answer.status != 401 or origin_of(answer.url) != origin_of(target.base_url):
            return answer
        granted = self._authorize(target, answer.headers.get("WWW-Authenticate", ""))
        if granted is None:
            return answer
        self._granted[target] = granted
        return ask(replace(question, private=self._private(target)))

    def _private(self, target: _Target) -> dict[str, str]:
        """The headers that only this registry may see."""
        host = target.host.lower()
        headers = dict(self._headers.get(host, {}))
        credentials = self._credentials.get(host)
        if isinstance(credentials, BearerToken):
            headers["Authorization"] = credentials.header
        elif target in self._granted:
            headers["Authorization"] = self._granted[target]
        return headers

    def _authorize(self, target: _Target, header: str) -> str | None:
        """The Authorization that the first usable challenge leads to; None when there is nothing to offer."""
        credentials = self._credentials.get(target.host.lower())
        if isinstance(credentials, BearerToken):
            return None
        for challenge in parse_challenges(header):
            if challenge.scheme == "bearer":
                return self._fetch_token(target, challenge)
            if challenge.scheme == "basic" and credentials:
                return credentials.header
        return None

    def _fetch_token(self, target: _Target, challenge: Challenge) -> str:
        """`Bearer …` from the realm of the challenge, asked with credentials if they are for it."""
        url = token_url(challenge, default_scope=f"repository:{target.repository}:pull")
        if url is None:
            raise ProtocolError(f"{target.host}: asks for a token from no valid address", host=target.host)
        subject = f"token from {urlsplit(url).netloc}"
        credentials = self._credentials_for_realm(target, url)
        private = {"Authorization": credentials.header} if credentials else {}
        public = {"User-Agent": _USER_AGENT, "Accept": "application/json"}
        question = Question(
            "GET", url, target.host, subject, MAX_TOKEN_BYTES, public, private, _SMALL_PATIENCE
        )
        answer = self._exchange.ask(question)
        _raise_for_status(answer, target.host, subject)
        return f"Bearer {_parse_token(answer.body, target.host, subject)}"

    def _credentials_for_realm(self, target: _Target, url: str) -> Credentials | None:
        """Those of the registry on its own origin, else those given for the realm's host; never down to http."""
        realm, registry = origin_of(url), origin_of(target.base_url)
        if realm == registry:
            return self._credentials.get(target.host.lower())
        if realm[0] == "http" and registry[0] == "https":
            return None
        return self._credentials.get(urlsplit(url).netloc.lower())


def _fetched(
    name: ModelName, answer: Answer, host: str, subject: str, child: Digest | None
) -> FetchedManifest:
    digest = Digest.of(answer.body)
    claimed = _header_digest(answer, host, subject)
    for expected in filter(None, (claimed, child)):
        _check_digest(answer.body, expected, host, subject)
    try:
        document = parse_document(answer.body)
    except ProtocolError as error:
        raise ProtocolError(f"{host}: {subject}: {error}", host=host) from None
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    return FetchedManifest(name, answer.body, digest, content_type, claimed, document)


def _header_digest(answer: Answer, host: str, subject: str) -> Digest | None:
    """What Docker-Content-Digest says; None when it is not there or not SHA-256."""
    text = answer.headers.get("Docker-Content-Digest", "").strip()
    if not text.startswith("sha256:"):
        return None
    try:
        return Digest.parse(text)
    except InvalidValue:
        raise ProtocolError(f"{host}: {subject}: Docker-Content-Digest is no digest", host=host) from None


def _check_digest(body: bytes, expected: Digest, host: str, subject: str) -> None:
    found = Digest.of(body)
    if found != expected:
        raise DigestMismatch(
            f"{host}: {subject}: the bytes have the digest {found}, not {expected}",
            host=host,
            status=200,
            hint="the registry, or something before it, changed what was stored there",
        )


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
    kind, hint = _error_kind(answer.status)
    text = _error_text(answer.body)
    why = f"status {answer.status}" + (f", {text}" if text else "")
    raise kind(
        f"{host}: {subject}: {why}",
        host=host,
        status=answer.status,
        text=text,
        retry_after_s=_retry_after_s(answer.headers.get("Retry-After", "")),
        hint=hint,
    )


def _error_kind(status: int) -> tuple[type[AnswerError], str | None]:
    match status:
        case 401 | 403:
            return AccessDenied, _NO_LOGIN_HINT
        case 404:
            return NotFound, "check the name and the tag"
        case 429:
            return TooManyRequests, None
        case _ if status < 500:
            return InvalidRequest, None
        case _:
            return ServerFault, None


def _error_text(body: bytes) -> str:
    """The messages of the registry's JSON errors, else the text of the answer; one line, cut."""
    text = body.decode("utf-8", errors="replace")
    try:
        errors = json.loads(text)["errors"]
        return cut_text(", ".join(str(error["message"]) for error in errors))
    except (ValueError, RecursionError, LookupError, TypeError):
        return "" if text.lstrip().startswith("<") else cut_text(text)


def _retry_after_s(header: str) -> float | None:
    """Seconds in a Retry-After header, which is a number or a date (RFC 9110 §10.2.3); never negative."""
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
