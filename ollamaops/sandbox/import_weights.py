"""Uploaded files to the layers that a new model starts from: GGUF files, safetensors folders, adapters.

Quantizing and llama-quantize's copy are done here too, because they replace the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ollamaops.sandbox import layers as kinds
from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.convert_safetensors import Conversion, UnsupportedModel, convert_adapter, convert_model
from ollamaops.sandbox.gguf_file import ALIGNMENT, BadGGUF, Header, is_gguf, read_header
from ollamaops.sandbox.gguf_rewrite import (
    copy_weights,
    file_type_name,
    is_rewritten,
    merge_headers,
    plan_copy,
    plan_quantized,
)
from ollamaops.sandbox.golang import json_line
from ollamaops.sandbox.layers import Layer, existing_layer, layer_status, new_layer
from ollamaops.sandbox.responses import Line, bad_request, failure, line, os_failure
from ollamaops.sandbox.store import InvalidDigest, Store
from ollamaops.sandbox.templates import recognize

_PSEUDO_DIGEST = "0000000000000000000"
_NO_VALIDATION = "failed to validate GGUF with llama-quantize without compatibility patches: "
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Part:
    """A layer of a model to be, with its GGUF header if it holds weights. `is_upload`: it came as a file."""

    layer: Layer
    header: Header | None = None
    is_upload: bool = False


Parts = Generator[Line, None, list[Part]]


def import_files(store: Store, behavior: Behavior, files: Mapping[str, str]) -> Parts:
    """The layers made from `files` (name → digest) of a create request."""
    kind = detect_kind(store, files)
    if kind == "safetensors":
        return (yield from _import_safetensors(store, behavior, files))
    if kind != "gguf":
        raise bad_request("unknown type")
    parts = yield from _import_ggufs(store, behavior, files)
    headers = [part.header for part in parts if part.header]
    return parts + [
        part for header in headers for part in template_parts(store, header, old=behavior.old_chatml)
    ]


def import_drafts(store: Store, behavior: Behavior, files: Mapping[str, str]) -> Parts:
    """The layers made from `draft_files`; every error is the request's fault here."""
    if detect_kind(store, files) != "gguf":
        raise bad_request("unknown type")
    parts = yield from _import_ggufs(store, behavior, files)
    return [replace(part, layer=replace(part.layer, media_type=kinds.DRAFT)) for part in parts]


def _import_ggufs(store: Store, behavior: Behavior, files: Mapping[str, str]) -> Parts:
    parts: list[Part] = []
    shards: dict[str, dict[int, Part]] = {}
    for name in sorted(files):
        yield line("parsing GGUF")
        header = open_gguf(store, files[name])
        part = gguf_part(store, behavior, files[name], name, header)
        if behavior.splits_merge and header.number("split.count") > 1:
            shards.setdefault(_split_group(name, header), {})[header.number("split.no")] = part
        else:
            parts.append(part)
    return parts + [_merged(store, name, found) for name, found in shards.items()]


def _split_group(name: str, header: Header) -> str:
    """What the shards of one model have in common. Refusal when the name and the metadata disagree."""
    count, number = header.number("split.count"), header.number("split.no")
    match = _SPLIT.fullmatch(name.rpartition("/")[2])
    if match is None:
        raise failure(f'split GGUF "{name}" must use llama.cpp split filename pattern')
    if int(match[3]) != count:
        raise failure(
            f'split GGUF "{name}" filename count {int(match[3])} does not match metadata count {count}'
        )
    if int(match[2]) - 1 != number:
        place = int(match[2]) - 1
        raise failure(f'split GGUF "{name}" filename index {place} does not match metadata index {number}')
    return f"{match[1]}:{count}"


def _merged(store: Store, group: str, shards: Mapping[int, Part]) -> Part:
    """The model that split files make together: one file, made of theirs."""
    first = next(iter(shards.values()))
    count = int(group.rpartition(":")[2])
    if len(shards) != count:
        raise failure(f'split GGUF "{first.layer.origin}" has {len(shards)} shards, expected {count}')
    ordered = [shards[number] for number in range(count)]
    headers = [part.header for part in ordered if part.header]
    sources = [
        (store.blob_path(part.layer.digest), header) for part, header in zip(ordered, headers, strict=True)
    ]
    return _written(store, sources, merge_headers(headers), first.layer.media_type)


def import_adapters(
    store: Store, behavior: Behavior, files: Mapping[str, str], base: Sequence[Part]
) -> Parts:
    """The adapter layers made from `files`; every error is the request's fault here."""
    kind = detect_kind(store, files)
    if kind == "safetensors":
        yield line("converting adapter")
        architecture = next((part.header.architecture for part in base if part.header), "")
        return [_converted(store, lambda: convert_adapter(_paths(store, files), architecture), kinds.ADAPTER)]
    if kind != "gguf":
        raise bad_request("unknown type")
    if len(files) > 1:
        raise bad_request("only one adapter is currently supported")
    return (yield from _import_ggufs(store, behavior, files))


def detect_kind(store: Store, files: Mapping[str, str]) -> str:
    """`safetensors`, `gguf` or nothing, by the names of the files, else by what they begin with."""
    for name, digest in sorted(files.items()):
        if name.endswith(".safetensors"):
            return "safetensors"
        if name.endswith(".gguf"):
            return "gguf"
        try:
            with store.blob_path(digest).open("rb") as stream:
                if is_gguf(stream.read(4)):
                    return "gguf"
        except (OSError, InvalidDigest):
            return ""
    return ""


def open_gguf(store: Store, digest: str) -> Header:
    """The header of an uploaded file. Refusal in the server's words if it cannot be read."""
    path = _blob(store, digest)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
        if not is_gguf(start):
            raise bad_request("supplied file was not in GGUF format")
        return read_header(path)
    except IsADirectoryError as error:
        raise os_failure(error, "read") from error
    except OSError as error:
        raise os_failure(error) from error
    except BadGGUF as error:
        raise failure(str(error)) from error


def gguf_part(store: Store, behavior: Behavior, digest: str, name: str, header: Header) -> Part:
    """An uploaded GGUF file as a layer. Refusal for a file that goes on behind its last tensor (older servers)."""
    path = _blob(store, digest)
    try:
        if behavior.file_ends_checked and path.stat().st_size > header.end:
            raise failure("invalid file magic")
        origin = {"none": "", "blob path": str(path), "file name": name}[behavior.file_origin]
        layer = existing_layer(store, digest, _media_type(header, behavior), origin)
    except OSError as error:
        raise os_failure(error) from error
    return Part(layer, header, is_upload=True)


def _media_type(header: Header, behavior: Behavior) -> str:
    if behavior.adapters_by_metadata and header.kind == "adapter":
        return kinds.ADAPTER
    return kinds.PROJECTOR if _is_projector(header, behavior) else kinds.MODEL


def _is_projector(header: Header, behavior: Behavior) -> bool:
    if behavior.projector_test == "clip":
        return header.architecture == "clip"
    if header.kind in {"projector", "mmproj"}:
        return True
    if behavior.projector_test == "vision":
        return f"{header.architecture}.vision.block_count" in header.fields
    if header.of_architecture("block_count"):
        return False
    encoders = (header.of_architecture("has_vision_encoder"), header.of_architecture("has_audio_encoder"))
    is_clip = header.architecture == "clip" and any(encoders)
    return is_clip or header.of_architecture("vision.block_count") > 0


def template_parts(store: Store, header: Header, *, old: bool) -> list[Part]:
    """The layers of the built-in template that is recognized in the file's own."""
    jinja = header.text("tokenizer.chat_template")
    template = recognize(jinja, old=old) if jinja else None
    if template is None:
        return []
    layer = new_layer(store, template.text.encode(), kinds.TEMPLATE)
    parts = [Part(replace(layer, status=f"using autodetected template {template.name}"))]
    if template.stop:
        parameters = json_line({"stop": list(template.stop)})
        parts.append(Part(new_layer(store, parameters, kinds.PARAMS)))
    return parts


def _blob(store: Store, digest: str) -> Path:
    try:
        return store.blob_path(digest)
    except InvalidDigest as error:
        raise failure(str(error)) from error


def _paths(store: Store, files: Mapping[str, str]) -> dict[str, Path]:
    return {name: _blob(store, digest) for name, digest in files.items()}


def _import_safetensors(store: Store, behavior: Behavior, files: Mapping[str, str]) -> Parts:
    yield line("converting model")
    part = convert_files(store, behavior, _paths(store, files))
    header = part.header
    return [part, *(template_parts(store, header, old=behavior.old_chatml) if header else ())]


def convert_files(store: Store, behavior: Behavior, files: Mapping[str, Path]) -> Part:
    """The weights made from the files of a safetensors directory. Refusal."""
    return _converted(store, lambda: convert_model(files, behavior), kinds.MODEL)


def _converted(store: Store, convert: Callable[[], Conversion], media_type: str) -> Part:
    """The GGUF file that a conversion makes, as a layer."""
    try:
        conversion = convert()
        with store.begin_upload() as upload:
            conversion.write(upload.write)
            digest, is_new = upload.finish()
    except UnsupportedModel as error:
        raise (bad_request if media_type == kinds.ADAPTER else failure)(str(error)) from error
    except OSError as error:
        raise os_failure(error) from error
    return Part(_stored(store, digest, media_type, is_new=is_new), conversion.header, is_upload=True)


def _stored(store: Store, digest: str, media_type: str, *, is_new: bool) -> Layer:
    return Layer(media_type, digest, store.blob_size(digest), status=layer_status(digest, is_new=is_new))


def finish_weights(
    store: Store, behavior: Behavior, part: Part, quantization: str
) -> Generator[Line, None, Part]:
    """The part as it is stored: quantized if asked, copied by llama-quantize if it is an upload (≥ 0.30)."""
    header = part.header
    if header is None or part.layer.media_type != kinds.MODEL:
        return part
    if quantization:
        wanted, have = _wanted_type(behavior, quantization), file_type_name(header)
        if have not in behavior.quantize_sources:
            raise failure(behavior.quantize_source_error)
        if wanted != have:
            return (yield from _quantize(store, behavior, part, header, wanted))
    if not (behavior.rewrites_gguf and part.is_upload and is_rewritten(header)):
        return part
    if header.end > part.layer.size + ALIGNMENT:
        raise failure(f"{_NO_VALIDATION}tensor data is not within the file bounds")
    yield line("verifying conversion")
    return _rewritten(store, part, header, plan_copy(header))


def _wanted_type(behavior: Behavior, quantization: str) -> str:
    wanted = quantization.upper()
    if wanted == "Q4_K" and "Q4_0" not in behavior.quantize_types:
        wanted = "Q4_K_M"
    if wanted not in behavior.quantize_types:
        raise failure(behavior.quantize_unknown.format(wanted))
    return wanted


def _quantize(
    store: Store, behavior: Behavior, part: Part, header: Header, wanted: str
) -> Generator[Line, None, Part]:
    by_go = behavior.quantizer == "go"
    new = plan_quantized(header, wanted, by_go=by_go, skips_v=behavior.quantize_skips_v)
    status = f"quantizing {file_type_name(header)} model to {wanted}"
    if behavior.quantize_reports == "line":
        yield line(status)
    if behavior.quantize_reports == "progress":
        for done in (1, 2):
            yield line(
                status, digest=_PSEUDO_DIGEST, total=part.layer.size, completed=part.layer.size * done // 2
            )
    if behavior.verifies_quantized:
        yield line("verifying conversion")
    return _rewritten(store, part, header, new)


def _rewritten(store: Store, part: Part, header: Header, new: Header) -> Part:
    return _written(store, [(store.blob_path(part.layer.digest), header)], new, part.layer.media_type)


def _written(store: Store, sources: Sequence[tuple[Path, Header]], new: Header, media_type: str) -> Part:
    """A new GGUF file as a layer, its data taken from `sources`."""
    try:
        with store.begin_upload() as upload:
            copy_weights(sources, new, upload.write)
            digest, is_new = upload.finish()
        layer = _stored(store, digest, media_type, is_new=is_new)
        return Part(layer, read_header(store.blob_path(digest)), is_upload=True)
    except OSError as error:
        raise os_failure(error) from error
    except (
        BadGGUF
    ):  # what is stored under this digest is damaged; the server looks at what it has just written
        return Part(layer, new, is_upload=True)
