"""The built-in models as a container registry: read-only answers below /v2/.

A real Ollama server has no /v2/, so the sandbox answers there only when it is told to. Ollama pulls a blob only
from a registry that redirects to another host name, so 127.0.0.1 sends to localhost and the reverse.

Source: OCI distribution specification 1.1; the redirect is Ollama's, 0.3.1 to 0.33.0.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from ollamaops.sandbox.builtin_models import BuiltinModels
from ollamaops.sandbox.layers import MANIFEST_TYPE
from ollamaops.sandbox.responses import BARE_JSON, answer

_MANIFEST = re.compile(r"/v2/([^/]+/[^/]+)/manifests/([^/]+)")
_BLOB = re.compile(r"/v2/([^/]+/[^/]+)/blobs/(sha256:[0-9a-f]{64})")
_STORED_BLOB = re.compile(r"/v2/_stored/([^/]+/[^/]+)/(sha256:[0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_LIST_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
_OTHER_NAME = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}
_VERSION = {"docker-distribution-api-version": "registry/2.0"}
Missing = Literal["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"]


def is_registry_path(path: str) -> bool:
    """Whether the request is for the registry."""
    return path == "/v2" or path.startswith("/v2/")


def answer_as_registry(builtin: BuiltinModels, request: Request, *, lists: bool = False) -> Response:
    """The registry's answer; 405 to whatever would write. With `lists` a tag leads to a list of manifests."""
    path = request.url.path
    if request.method not in {"GET", "HEAD"}:
        return _error(405, "UNSUPPORTED", "this registry is read-only")
    if path.rstrip("/") == "/v2":
        return answer({}, content_type=BARE_JSON)
    if found := _MANIFEST.fullmatch(path):
        return _manifest(builtin, found[1], found[2], lists=lists)
    if found := _BLOB.fullmatch(path):
        return _blob(builtin, request, found[1], found[2])
    if found := _STORED_BLOB.fullmatch(path):
        return _stored_blob(builtin, request, found[1], found[2])
    return _missing("NAME_UNKNOWN")


def _manifest(builtin: BuiltinModels, repository: str, reference: str, *, lists: bool) -> Response:
    is_digest = reference.startswith("sha256:")
    find = builtin.manifest_of_digest if is_digest else builtin.manifest
    raw = find(repository, reference)
    if raw is None:
        return _missing("MANIFEST_UNKNOWN")
    content_type = MANIFEST_TYPE
    if lists and not is_digest:
        raw, content_type = _list_of(raw), _LIST_TYPE
    headers = {"docker-content-digest": f"sha256:{hashlib.sha256(raw).hexdigest()}", **_VERSION}
    return Response(raw, headers={"content-type": content_type, **headers})


def _list_of(manifest: bytes) -> bytes:
    """A list that names this manifest, as the one for the runner that all servers have."""
    child = {
        "mediaType": MANIFEST_TYPE,
        "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        "size": len(manifest),
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {"com.ollama.runner": "ggml"},
    }
    document = {"schemaVersion": 2, "mediaType": _LIST_TYPE, "manifests": [child]}
    return json.dumps(document, indent=3).encode()


def _blob(builtin: BuiltinModels, request: Request, repository: str, digest: str) -> Response:
    """A redirect to the blob; the blob itself for HEAD, and where this machine has no other known name."""
    host = request.url.hostname or ""
    if request.method == "HEAD" or host not in _OTHER_NAME:
        return _stored_blob(builtin, request, repository, digest)
    if builtin.blob_of(repository, digest) is None:
        return _missing("BLOB_UNKNOWN")
    port = f":{request.url.port}" if request.url.port else ""
    target = f"{request.url.scheme}://{_OTHER_NAME[host]}{port}/v2/_stored/{repository}/{digest}"
    return Response(status_code=307, headers={"location": target, **_VERSION})


def _stored_blob(builtin: BuiltinModels, request: Request, repository: str, digest: str) -> Response:
    data = builtin.blob_of(repository, digest)
    if data is None:
        return _missing("BLOB_UNKNOWN")
    headers = {
        "content-type": "application/octet-stream",
        "docker-content-digest": digest,
        "accept-ranges": "bytes",
        **_VERSION,
    }
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None:
        return Response(data, headers=headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if first > last:
        return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}", **_VERSION})
    headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, headers=headers)


def _missing(code: Missing) -> Response:
    return _error(404, code, code.replace("_", " ").lower())


def _error(status: int, code: str, text: str) -> Response:
    response = answer({"errors": [{"code": code, "message": text}]}, status, BARE_JSON)
    response.headers.update(_VERSION)
    return response
