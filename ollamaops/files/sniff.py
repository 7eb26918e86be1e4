"""What kind of file this is, told by its first few hundred bytes, git-lfs pointers included.

`content_type` is what Go's `http.DetectContentType` would say, because Ollama's command line chooses the files of a
folder by it. It knows only the types that turn up in a folder of weights. An empty file counts as text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ollamaops.errors import WeightsError
from ollamaops.files.regular_file import open_weights
from ollamaops.names import Digest

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size ([0-9]{1,18})$", re.MULTILINE)

Kind = Literal["gguf", "safetensors", "lfs-pointer", "zip", "text", "binary"]

SNIFFED_BYTES = 512
_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts
_GGUF_MAGICS = (b"GGUF", b"FUGG")
_ZIP_MAGIC = b"PK\x03\x04"
_GZIP_MAGIC = b"\x1f\x8b\x08"
_BYTE_ORDER_MARKS = (b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf")
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_HTML = re.compile(
    rb"<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE|B|BODY|BR|P|!--)[ >]",
    re.IGNORECASE,
)


def sniff(path: Path) -> Kind:
    """The kind of the file at `path`. WeightsError if it is missing, unreadable or not a regular file."""
    with open_weights(path) as file:
        head = file.read(SNIFFED_BYTES)
    if head.startswith(_GGUF_MAGICS):
        return "gguf"
    if _is_safetensors(head):
        return "safetensors"
    if head.startswith(LFS_PREFIX):
        return "lfs-pointer"
    content_type = content_type_of(head)
    if content_type == "application/zip":
        return "zip"
    return "text" if content_type.startswith("text/") else "binary"


def content_type(path: Path) -> str:
    """The content type of a file as Ollama's command line sees it. WeightsError as for `sniff`."""
    with open_weights(path) as file:
        return content_type_of(file.read(SNIFFED_BYTES))


def content_type_of(head: bytes) -> str:
    """The content type, without parameters, of a file that begins with `head` (at most 512 bytes):
    text/plain, text/html, text/xml, application/zip, application/x-gzip or application/octet-stream."""
    if head.startswith(_ZIP_MAGIC):
        return "application/zip"
    if head.startswith(_GZIP_MAGIC):
        return "application/x-gzip"
    if head.startswith(_BYTE_ORDER_MARKS):
        return "text/plain"
    body = head.lstrip(b"\t\n\x0c\r ")
    if _HTML.match(body):
        return "text/html"
    if body.startswith(b"<?xml"):
        return "text/xml"
    return "application/octet-stream" if _NOT_TEXT.search(body) else "text/plain"


def _is_safetensors(head: bytes) -> bool:
    """Safetensors begin with the length of a JSON object, as eight bytes, and that object."""
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= _MAX_SAFETENSORS_HEADER_BYTES and head[8:9] == b"{"


class LfsPointer(Struct, frozen=True):
    """What git-lfs leaves in place of a file that was not fetched. It says what the real file will be."""

    digest: Digest
    size_bytes: int


def parse_lfs_pointer(data: bytes) -> LfsPointer | None:
    """The pointer that `data` (a whole file) is, or None if it is anything else."""
    if not data.startswith(LFS_PREFIX) or len(data) > MAX_POINTER_BYTES:
        return None
    oid, size = _OID.search(data), _SIZE.search(data)
    return LfsPointer(Digest(oid[1].decode()), int(size[1])) if oid and size else None


def pointer_instead_of_weights(path: Path | str) -> WeightsError:
    """The error for a pointer found where weights are needed."""
    return WeightsError(
        f"{path}: is a git-lfs pointer, not the weights themselves",
        hint="run 'git lfs pull' in the repository it comes from",
    )
