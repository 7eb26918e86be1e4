"""Which weights a model is made from, and which files make a model, an adapter or a draft together.

The caller has looked at the files: `kinds` and `headers` say what is in them. `made` has the weights under the key
that names them (`files`, `adapters`, `drafts`). Only the names of remote files are known here, so the rules about
headers apply to local files.

Of a folder, `ollama create` takes one group of weights, the first of its list that is there, and every JSON file
beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import reduce

from ollamaops.errors import Problem, WeightsError
from ollamaops.files.gguf_types import UNKNOWN, GgufHeader
from ollamaops.files.location import Location
from ollamaops.files.shards import check_shard_headers, parse_shard
from ollamaops.files.sniff import Kind
from ollamaops.manifest.document import Table
from ollamaops.manifest.modelfile import Modelfile
from ollamaops.manifest.problems import problem_at
from ollamaops.manifest.types import Build, ModelSpec, Place, WeightsFile
from ollamaops.names import Digest

WEIGHTS_ENDINGS = (".gguf", ".safetensors", ".bin", ".pth")
_QUANTIZABLE = ("F16", "BF16", UNKNOWN)  # F32 is number 0, which is also what a header without a type has

TEXT = "text/plain"
ZIP = "application/zip"
BINARY = "application/octet-stream"

# Tried in this order; the content type is None where Ollama does not look (safetensors, since 0.11.11).
# `ollama create` ignores folders of adapters since 0.12.11, but servers still take them.
_SAFETENSORS_AND_TORCH: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("model*.safetensors", "*/model*.safetensors"), None),
    (("consolidated*.safetensors",), None),
    (("adapter_model.safetensors", "adapters.safetensors"), None),
    (("pytorch_model*.bin",), ZIP),
    (("consolidated*.pth",), ZIP),
)
_GGUF: tuple[tuple[tuple[str, ...], str | None], ...] = ((("*.gguf",), BINARY), (("*.bin",), BINARY))
_WEIGHTS_NAMES = ("*.safetensors", "*.bin", "*.pth", "*.gguf")

Listing = Sequence[tuple[str, str]]
Made = Mapping[str, Sequence[WeightsFile]]
Kinds = Mapping[Location, Kind]
Headers = Mapping[Location, GgufHeader]


def weights_of(build: Build) -> tuple[WeightsFile, ...]:
    """Everything that has to be sent for `build`."""
    return (*build.files, *build.adapters, *build.drafts)


def local_files(specs: Iterable[ModelSpec]) -> tuple[WeightsFile, ...]:
    """Every weights file of `specs`, each path or address once for each digest that is stated of it."""
    found: dict[tuple[Location, Digest | None], WeightsFile] = {}
    for spec in specs:
        if isinstance(spec.source, Build):
            for file in weights_of(spec.source):
                found.setdefault((file.path, file.known), file)
    return tuple(found.values())


def is_gguf(where: Location, kinds: Kinds) -> bool:
    """Whether it is a GGUF file by its name or by its content."""
    return where.name.endswith(".gguf") or kinds.get(where) == "gguf"


def place_of(entry: Table, key: str) -> Place:
    """Where an entry names the weights under `key`, which its Modelfile may do."""
    return (entry.get(key) or entry.get("modelfile") or entry).place


def without_folders(message: str, paths: Iterable[Location]) -> str:
    """The message with files by their names only: whole paths are long, and differ from machine to machine."""
    folders = {str(path)[: -len(path.name)] for path in paths}
    return reduce(lambda text, folder: text.replace(folder, ""), sorted(folders, reverse=True), message)


def check_kinds(entry: Table, made: Made, kinds: Kinds) -> Iterator[Problem]:
    """A server takes either GGUF files or others, never both, and one GGUF adapter."""
    for key in ("files", "adapters"):
        place, paths = place_of(entry, key), [file.path for file in made[key]]
        gguf = [path for path in paths if is_gguf(path, kinds)]
        if gguf and len(gguf) < len(paths):
            yield problem_at(
                place, f"{key}: GGUF files mixed with others: a server takes one kind", "name one"
            )
        elif paths and not gguf and not any(path.name.endswith(WEIGHTS_ENDINGS) for path in paths):
            yield problem_at(place, f"{key}: no weights among them", "name GGUF files, or a folder")
        if len(set(paths)) < len(paths):
            yield problem_at(place, f"{key}: a file is named twice", "keep one of the two")
        elif name := _first_twice(file.name for file in made[key]):
            yield problem_at(
                place, f"{key}: two files would be called '{name}'", "let one of them have another name"
            )
        if key == "adapters" and len(gguf) > 1:
            yield problem_at(place, f"{len(gguf)} GGUF adapters: a server takes one", "keep one")


def check_headers(entry: Table, made: Made, headers: Headers) -> Iterator[Problem]:
    """A model is made from the weights of one model, and neither a model nor a projector is an adapter."""
    if listed := entry.get("files"):
        found = {
            _without_number(file.path): file.path.name
            for file in reversed(made["files"])
            if (header := headers.get(file.path)) and not (header.is_projector or header.is_adapter)
        }
        if len(found) > 1:
            names = " and ".join(sorted(found.values()))
            message = f"files: {len(found)} whole models: {names}: a model is made from one"
            yield problem_at(listed, message, "keep one, and its projector if it has one")
    for file in made["files"]:
        if (header := headers.get(file.path)) and header.is_adapter:
            message = f"files: {file.path.name} is an adapter according to its header, not a model"
            yield problem_at(
                place_of(entry, "files"), message, "name it under adapters: (ADAPTER in a Modelfile)"
            )
    for file in made["adapters"]:
        if (header := headers.get(file.path)) and (header.is_whole_model or header.is_projector):
            what = "a projector" if header.is_projector else "a whole model"
            message = f"adapters: {file.path.name} is {what} according to its header, not an adapter"
            hint = "name a LoRA; to make a model from this one use files:"
            yield problem_at(place_of(entry, "adapters"), message, hint)


def check_sets(entry: Table, made: Made, headers: Headers, *, has_base: bool) -> Iterator[Problem]:
    """The rules about files that are all there and each usable."""
    for key, files in made.items():
        paths = [file.path for file in files]
        try:
            check_shard_headers({str(path): headers[path] for path in paths if path in headers})
        except WeightsError as error:
            yield problem_at(place_of(entry, key), f"{key}: {without_folders(str(error), paths)}", error.hint)
    files = made["files"]
    known = [header for file in files if (header := headers.get(file.path))]
    if known and len(known) == len(files) and not has_base and all(header.is_projector for header in known):
        message = (
            f"files: {files[0].path.name} is a projector according to its header, and no model is beside it"
        )
        yield problem_at(place_of(entry, "files"), message, "name the model's GGUF too")
    yield from _check_drafts(entry, made, headers)


def check_has_draft(entry: Table, modelfile: Modelfile) -> Iterator[Problem]:
    """Servers: `--draft-quantize requires a DRAFT model`."""
    if "draft_quantize" not in entry.nodes or "drafts" in entry.nodes or modelfile.args_of("draft"):
        return
    at = entry.keys["draft_quantize"]
    yield problem_at(at, "'draft_quantize' does not apply here: there is no draft", "name it under drafts:")


def _check_drafts(entry: Table, made: Made, headers: Headers) -> Iterator[Problem]:
    own = {file.path for file in made["files"]}
    quantize = entry.get("draft_quantize")
    for draft in made["drafts"]:
        header = headers.get(draft.path)
        if draft.path in own:
            message = f"drafts: {draft.path.name} is the model itself"
            yield problem_at(place_of(entry, "drafts"), message, "name a smaller model as its draft")
        if quantize and header and header.file_type not in _QUANTIZABLE:
            message = f"draft_quantize: {draft.path.name} is {header.file_type} according to its header"
            hint = "leave it out, or name a draft of F16, BF16 or F32"
            yield problem_at(quantize, message, hint)


def _without_number(where: Location) -> str:
    """One text for all shards of a model."""
    with suppress(WeightsError):  # reported when its set was completed
        if shard := parse_shard(str(where)):
            return shard.prefix
    return str(where)


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def select_weights(listing: Listing) -> tuple[str, ...]:
    """The files of a folder that make a model, out of all its files two levels deep.

    `listing` holds (path relative to the folder, content type as Go's http.DetectContentType, no parameters).
    A group of weights with a file that is not what its name says (a git-lfs pointer is text) is ignored.
    WeightsError if no group is left, or a JSON file is not text. GGUF files come alone: a server refuses them
    with JSON files beside them.
    """
    weights = _first_group(listing, _SAFETENSORS_AND_TORCH)
    if weights:
        return (*weights, *_companions(listing))
    weights = _first_group(listing, _GGUF)
    if weights:
        return weights
    raise WeightsError("no Modelfile or safetensors files found", hint=_why_none(listing))


def _first_group(listing: Listing, groups: tuple[tuple[tuple[str, ...], str | None], ...]) -> tuple[str, ...]:
    for patterns, content_type in groups:
        files = _matching(listing, *patterns)
        if files and all(content_type in (None, sniffed) for _, sniffed in files):
            return tuple(name for name, _ in files)
    return ()


def _companions(listing: Listing) -> Iterator[str]:
    """Configuration, chat template and tokenizer, which go with safetensors and PyTorch weights."""
    for name, sniffed in _matching(listing, "*.json", "*/*.json"):
        if sniffed != TEXT:
            raise WeightsError(f"{name}: invalid content type: {sniffed}, expected {TEXT}")
        yield name
    yield from (name for name, _ in _matching(listing, "chat_template.jinja"))
    yield from _first_group(listing, ((("tokenizer.model",), BINARY), (("*/tokenizer.model",), TEXT)))


def _matching(listing: Listing, *patterns: str) -> list[tuple[str, str]]:
    """The files whose path matches, sorted by pattern and name; `*` does not cross a `/`, as in Go's globs."""
    return [
        entry
        for pattern in patterns
        for entry in sorted(listing)
        if entry[0].count("/") == pattern.count("/") and fnmatchcase(entry[0], pattern)
    ]


def _why_none(listing: Listing) -> str:
    wrong = [f"{name} is {sniffed}" for name, sniffed in _matching(listing, *_WEIGHTS_NAMES)]
    if wrong:
        return f"{', '.join(wrong[:3])}: fetch the real files if these are git-lfs pointers"
    return "name a GGUF file, or a folder with model*.safetensors, config.json and a tokenizer"
