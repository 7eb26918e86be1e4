"""Short words for talking to a sandbox in tests: one call, one answer, parsed."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import requests
from patience import PATIENCE_S

from ollamaops.sandbox.behavior import NEWEST
from ollamaops.sandbox.gguf_file import STRING, UINT32, Field, Tensor, header_bytes, padding_after
from ollamaops.sandbox.server import Sandbox

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
Json = dict[str, object]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Reply:
    """An answer: `document` of JSON, or `lines` of NDJSON."""

    status: int
    document: Json
    lines: tuple[Json, ...]

    @property
    def error(self) -> object:
        """The error of the document, else of the first line that has one."""
        found = [line["error"] for line in (self.document, *self.lines) if "error" in line]
        return found[0] if found else None

    @property
    def statuses(self) -> list[object]:
        return [line.get("status", line.get("error")) for line in self.lines]


@dataclass
class Caller:
    """A sandbox and a session with it."""

    sandbox: Sandbox
    session: requests.Session

    def call(self, method: str, path: str, body: object = None) -> Reply:
        """Send `body` as JSON (bytes and str as they are)."""
        data = body if isinstance(body, bytes | str | None) else json.dumps(body)
        answer = self.session.request(method, self.sandbox.url + path, data=data, timeout=PATIENCE_S)
        content_type = answer.headers.get("content-type", "")
        if content_type.startswith("application/x-ndjson"):
            return Reply(answer.status_code, {}, tuple(json.loads(line) for line in answer.text.splitlines()))
        is_json = content_type.startswith("application/json") and answer.text
        return Reply(answer.status_code, json.loads(answer.text) if is_json else {}, ())

    def post(self, endpoint: str, /, **body: object) -> Reply:
        return self.call("POST", f"/api/{endpoint}", body)

    def upload(self, data: bytes) -> str:
        """The digest under which `data` is stored."""
        digest = digest_of(data)
        assert self.call("POST", f"/api/blobs/{digest}", data).status in {200, 201}
        return digest

    def weights(self, name: str = "tiny-a.gguf") -> str:
        """The digest of an uploaded test file."""
        return self.upload((WEIGHTS / name).read_bytes())

    def create(self, name: str, /, **body: object) -> Reply:
        """Create a model and read to the end."""
        return self.post("create", model=name, **body)

    def base(self, name: str = "base", weights: str = "tiny-a.gguf") -> None:
        """A model made from a file, in the way of the sandbox's version."""
        digest = self.weights(weights)
        if self.sandbox.service.behavior.structured_create:
            reply = self.create(name, files={weights: digest})
        else:
            reply = self.create(name, modelfile=f"FROM @{digest}\n")
        assert reply.lines[-1] == {"status": "success"}, reply

    def delete(self, name: str) -> Reply:
        return self.call("DELETE", "/api/delete", {"model": name})

    def show(self, name: str, **body: object) -> Json:
        reply = self.post("show", model=name, **body)
        assert reply.status == 200, reply
        return reply.document

    def tags(self) -> dict[str, Json]:
        """What is listed, by name."""
        models = cast("list[Json]", self.call("GET", "/api/tags").document["models"])
        return {str(model["name"]): model for model in models}

    def has_blob(self, digest: str) -> bool:
        return self.call("HEAD", f"/api/blobs/{digest}").status == 200


@contextmanager
def a_caller(folder: Path, version: str = NEWEST) -> Iterator[Caller]:
    """A fresh sandbox of that version and a session with it."""
    with Sandbox(folder, as_version=version) as sandbox, requests.Session() as session:
        yield Caller(sandbox, session)


def a_gguf(
    fields: Mapping[str, str | int] | None = None,
    tensors: tuple[Tensor, ...] = (),
    *,
    architecture: str = "llama",
) -> bytes:
    """A GGUF file with these text and whole-number fields and tensors of zeros."""
    tensors = tensors or (Tensor("token_embd.weight", (32, 4), 0),)
    typed = {"general.architecture": Field(STRING, architecture)}
    for key, value in (fields or {}).items():
        typed[key] = Field(STRING if isinstance(value, str) else UINT32, value)
    data = header_bytes(typed, tensors)
    return data + b"".join(b"\0" * tensor.size_bytes + padding_after(tensor.size_bytes) for tensor in tensors)


def a_safetensors(**shapes: tuple[int, ...]) -> bytes:
    """A safetensors file with F16 tensors of these shapes; `__` in a name stands for a dot."""
    header: Json = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name.replace("__", ".")] = {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += bytes(size)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
