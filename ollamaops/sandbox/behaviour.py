"""What differs between Ollama servers: one value per difference, one column per recorded server.

Decides nothing by itself: the rest of the sandbox asks the `Behaviour` it was given and never compares version
numbers. The columns are the servers that were recorded; any other version behaves like the newest of them that
is not newer (older than all: like the oldest).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ollamaops.sandbox.inference_requests import NEWEST_RULES, InferenceRules

NEWEST = "0.33.0-rc2"


@dataclass(frozen=True)
class Behaviour:
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
    """Status and text of show for a name that is not one; `{}` is the name as given."""
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
    show_tensors: bool = True
    show_capabilities: bool = True
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

    inference: InferenceRules = NEWEST_RULES

    # registries and the store
    raw_manifests: bool = True
    """A pulled manifest is stored as the registry sent it; else parsed and written anew."""
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


_0_32 = Behaviour()
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
    show_template_overlay=True,
    model_info_always=False,
    ps_context_capped=False,
    inference=InferenceRules(strict_modalities=False),
    push_invalid="invalid model path",
    raw_manifests=False,
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
    ),
    always_says_prune=True,
    push_missing="stat {}: no such file or directory",
    push_invalid="",
    push_checks_scheme=True,
    blob_without_redirect="unexpected status code 200",
    corrupt_manifest_stops_prune=False,
)

RECORDED: dict[str, Behaviour] = {
    "0.3.4": _0_3,
    "0.5.7": _0_5,
    "0.6.8": _0_6,
    "0.12.11": _0_12,
    "0.32.15": _0_32,
    "0.33.0-rc2": _0_32,
}


def behaviour_for(version: str) -> Behaviour:
    """The behaviour of the newest recorded server that is not newer than `version`."""
    wanted = _order(version) or _order(NEWEST)
    older = [name for name in RECORDED if _order(name) <= wanted]
    return RECORDED[older[-1] if older else next(iter(RECORDED))]


def _order(version: str) -> tuple[int, ...]:
    """For comparing: the first three numbers; a suffix such as `-rc2` does not count. Empty for 0.0.0 and no number.

    A server built from source calls itself 0.0.0.
    """
    numbers = re.match(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    order = tuple(int(part or 0) for part in numbers.groups()) if numbers else ()
    return order if any(order) else ()
