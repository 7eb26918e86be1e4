"""POST /api/create of servers up to 0.5.4: the request holds a Modelfile, carried out command by command.

It differs from the later, structured form: a later template or system replaces, an empty system is stored and
clears the inherited one, parameters are checked, messages are appended to the inherited ones, and nothing is
written when a step fails.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from ollamaops.sandbox import layers as kinds
from ollamaops.sandbox.create import Creator, as_go
from ollamaops.sandbox.gguf_file import is_gguf
from ollamaops.sandbox.golang import json_line, shortest_float32, sorted_map
from ollamaops.sandbox.import_weights import (
    Part,
    convert_files,
    finish_weights,
    gguf_part,
    open_gguf,
    template_parts,
)
from ollamaops.sandbox.layers import Config, Layer, new_layer
from ollamaops.sandbox.model_name import Name, parse_name
from ollamaops.sandbox.modelfile_parser import BadModelfile, parse_modelfile
from ollamaops.sandbox.request_bodies import CreateRequest
from ollamaops.sandbox.responses import SUCCESS, Line, Work, bad_request, failure, line, os_failure
from ollamaops.sandbox.store import InvalidDigest

_INTEGERS = {
    *("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "mirostat", "num_ctx", "num_batch"),
    *("num_gpu", "main_gpu", "num_thread"),
}
_FLOATS = {
    *("top_p", "min_p", "tfs_z", "typical_p", "temperature", "repeat_penalty", "presence_penalty"),
    *("frequency_penalty", "mirostat_tau", "mirostat_eta"),
}
_FLAGS = {"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock"}
_TRUE, _FALSE = {"1", "t", "T", "TRUE", "true", "True"}, {"0", "f", "F", "FALSE", "false", "False"}
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


@dataclass
class _Draft:
    """A model in the making."""

    layers: list[Layer] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    messages: list[dict[str, object]] = field(default_factory=list)
    parameters: dict[str, object] = field(default_factory=dict)


@dataclass
class ModelfileCreator:
    """Makes models from Modelfiles. Remembers what zip files became, as the server's process does."""

    creator: Creator
    _converted: dict[str, str] = field(default_factory=dict)

    def checked(self, request: CreateRequest) -> tuple[Name, list[tuple[str, str]]]:
        """The name of the model to make, and the commands. Refusal if the server refuses before the work begins."""
        name = parse_name(request.model)
        if not name.is_valid:
            raise bad_request("invalid model name")
        if self.creator.models.collides(name):
            raise bad_request("a model with that name already exists")
        if not request.modelfile and request.path:
            raise bad_request(f"error reading modelfile: open {request.path}: no such file or directory")
        if not request.modelfile:
            raise bad_request("path or modelfile are required")
        try:
            return name, parse_modelfile(request.modelfile)
        except BadModelfile as error:
            raise bad_request(str(error)) from error

    def create(self, request: CreateRequest, name: Name, commands: list[tuple[str, str]]) -> Work:
        """The lines of making `name`."""
        draft = _Draft()
        try:
            for command, value in commands:
                yield from self._carry_out(command, value, draft, request.quantize)
            layers = self._finished(draft)
            config = self.creator.described(Config(), draft.parts)
            old = self.creator.old_manifest(name)
            yield from self.creator.write(name, config, layers, config_line=True)
        except OSError as error:
            raise os_failure(error, "write") from error
        self.creator.remove_layers(old)
        yield line(SUCCESS)

    def _carry_out(self, command: str, value: str, draft: _Draft, quantize: str) -> Work:
        store = self.creator.store
        match command:
            case "model" | "adapter":
                for part in (yield from self._parts(value)):
                    finished = yield from finish_weights(store, self.creator.behavior, part, quantize)
                    draft.layers.append(finished.layer)
                    draft.parts.append(finished)
            case "template":
                layer = self.creator.template_layer(value)
                draft.layers = [*kinds.without(store, draft.layers, kinds.TEMPLATE), layer]
            case "system":
                kept = kinds.without(store, draft.layers, kinds.SYSTEM)
                draft.layers = [*kept, new_layer(store, value.encode(), kinds.SYSTEM)]
            case "license":
                draft.layers.append(new_layer(store, value.encode(), kinds.LICENSE))
            case "message":
                role, _, content = value.partition(": ")
                draft.messages.append({"role": role, "content": content})
            case parameter:
                _set_parameter(draft.parameters, parameter, value)

    def _parts(self, args: str) -> Generator[Line, None, list[Part]]:
        name = parse_name(args)
        if name.is_valid:
            return (yield from self.creator.parts_of(name))
        if not args.startswith("@"):
            raise failure(f"invalid model reference: {args}")
        digest = args[1:]
        if digest in self._converted and self.creator.store.has_blob(self._converted[digest]):
            digest = self._converted[digest]
            yield line(f"using cached layer {digest}")
        return (yield from self._file_parts(digest))

    def _file_parts(self, digest: str) -> Generator[Line, None, list[Part]]:
        store, behavior = self.creator.store, self.creator.behavior
        start = self._start_of(digest)
        if sniff(start) == "application/zip":
            return (yield from self._zip_parts(digest))
        if not is_gguf(start):
            raise failure(f"unsupported content type: {sniff(start)}")
        header = open_gguf(store, digest)
        part = gguf_part(store, behavior, digest, "", header)
        return [part, *template_parts(store, header, old=behavior.old_chatml)]

    def _start_of(self, digest: str) -> bytes:
        try:
            with self.creator.store.blob_path(digest).open("rb") as stream:
                return stream.read(512)
        except IsADirectoryError as error:
            raise os_failure(error, "read") from error
        except OSError as error:
            raise os_failure(error) from error
        except InvalidDigest as error:
            raise failure(str(error)) from error

    def _zip_parts(self, digest: str) -> Generator[Line, None, list[Part]]:
        store, behavior = self.creator.store, self.creator.behavior
        yield line("converting model")
        with TemporaryDirectory(dir=store.root) as folder:
            try:
                files = _unpack(store.blob_path(digest), Path(folder))
            except (zipfile.BadZipFile, ValueError) as error:
                raise failure(f"zip: {error}") from error
            part = convert_files(store, behavior, files)
        self._converted[digest] = part.layer.digest
        return [part, *(template_parts(store, part.header, old=behavior.old_chatml) if part.header else ())]

    def _finished(self, draft: _Draft) -> list[Layer]:
        store = self.creator.store
        parameters = draft.parameters
        for layer in draft.layers:
            if layer.media_type == kinds.PARAMS:
                parameters = {**as_go(json.loads(store.read_blob(layer.digest))), **parameters}
        layers = [layer for layer in draft.layers if layer.media_type != kinds.PARAMS]
        if draft.messages:
            layers.append(new_layer(store, json_line(draft.messages), kinds.MESSAGES))
        if parameters:
            layers.append(new_layer(store, json_line(sorted_map(parameters)), kinds.PARAMS))
        return layers


def _unpack(archive: Path, folder: Path) -> dict[str, Path]:
    """The files of a zip by their names in it. ValueError for a name that leads out of the folder."""
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError("insecure file path")
        opened.extractall(folder)
        return {name: folder / name for name in opened.namelist() if not name.endswith("/")}


def _set_parameter(parameters: dict[str, object], name: str, text: str) -> None:
    """Take over one PARAMETER, checked and typed. Refusal."""
    if name == "stop":
        before = parameters.get("stop")
        parameters["stop"] = [*(before if isinstance(before, list) else ()), text]
    elif name in _INTEGERS:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise failure(f"invalid int value [{text}]")
        parameters[name] = int(text)
    elif name in _FLOATS:
        parameters[name] = _float(text)
    elif name in _FLAGS:
        if text not in _TRUE | _FALSE:
            raise failure(f"invalid bool value [{text}]")
        parameters[name] = text in _TRUE
    else:
        raise failure(f"unknown parameter '{name}'")


def _float(text: str) -> float:
    try:
        return shortest_float32(float(text))
    except (ValueError, OverflowError) as error:
        raise failure(f"invalid float value [{text}]") from error


def sniff(start: bytes) -> str:
    """The media type by Go's `http.DetectContentType`; `unknown` for binary data of no known kind."""
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
