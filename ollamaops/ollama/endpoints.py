"""Which endpoints a server has: servers that are only compatible with Ollama often do not create or copy models.

This is found out by asking, in ways that write nothing: HEAD, which Ollama refuses as a wrong method, and at last the
request itself for a model without a name, which no server can carry out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ollamaops.errors import AnswerError, CutStream, NotFound, ProtocolError
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.features import Endpoint

_NOT_IMPLEMENTED: Final = 501
_FOR_NO_MODEL: Final[Mapping[str, dict[str, object]]] = {
    "create": {"model": "", "stream": False},
    "copy": {"source": "", "destination": ""},
}


def has_endpoint(client: OllamaClient, endpoint: Endpoint) -> bool:
    """Whether the server knows `/api/create` or `/api/copy`. RemoteError if it cannot be asked."""
    tells = client.features().tells_wrong_methods
    if not _is_unknown(client, "HEAD", f"/api/{endpoint}") if tells else _takes_blobs(client):
        return True
    return not _is_unknown(client, "POST", f"/api/{endpoint}", _FOR_NO_MODEL[endpoint])


def _takes_blobs(client: OllamaClient) -> bool:
    """Whether the server looks at the digest, which is none."""
    return not _is_unknown(client, "HEAD", "/api/blobs/none")


def _is_unknown(client: OllamaClient, method: str, path: str, body: dict[str, object] | None = None) -> bool:
    """Whether the server answers as for a path that it does not have."""
    try:
        client.transport.request(method, path, body=body, what=f"look for {path}")
    except AnswerError as error:
        if error.transient and error.status != _NOT_IMPLEMENTED:
            raise
        return isinstance(error, NotFound) or error.status == _NOT_IMPLEMENTED
    except ProtocolError as error:
        return not isinstance(error, CutStream)
    return False
