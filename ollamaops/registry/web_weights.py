"""Weights at web addresses and at Hugging Face: what is there (digest, size), and its bytes.

Asks with HEAD and fetches with GET and Range, through redirects, and resumes a download whose connection was cut.
Everything it raises is a RemoteError whose `host` is the web server, or a WeightsError.

Hugging Face tells the SHA-256 of a large file in the headers of its *redirect* (`X-Linked-Etag`); the storage behind
it does not. Headers: https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.parse import quote, urlsplit

from msgspec import Struct

from ollamaops.errors import (
    DigestMismatch,
    NotFound,
    ProtocolError,
    UsageError,
    WeightsError,
    cut_text,
)
from ollamaops.files.location import HubFile, RemoteFile, RemoteRef, parse_hub
from ollamaops.files.sniff import MAX_POINTER_BYTES, parse_lfs_pointer
from ollamaops.http.answer import Answer, error_kind, parse_retry_after
from ollamaops.http.cancel import CancelToken
from ollamaops.http.exchange import Exchange, Request
from ollamaops.http.redirects import Fetcher
from ollamaops.http.session import HttpSession, TimeLimits, TlsFiles, origin_of
from ollamaops.http.transport_errors import Hints
from ollamaops.names import Digest
from ollamaops.registry.download import Opened, RemoteStream
from ollamaops.registry.s3_weights import Bucket

HUB = "https://huggingface.co"
MAX_HOPS = 10

_HEX64 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_PATIENCE = 10  # times the timeout, for a whole answer that is not a download
_ACCESS_HINT = "for Hugging Face, accept the model's terms there and set HF_TOKEN"
_GONE_HINT = "check the address; Hugging Face also says this of private models without HF_TOKEN"
_STATUS_HINTS = {401: _ACCESS_HINT, 403: _ACCESS_HINT, 404: _GONE_HINT, 410: _GONE_HINT}
_HINTS = Hints(untrusted="name the file with the authority that signed it in SSL_CERT_FILE")
_ASK_AGAIN = frozenset({400, 403, 405, 501})  # what servers answer that know GET but not HEAD


class _Place(Struct, frozen=True):
    """A URL with what belongs to it: who answers there, what messages call it, headers for that origin alone."""

    url: str
    host: str
    subject: str
    private: Mapping[str, str]

    def request(
        self,
        method: str,
        headers: Mapping[str, str] | None = None,
        *,
        max_bytes: int | None = None,
        deadline_s: float | None = None,
    ) -> Request:
        return Request(
            method=method,
            url=self.url,
            host=self.host,
            what=self.subject,
            headers=headers or {},
            private=self.private,
            max_bytes=max_bytes,
            deadline_s=deadline_s,
        )


class RemoteWeights:
    """Finds and fetches remote weights; to be closed, or used with `with`. Safe with several threads.

    `environ` is read for HF_ENDPOINT and HF_TOKEN. `timeout_s` bounds connecting and each silence. `cancel` ends
    every question and download, which then raises Cancelled.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        timeout_s: float = 30.0,
        tls: TlsFiles | None = None,
        cancel: CancelToken | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        self._endpoint = (environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        self._token = environ.get("HF_TOKEN", "").strip()
        self._bucket = bucket or Bucket()
        self._deadline_s = timeout_s * _PATIENCE
        limits = TimeLimits(connect_s=timeout_s, idle_s=timeout_s)
        self._session = HttpSession(tls=tls, limits=limits, cancel=cancel, hints=_HINTS)
        self._fetcher = Fetcher(self._session, max_hops=MAX_HOPS)

    def __enter__(self) -> RemoteWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def resolve(self, ref: RemoteRef, known: Digest | None = None) -> RemoteFile:
        """What is at `ref` now. `known` is the digest that the manifest states.

        NotFound, AccessDenied and the like by status; DigestMismatch when Hugging Face has another file than `known`
        there; WeightsError for a web address without a `known` digest.
        """
        match ref.scheme:
            case "hf":
                return self._resolve_hub(ref, parse_hub(ref), known)
            case "s3":
                return self._bucket.resolve(ref, known)
            case _:
                return self._resolve_web(ref, known)

    def open(self, file: RemoteFile, *, offset: int = 0, version: str = "") -> RemoteStream:
        """The bytes of `file` from `offset` on, of that `version` (as an earlier stream had it) if it is given."""
        if file.ref.scheme == "s3":
            return self._bucket.open(file, offset=offset, version=version)
        place = self._place(file.ref, file.url)
        return RemoteStream(str(file.ref), self._opener(place, file), offset=offset, version=version)

    # web addresses

    def _resolve_web(self, ref: RemoteRef, known: Digest | None) -> RemoteFile:
        if known is None:
            raise WeightsError(
                f"{ref}: its digest is not known", hint=f"state it in the manifest: sha256: {{{ref}: …}}"
            )
        place = self._place(ref, ref.text)
        answer = self._fetcher.ask(place.request("HEAD", deadline_s=self._deadline_s))
        if answer.status in _ASK_AGAIN:
            with self._fetcher.open(place.request("GET", {"Range": "bytes=0-0"})) as opened:
                self._raise_for_status(opened, place)
                return _web_file(ref, known, opened.headers, _whole_size(opened))
        self._raise_for_status(answer, place)
        return _web_file(ref, known, answer.headers, _number(answer.headers.get("Content-Length")))

    def _place(self, ref: RemoteRef, url: str) -> _Place:
        address = urlsplit(url)
        private = {}
        if ref.scheme == "hf" and self._token and origin_of(url) == origin_of(self._endpoint):
            private = {"Authorization": f"Bearer {self._checked_token()}"}
        subject = ref.text.partition("://")[2] if ref.scheme == "hf" else address.path
        return _Place(url, address.netloc, subject, private)

    def _checked_token(self) -> str:
        if not _TOKEN.fullmatch(self._token):
            raise UsageError("the environment variable HF_TOKEN holds no token", hint="export HF_TOKEN=hf_…")
        return self._token

    def _opener(self, place: _Place, file: RemoteFile) -> Callable[[int, str], Opened]:
        def open_at(offset: int, version: str) -> Opened:
            answer = self._fetcher.open(place.request("GET", _range_from(offset, version)))
            try:
                self._raise_for_status(answer, place)
                return _opened(answer, offset, place)
            except BaseException:
                answer.close()
                raise

        return open_at

    def _raise_for_status(self, answer: Answer | Exchange, place: _Place) -> None:
        """Nothing for 2xx; else the error of the tree, with the words that Hugging Face puts into a header."""
        if answer.is_ok:
            return
        status, redaction = answer.status, self._session.redaction(place.url, place.private)
        said = cut_text(redaction.hide(answer.headers.get("X-Error-Message", "")))
        kind = NotFound if status == 410 else error_kind(status)
        raise kind(
            f"{place.host}: {place.subject}: status {status}" + (f", {said}" if said else ""),
            host=place.host,
            status=status,
            text=said,
            retry_after_s=parse_retry_after(answer.headers.get("Retry-After")),
            hint=_STATUS_HINTS.get(status),
        )

    # Hugging Face

    def _resolve_hub(self, ref: RemoteRef, hub: HubFile, known: Digest | None) -> RemoteFile:
        self._check_endpoint()
        place = self._place(ref, self._hub_url(hub, "resolve", hub.revision))
        hops = self._ask_hub(place)
        commit = _first(hops, "X-Repo-Commit")
        etag = _first(hops, "X-Linked-Etag") or hops[-1].headers.get("ETag", "")
        size = _number(_first(hops, "X-Linked-Size"))
        if size is None and hops[-1].is_ok:
            size = _number(hops[-1].headers.get("Content-Length"))
        revision = commit or hub.revision
        digest = _digest_in(etag) or self._digest_of_pointer(ref, hub, revision)
        _check_known(ref, place, known, digest)
        return RemoteFile(
            ref=ref,
            url=self._hub_url(hub, "resolve", revision),
            digest=known or digest,
            size_bytes=size,
            version=commit or etag,
        )

    def _check_endpoint(self) -> None:
        try:
            scheme, host, _ = origin_of(self._endpoint)
        except ValueError:
            scheme = host = ""
        if scheme not in ("http", "https") or not host:
            raise UsageError(
                "the environment variable HF_ENDPOINT holds no address", hint=f"the usual one is {HUB}"
            )

    def _hub_url(self, hub: HubFile, kind: str, revision: str) -> str:
        return f"{self._endpoint}/{hub.repo}/{kind}/{quote(revision, safe='')}/{quote(hub.path)}"

    def _ask_hub(self, place: _Place) -> list[Answer]:
        """The answers up to the one that says digest and size; the storage behind need not be asked then."""
        hops: list[Answer] = []
        for answer in self._fetcher.hops(place.request("HEAD", deadline_s=self._deadline_s)):
            hops.append(answer)
            if answer.status >= 400:
                self._raise_for_status(answer, place)
            if _first(hops, "X-Linked-Etag") and _first(hops, "X-Linked-Size"):
                break
        return hops

    def _digest_of_pointer(self, ref: RemoteRef, hub: HubFile, revision: str) -> Digest | None:
        """The digest in the git-lfs pointer that the repository holds in place of a large file."""
        place = self._place(ref, self._hub_url(hub, "raw", revision))
        try:
            answer = self._fetcher.ask(
                place.request("GET", max_bytes=MAX_POINTER_BYTES, deadline_s=self._deadline_s)
            )
        except ProtocolError:  # longer than any pointer
            return None
        pointer = parse_lfs_pointer(answer.body) if answer.is_ok else None
        return pointer.digest if pointer else None


def _web_file(
    ref: RemoteRef, known: Digest, headers: Mapping[str, str], size_bytes: int | None
) -> RemoteFile:
    return RemoteFile(
        ref=ref, url=ref.text, digest=known, size_bytes=size_bytes, version=_version_in(headers)
    )


def _check_known(ref: RemoteRef, place: _Place, known: Digest | None, found: Digest | None) -> None:
    if known is not None and found is not None and known != found:
        raise DigestMismatch(
            f"{ref}: the digest there is {found}, the manifest states {known}",
            host=place.host,
            status=200,
            hint="the file has changed: name a revision with @, or state the new digest after a look at it",
        )


def _opened(answer: Exchange, offset: int, place: _Place) -> Opened:
    """The open answer with its place in the file. ProtocolError for a piece that was not asked for."""
    start = 0
    if answer.status == 206:
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        start = int(match[1]) if match else -1
        if start != offset:
            raise ProtocolError(
                f"{place.host}: {place.subject}: answered with another piece than asked for", host=place.host
            )
    return Opened(
        source=answer, start=start, version=_version_in(answer.headers), size_bytes=_whole_size(answer)
    )


def _whole_size(answer: Exchange) -> int | None:
    """The size of the whole file, also when a piece of it was asked for."""
    if answer.status == 206:
        return _number(answer.headers.get("Content-Range", "").rpartition("/")[2])
    return _number(answer.headers.get("Content-Length"))


def _version_in(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _range_from(offset: int, version: str) -> dict[str, str]:
    """The headers that ask for the rest of a file, if it is still the same. A weak ETag cannot say that (RFC 9110
    §13.1.5); then the answer's own ETag is looked at."""
    if not offset:
        return {}
    is_strong = version and not version.startswith("W/")
    return {"Range": f"bytes={offset}-", **({"If-Range": version} if is_strong else {})}


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 20 and text.isascii() and text.isdigit() else None


def _first(hops: list[Answer], header: str) -> str:
    return next((hop.headers[header] for hop in hops if hop.headers.get(header)), "")


def _digest_in(etag: str) -> Digest | None:
    """The SHA-256 that an ETag of a large file is; git's 40 digits of a small one are something else."""
    text = etag.removeprefix("W/").strip('"')
    return Digest(text) if _HEX64.fullmatch(text) else None
