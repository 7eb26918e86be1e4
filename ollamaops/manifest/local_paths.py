"""Which files of a folder make a model. The caller has listed the folder and sniffed the files.

`ollama create` takes one group of weights from a folder, the first of its list that is there, and every JSON file
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from ollamaops.errors import WeightsError

TEXT = "text/plain"
ZIP = "application/zip"
BINARY = "application/octet-stream"

# tried in this order; content type None where Ollama does not look (safetensors, since 0.11.11). Folders of adapters
# are passed over by `ollama create` since 0.12.11, while servers still take them
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


def select_weights(listing: Listing) -> tuple[str, ...]:
    """The files of a folder that make a model, out of all its files two levels deep.

    `listing` holds (path relative to the folder, content type as Go's http.DetectContentType, no parameters).
    A group of weights with a file that is not what its name says (a git-lfs pointer is text) is passed over.
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
