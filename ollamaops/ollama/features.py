"""Server versions and what they mean: `ServerVersion` from text, `Features` from a version.

Nothing else in the project compares version numbers. The versions come from Ollama's git history, and where it says
so from measuring real servers. Builds that say `0.0.0`, or anything without a number, count as the newest, except
where a wrong guess would lose a model: see `_CAUTIOUS`.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from msgspec import Struct

Number = tuple[int, int, int]

Endpoint = Literal["create", "copy"]
"""What servers that are only compatible with Ollama often do not have."""

_WORD: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")
_NUMBER: Final = re.compile(r"\s*v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?![0-9])")

# Ollama's ParseFileType up to 0.6.8: the whole list of llama.cpp, without Q4_1_F16, which that does not make any more
_ALL_QUANTIZE_TYPES: Final = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M"}
    | {"Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"}
    | {"IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
)
# from 0.7.0 on
_FEW_QUANTIZE_TYPES: Final = frozenset({"F32", "F16", "BF16", "Q4_K", "Q4_K_S", "Q4_K_M", "Q8_0"})


class ServerVersion(Struct, frozen=True):
    """A version as `/api/version` states it. `number` is None when the server does not know its own version."""

    text: str
    number: Number | None

    @classmethod
    def parse(cls, text: str) -> ServerVersion:
        """Never fails: `v0.33.0-rc2`, `0.5.7-0-gabc123`, `0.12.6-dirty`, `0.5`; `0.0.0`, other text: unknown.

        `text` is then one word of ASCII, whatever a server says: it goes into files and onto terminals.
        """
        word = _WORD.match(text.strip())
        text = word[0] if word else "unknown"
        match = _NUMBER.match(text)
        number = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
        return cls(text, number if number and any(number) else None)

    @property
    def is_known(self) -> bool:
        return self.number is not None

    def is_at_least(self, number: Number) -> bool:
        """Whether this is `number` or newer; an unknown version is newer than all."""
        return self.number is None or self.number >= number

    def is_older_than(self, text: str) -> bool:
        """Whether this is known to be older than the version in `text`; pre-releases count as their release."""
        other = ServerVersion.parse(text).number
        return other is not None and not self.is_at_least(other)

    def __str__(self) -> str:
        return self.text


# Fields of a create request that servers without the feature silently pass over.
FEATURE_OF_FIELD = {
    "drafts": "drafts",
    "draft_quantize": "drafts",
    "renderer": "renderer_and_parser",
    "parser": "renderer_and_parser",
    "requires": "requires_field",
}


class Features(Struct, frozen=True, kw_only=True):
    """What a server of one version does. Every flag is True from some version on, unless it says otherwise."""

    version: ServerVersion
    min_p: bool
    """The parameter `min_p` exists (0.3.1)."""
    embed_empty_loads: bool
    """`/api/embed` without input loads the model; before, `/api/embeddings` with an empty prompt does (0.3.6)."""
    gguf_adapters_misread: bool
    """A GGUF adapter is taken for weights and replaces the base's (up to 0.3.6; measured on 0.3.4)."""
    format_takes_schema: bool
    """`format` may be a JSON Schema; before, only `json` (0.5.0)."""
    folds_case: bool
    """Names that differ only in case are one model; before, they are two, and no request makes the second (0.5.2)."""
    structured_create: bool
    """create takes `from`, `files` and so on, and no Modelfile any more (0.5.5)."""
    stream_false_waits_to_end: bool
    """With `stream: false` the answer comes at the very end; before, at the first `success` (0.7.0)."""
    tells_wrong_methods: bool
    """A wrong method is answered with 405; before, with 404 as an unknown path (0.7.0)."""
    renderer_and_parser: bool
    """create takes `renderer`, `parser`, `info`, `remote_host` (0.12.0)."""
    stream_ends_at_error: bool
    """An error ends a stream, and as its first item carries an HTTP status. Before, the server went on after it and
    could write an empty model over an existing one when the base was missing (0.12.6)."""
    renderer_and_parser_inherited: bool
    """`from` hands on the base's renderer and parser (0.12.7)."""
    requires_field: bool
    """create and show know `requires` (0.14.0)."""
    suffix_routing: bool
    """`x:local` means `x:latest`, `x:cloud` and `x:…-cloud` mean ollama.com (0.18.0)."""
    raw_registry_manifest: bool
    """A pulled manifest is stored byte for byte, so that the digest in tags is the registry's (0.19.0)."""
    quantizes_bf16: bool
    """BF16 weights can be quantized (0.22.0)."""
    drafts: bool
    """create takes `draft_files` and `draft_quantize` (0.30.0)."""
    split_gguf: bool
    """A GGUF in shards is merged; before, each shard becomes a layer and the model is broken (0.30.0)."""
    gguf_rewritten: bool
    """A GGUF from `files` is rewritten, so that the stored layer is not the uploaded file (0.30.0)."""
    jinja_in_template: bool
    """show's `template` may be the chat template of the GGUF; TEMPLATE is in `modelfile` (0.30.0)."""
    lists_capabilities: bool
    """tags has the capabilities of each model; none are left when its weights cannot be read (0.30.0)."""
    deterministic_files: bool
    """Several `files` always give the same manifest (0.30.0)."""
    delete_prunes_everything: bool
    """delete also removes every unreferenced blob and partial download (0.5.13 alone)."""
    models_from_modelfile: bool
    """create takes `modelfile` (up to 0.5.4)."""
    quantize_types: frozenset[str]
    """What `quantize` may ask for, in upper case."""

    def takes_quantize(self, quantize: str) -> bool:
        """Whether `quantize` names a type that this server makes; the case of letters does not count."""
        return quantize.upper() in self.quantize_types


# flag → first version that has it
_SINCE: Final[dict[str, Number]] = {
    "min_p": (0, 3, 1),
    "embed_empty_loads": (0, 3, 6),
    "format_takes_schema": (0, 5, 0),
    "folds_case": (0, 5, 2),
    "structured_create": (0, 5, 5),
    "stream_false_waits_to_end": (0, 7, 0),
    "tells_wrong_methods": (0, 7, 0),
    "renderer_and_parser": (0, 12, 0),
    "stream_ends_at_error": (0, 12, 6),
    "renderer_and_parser_inherited": (0, 12, 7),
    "requires_field": (0, 14, 0),
    "suffix_routing": (0, 18, 0),
    "raw_registry_manifest": (0, 19, 0),
    "quantizes_bf16": (0, 22, 0),
    "drafts": (0, 30, 0),
    "split_gguf": (0, 30, 0),
    "gguf_rewritten": (0, 30, 0),
    "jinja_in_template": (0, 30, 0),
    "lists_capabilities": (0, 30, 0),
    "deterministic_files": (0, 30, 0),
}
# flag → first version that has it, first version that no longer has it
_BETWEEN: Final[dict[str, tuple[Number, Number]]] = {
    "gguf_adapters_misread": ((0, 0, 0), (0, 3, 7)),
    "models_from_modelfile": ((0, 0, 0), (0, 5, 5)),
    "delete_prunes_everything": ((0, 5, 13), (0, 5, 14)),
}
# what we assume of a server of unknown version, where the newest behavior would be the dangerous guess
_CAUTIOUS: Final[dict[str, bool]] = {
    "stream_false_waits_to_end": False,
    "stream_ends_at_error": False,
    "lists_capabilities": False,
    "deterministic_files": False,
}


def features_of(version: ServerVersion) -> Features:
    """What a server of `version` does. A pre-release counts as its release (`0.33.0-rc2` as 0.33.0)."""
    flags = {name: version.is_at_least(since) for name, since in _SINCE.items()}
    for name, (since, until) in _BETWEEN.items():
        flags[name] = version.is_at_least(since) and not version.is_at_least(until)
    if not version.is_known:
        flags |= _CAUTIOUS
    types = _FEW_QUANTIZE_TYPES if version.is_at_least((0, 7, 0)) else _ALL_QUANTIZE_TYPES
    return Features(version=version, quantize_types=types, **flags)


def first_version_with(flag: str) -> str:
    """The first version that has `flag`, for hints: `first_version_with("drafts")` is `0.30.0`."""
    return ".".join(str(part) for part in _SINCE[flag])
