"""How Ollama servers differ: one field per difference, one value of `Behavior` per recorded server.

The rest of the sandbox asks the `Behavior` it was given and never compares version numbers. A version between
two recorded ones is like the older of them, except for what `BEGAN` lists up to that version; a version older
than all is like the oldest. A difference whose first version is not known is not in `BEGAN` and changes at the
recorded version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

NEWEST = "0.33.0-rc2"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRules:
    """How inference differs. The defaults are the newest behavior; the comments name its first version."""

    empty_embed: bool = True  # 0.3.6: embed without input loads and answers `embeddings: []`
    unload_without_loading: bool = True  # 0.3.11
    schema_format: bool = True  # 0.5.0: `format` may be a JSON schema
    full_name_in_refusals: bool = True  # 0.5.2: `registry.ollama.ai/library/x:latest does not support tools`
    thinking: bool = True  # 0.9.0
    fractional_keep_alive: bool = True  # 0.11.8
    dimensions: bool = True  # 0.11.11
    tool_call_ids: bool = True  # 0.12.10
    strict_modalities: bool = True  # 0.30.0: no images to a text model, no embeddings of a chat model
    durations_in_ms: bool = False
    """What takes less than a millisecond is 0, and left out."""
    words_before_bad_text: int | None = 0
    """0.30.0: an answer ends early, without `done`, where the model says bytes that are not UTF-8. On a real server
    chance decides how far it gets; these are the numbers of words that were recorded. None: it says them all."""


NEWEST_RULES = InferenceRules()


@dataclass(frozen=True)
class Behavior:
    """How one server acts. The values written here are those of 0.33.0-rc2."""

    # requests and streams
    wrong_method_status: Literal[404, 405] = 405
    errors_end_streams: bool = True
    """A stream stops at its error, and a first error has a real HTTP status. Else it is 200 with `status` in the
    line, and goes on: a create whose base is missing then writes a manifest without weights, and says success."""
    waits_for_last_success: bool = True
    """`stream: false` reads the work to its end; else it stops at the first `success`, even a base's pull."""
    cloud_status_endpoint: bool = True

    # names
    names_fold_case: bool = True
    """Each part of a name takes the spelling of a stored one; else a copy that differs in case is refused."""
    source_suffixes: bool = True
    """`:local`, `:cloud` and `-cloud` say where a model is, and are taken off."""
    invalid_show: tuple[int, str] = (400, "invalid model name")
    """Status and text of show for a name that is not one; `{}` is the name as given, `{full}` with its defaults."""
    show_names_canonical: bool = True
    """`model 'x:latest' not found` rather than the name as given."""
    delete_missing_status: Literal[404, 500] = 404
    delete_nothing: str = "model is required"
    generate_missing: str = "model '{}' not found"
    chat_missing: str = "model '{}' not found"

    # create
    structured_create: bool = True
    """`from` and `files`; else a Modelfile in `modelfile`."""
    file_paths_checked: bool = True
    empty_digest_refused: bool = True
    rewrites_gguf: bool = True
    """Imported weights go through llama-quantize: another digest than the upload's."""
    file_origin: Literal["none", "blob path", "file name"] = "file name"
    """What a layer made from an uploaded file says it is from."""
    adapters_by_metadata: bool = True
    """`general.type` tells an adapter; else only the old ggla format is one, and a GGUF adapter is a model."""
    projector_test: Literal["clip", "vision", "vision alone"] = "vision alone"
    """A GGUF is a projector when it is clip's, when it sees, or when it sees and does nothing else."""
    file_ends_checked: bool = False
    """A GGUF file with bytes behind its last tensor is read on, and refused."""
    all_weights_described: bool = False
    """Projectors and adapters count in the config's `families` too, not only the model."""
    config_rootfs: bool = False
    """The config lists the layers in `rootfs.diff_ids`."""
    config_extras: bool = True
    """`renderer`, `parser`, `info` and remote stubs."""
    renderer_inherited: bool = True
    """`from` hands on the base's renderer and parser."""
    requires_known: bool = True
    info_type_errors: bool = True
    capabilities_inherited: bool = True
    message_keys: tuple[str, ...] = ("thinking", "images", "tool_calls", "tool_name", "tool_call_id")
    """What a stored message has besides its role and content."""
    old_chatml: bool = False
    splits_merge: bool = True
    drafts: bool = True

    # quantize and convert
    quantize_types: tuple[str, ...] = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0", "BF16")
    quantize_unknown: str = (
        "unsupported quantization type {} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
    )
    quantize_sources: tuple[str, ...] = ("F16", "BF16", "F32")
    quantize_source_error: str = "quantization is only supported for F16, BF16 and F32 models"
    quantize_reports: Literal["none", "line", "progress"] = "none"
    quantizer: Literal["llama.cpp", "go"] = "llama.cpp"
    quantize_skips_v: bool = False
    """Tensors with `v.` in their names keep their type (a guard for vision weights that also hits attn_v)."""
    converts: Literal["zip", "go by block", "go by name"] = "go by name"
    converted_bos_flags: bool = False
    verifies_imports: bool = True
    verifies_quantized: bool = True

    # show, tags, ps
    tags_extras: bool = True
    """`capabilities`, `parent_model`, `context_length` and `embedding_length` in tags."""
    show_cache: bool = True
    """Show answers from memory, filled when the server starts, while the manifest's digest is the same. So it does
    not notice a blob that is gone or was edited."""
    show_tensors: bool = True
    show_capabilities: bool = True
    own_template_wins: bool = True
    """The weights' own (Jinja) template runs where none is declared, or the declared one offers less."""
    show_template_overlay: bool = False
    """A `template` in the request is echoed, as `system` and `options` are."""
    show_array_limit: int = 0
    """Longer arrays in `model_info` are null without `verbose`."""
    model_info_always: bool = True
    tensor_type_names: Literal["tensor", "file"] = "tensor"
    """0.6.8 prints the name of the *file* type with the tensor type's number."""
    ps_context_length: bool = True
    ps_context_capped: bool = True
    """The context in ps is never longer than the model was trained for."""
    unloads_at_once: bool = True
    """A runner that is unloaded under another name than its own has left ps at once; else it is seen once more."""

    inference: InferenceRules = NEWEST_RULES

    # registries and the store
    raw_manifests: bool = True
    """A pulled manifest is stored as the registry sent it; else parsed and written anew."""
    layer_names: bool = True
    """A manifest that is written anew keeps the names of its layers."""
    fresh_blob_lines: bool = False
    """Every downloaded blob has progress lines; else only those that take more than 60 ms."""
    always_says_prune: bool = False
    push_missing: str = "open {}: no such file or directory"
    push_invalid: str = "unqualified name: {}"
    """What push says to a name that is none; empty: as to one that is missing."""
    push_checks_scheme: bool = False
    blob_without_redirect: str = "http: no Location header in response"
    prune_grace_s: float = 3600
    corrupt_manifest_stops_prune: bool = True

    # what no recorded server does: see VARIANTS
    missing_endpoints: tuple[str, ...] = ()
    """Words after `/api/` that the server does not know; it answers them with `missing_status`."""
    missing_status: Literal[404, 501] = 404
    runners: tuple[str, ...] = ()
    """Tags has a row of each model for each runner: one name, several digests."""
    manifest_lists: bool = False
    """The registry's tags lead to a list of manifests, not to layers."""
    foreign_words: bool = False
    """Answers have fields, and streams status lines, that nobody has seen before."""
    quantizes_gguf: bool = True


_0_33 = Behavior()
_0_32 = replace(_0_33, inference=InferenceRules(words_before_bad_text=2))
_0_12 = replace(
    _0_32,
    cloud_status_endpoint=False,
    source_suffixes=False,
    invalid_show=(500, "invalid model path"),
    show_names_canonical=False,
    delete_nothing='name "" is invalid',
    empty_digest_refused=False,
    rewrites_gguf=False,
    file_origin="blob path",
    all_weights_described=True,
    config_rootfs=True,
    requires_known=False,
    info_type_errors=False,
    capabilities_inherited=False,
    splits_merge=False,
    drafts=False,
    quantize_sources=("F16", "F32"),
    quantize_source_error="quantization is only supported for F16 and F32 models",
    quantize_reports="progress",
    quantizer="go",
    converted_bos_flags=True,
    verifies_imports=False,
    tags_extras=False,
    own_template_wins=False,
    show_cache=False,
    show_template_overlay=True,
    model_info_always=False,
    ps_context_capped=False,
    unloads_at_once=False,
    inference=InferenceRules(strict_modalities=False, words_before_bad_text=None),
    push_invalid="invalid model path",
    raw_manifests=False,
    layer_names=False,
    fresh_blob_lines=True,
    prune_grace_s=0,
)
_0_6 = replace(
    _0_12,
    wrong_method_status=404,
    errors_end_streams=False,
    waits_for_last_success=False,
    chat_missing='model "{}" not found, try pulling it first',
    config_extras=False,
    renderer_inherited=False,
    message_keys=("images", "tool_calls"),
    file_ends_checked=True,
    projector_test="vision",
    quantize_types=(
        *("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"),
        *("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS"),
        *("IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"),
    ),
    quantize_unknown="unknown fileType: {}",
    quantize_reports="line",
    quantizer="llama.cpp",
    quantize_skips_v=True,
    converts="go by block",
    verifies_quantized=False,
    tensor_type_names="file",
    ps_context_length=False,
    inference=replace(
        _0_12.inference, thinking=False, fractional_keep_alive=False, dimensions=False, tool_call_ids=False
    ),
)
_0_5 = replace(
    _0_6,
    file_paths_checked=False,
    show_tensors=False,
    show_capabilities=False,
    show_array_limit=1024,
    inference=replace(_0_6.inference, durations_in_ms=True),
)
_0_3 = replace(
    _0_5,
    names_fold_case=False,
    invalid_show=(404, "model '{}' not found"),
    delete_missing_status=500,
    generate_missing='model "{}" not found, try pulling it first',
    structured_create=False,
    file_origin="none",
    adapters_by_metadata=False,
    projector_test="clip",
    old_chatml=True,
    converts="zip",
    inference=replace(
        _0_5.inference,
        empty_embed=False,
        unload_without_loading=False,
        schema_format=False,
        full_name_in_refusals=False,
        durations_in_ms=False,
    ),
    always_says_prune=True,
    push_missing="stat {}: no such file or directory",
    push_invalid="",
    push_checks_scheme=True,
    blob_without_redirect="unexpected status code 200",
    corrupt_manifest_stops_prune=False,
)

RECORDED: dict[str, Behavior] = {
    "0.3.4": _0_3,
    "0.5.7": _0_5,
    "0.6.8": _0_6,
    "0.12.11": _0_12,
    "0.32.15": _0_32,
    "0.33.0-rc2": _0_33,
}


BEGAN: Mapping[tuple[int, int, int], tuple[str, ...]] = {
    (0, 3, 6): ("file_origin", "empty_embed"),
    (0, 3, 7): ("adapters_by_metadata", "always_says_prune"),
    (0, 3, 11): ("unload_without_loading",),
    (0, 3, 13): ("delete_missing_status",),
    (0, 4, 0): ("corrupt_manifest_stops_prune",),
    (0, 5, 0): ("schema_format",),
    (0, 5, 2): (
        *("names_fold_case", "invalid_show", "generate_missing", "push_checks_scheme"),
        "full_name_in_refusals",
    ),
    (0, 5, 5): ("structured_create", "converts"),
    (0, 5, 13): ("file_paths_checked",),
    (0, 6, 1): ("show_tensors",),
    (0, 6, 4): ("show_capabilities",),
    (0, 7, 0): (
        *("wrong_method_status", "waits_for_last_success", "quantize_types", "quantize_unknown"),
        *("quantize_reports", "quantizer", "quantize_skips_v", "verifies_quantized"),
    ),
    (0, 9, 0): ("thinking",),
    (0, 10, 0): ("ps_context_length",),
    (0, 11, 8): ("fractional_keep_alive",),
    (0, 11, 11): ("dimensions",),
    (0, 12, 0): ("config_extras", "chat_missing"),
    (0, 12, 6): ("errors_end_streams",),
    (0, 12, 7): ("renderer_inherited",),
    (0, 12, 10): ("tool_call_ids",),
    (0, 14, 0): ("requires_known", "layer_names"),
    (0, 14, 3): ("model_info_always",),
    (0, 15, 0): ("push_invalid",),
    (0, 16, 2): ("cloud_status_endpoint",),
    (0, 17, 6): ("empty_digest_refused",),
    (0, 18, 0): ("source_suffixes", "invalid_show", "delete_nothing"),
    (0, 19, 0): ("raw_manifests",),
    (0, 20, 0): ("capabilities_inherited",),
    (0, 21, 0): ("prune_grace_s",),
    (0, 22, 0): ("quantize_sources", "quantize_source_error"),
    (0, 23, 2): ("show_cache",),
    (0, 30, 0): (
        *("show_names_canonical", "rewrites_gguf", "verifies_imports", "file_origin", "splits_merge"),
        *("drafts", "quantize_reports", "quantizer", "tags_extras", "strict_modalities"),
        *("own_template_wins", "words_before_bad_text"),
    ),
    (0, 31, 2): ("info_type_errors",),
    (0, 32, 7): ("config_rootfs",),
}
"""Version → what is from then on as in the next recorded server: flags of Behavior and of its InferenceRules."""

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "tomorrow": {
        "runners": ("ggml", "llamacpp"),
        "manifest_lists": True,
        "foreign_words": True,
        "quantizes_gguf": False,
    },
    "minimal": {"missing_endpoints": ("create", "copy", "blobs")},
    "minimal-501": {"missing_endpoints": ("create", "copy", "blobs"), "missing_status": 501},
}
"""Servers that are announced, or only compatible with Ollama → how they differ from the recorded ones."""

# show's answer from 0.15.0 to 0.17.7; no server in between was recorded
_UNQUALIFIED = (500, "unqualified name: {full}")


def behavior_for(version: str) -> Behavior:
    """The behavior of a server of that version: recorded, or put together from its recorded neighbors."""
    wanted = _order(version) or _order(NEWEST)
    older = [name for name in RECORDED if _order(name) <= wanted]
    newer = [name for name in RECORDED if _order(name) > wanted]
    if not older or not newer:
        return RECORDED[(older or newer[:1])[-1]]
    began = [flag for since, flags in BEGAN.items() if _order(older[-1]) < since <= wanted for flag in flags]
    behavior = _laid_over(RECORDED[older[-1]], RECORDED[newer[0]], began)
    is_unqualified = (0, 15, 0) <= wanted < (0, 18, 0)
    return replace(behavior, invalid_show=_UNQUALIFIED) if is_unqualified else behavior


def as_variant(behavior: Behavior, name: str) -> Behavior:
    """The behavior with what makes it one of VARIANTS; KeyError if there is none."""
    return replace(behavior, **VARIANTS[name])  # type: ignore[arg-type]  # a table of field values


def _laid_over(old: Behavior, new: Behavior, flags: Iterable[str]) -> Behavior:
    """`old`, with the flags as they are in `new`."""
    own = {field.name for field in fields(Behavior)}
    changes = {flag: getattr(new, flag) for flag in flags if flag in own}
    rules = {flag: getattr(new.inference, flag) for flag in flags if flag not in own}
    return replace(old, **changes, inference=replace(old.inference, **rules))


def _order(version: str) -> tuple[int, ...]:
    """The first three numbers, for comparing; a suffix such as `-rc2` does not count.

    Empty for text without a number, and for 0.0.0, which a server built from source calls itself.
    """
    numbers = re.match(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    order = tuple(int(part or 0) for part in numbers.groups()) if numbers else ()
    return order if any(order) else ()
