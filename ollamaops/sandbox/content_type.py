"""What a server takes a file for by its first 512 bytes, as Go's `http.DetectContentType` does.

Decides only what create's errors name; GGUF is asked for elsewhere.
"""

from __future__ import annotations

_SIGNATURES = (
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\xef\xbb\xbf", "text/plain; charset=utf-8"),
    (b"\xff\xfe", "text/plain; charset=utf-16le"),
    (b"\xfe\xff", "text/plain; charset=utf-16be"),
)
_HTML = (
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<script",
    b"<body",
    b"<title",
    b"<p",
    b"<div",
    b"<h1",
    b"<!--",
)
_BINARY = frozenset([*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])


def sniff(start: bytes) -> str:
    """A media type; `unknown` for bytes that are no text and no known kind."""
    for signature, media_type in _SIGNATURES:
        if start.startswith(signature):
            return media_type
    text = start.lstrip(b"\t\n\x0c\r ")
    if any(_is_tag(text, tag) for tag in _HTML):
        return "text/html; charset=utf-8"
    if text.startswith(b"<?xml"):
        return "text/xml; charset=utf-8"
    return "unknown" if _BINARY.intersection(start) else "text/plain; charset=utf-8"


def _is_tag(text: bytes, tag: bytes) -> bool:
    return text[: len(tag)].lower() == tag and (
        tag == b"<!--" or text[len(tag) : len(tag) + 1] in {b" ", b">"}
    )
