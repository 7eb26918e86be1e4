"""When are two models the same? Declared against observed, with what is known of the base, never more.

Decides in what a model on a host differs from its declaration; leaves to planner.py what to do about it. Values in,
Differences out. The fact a reader would miss: for a model made from weights nobody can predict every value
(a server detects a chat template and its stop words by itself), so what is undeclared there is judged mildly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ollamaops.manifest.recipe import same_parameter
from ollamaops.names import Digest
from ollamaops.ollama.version import Features
from ollamaops.plan.actions import Blob, Difference, Recipe
from ollamaops.plan.desired import DesiredModel, same_weights
from ollamaops.plan.observed import Contents, FileInfo, Memory

NO_TEMPLATE = "{{ .Prompt }}"  # what every server shows for a model without a template layer

WeightsVerdict = Literal["same", "different", "unverified"]
Parameters = Mapping[str, int | float | bool | str | tuple[str, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a built model compares with its declaration. `unverified` weights agree as far as anybody can tell."""

    differences: tuple[Difference, ...]
    weights: WeightsVerdict = "same"


def compare_build(
    host: str,
    desired: DesiredModel,
    own: Contents,
    base: Contents | None,
    features: Features,
    *,
    memory: Memory | None = None,
    just_made: bool = False,
) -> Comparison:
    """Compare a model that is built (`desired.recipe`) with what the host shows of it.

    `base` None means that the base could not be looked at: only what is declared is compared then. `just_made`
    says that this run built the model from uploads the server verified, so its weights are the declared ones.
    """
    recipe = desired.recipe
    if recipe is None:
        raise ValueError(f"{desired.name} is not built from a recipe")
    found = [
        Difference(host=host, model=desired.name, kind="field", path=path, desired=wanted, observed=observed)
        for path, wanted, observed in _field_differences(recipe, own, base, desired.weights)
        if not is_ignored(path, desired.spec.ignore)
    ]
    verdict = _weights_verdict(desired, own, base, features, memory, just_made=just_made)
    if verdict == "different":
        found.append(_weights_difference(host, desired, own, base))
    return Comparison(differences=tuple(found), weights=verdict)


def is_ignored(path: str, ignore: Iterable[str]) -> bool:
    """Whether drift in the field `path` is tolerated: `parameters` covers `parameters.num_ctx`."""
    return any(path == entry or path.startswith(f"{entry}.") for entry in ignore)


def _field_differences(
    recipe: Recipe, own: Contents, base: Contents | None, weights: tuple[FileInfo, ...]
) -> Iterable[tuple[str, str, str]]:
    """(path, desired, observed) of every field that differs."""
    from_weights = recipe.base is None
    yield from _text_differences(recipe, own, base, from_weights=from_weights, weights=weights)
    known = {} if from_weights else base.parameters if base else None
    yield from _parameter_differences(recipe.parameters, own.parameters, known, _is_detected(weights))
    yield from _message_differences(recipe, own, base, from_weights=from_weights)
    yield from _license_differences(recipe, own, base, from_weights=from_weights)
    for path, wanted, observed in (
        ("renderer", recipe.renderer, own.renderer),
        ("parser", recipe.parser, own.parser),
        ("requires", recipe.requires, own.requires),
    ):
        if wanted is not None and wanted != observed:
            yield path, wanted, observed


def _text_differences(
    recipe: Recipe,
    own: Contents,
    base: Contents | None,
    *,
    from_weights: bool,
    weights: tuple[FileInfo, ...],
) -> Iterable[tuple[str, str, str]]:
    if recipe.template is not None:
        if recipe.template not in own.templates:
            yield "template", recipe.template, own.template
    elif base is not None:
        if base.template not in own.templates:
            yield "template", base.template, own.template
    elif from_weights and not _is_detected(weights) and NO_TEMPLATE not in own.templates:
        yield "template", NO_TEMPLATE, own.template

    wanted = recipe.system
    if wanted is None:
        wanted = "" if from_weights else base.system if base else own.system
    if wanted != own.system:
        yield "system", wanted, own.system


def _is_detected(weights: tuple[FileInfo, ...]) -> bool:
    """Whether the server may have added a template and stop words that it found in the weights."""
    return not weights or any(info.has_chat_template or not info.architecture for info in weights)


def _parameter_differences(
    declared: Parameters, observed: Parameters, inherited: Parameters | None, detected: bool
) -> Iterable[tuple[str, str, str]]:
    """Declared values over inherited ones. `inherited` None: not known, so undeclared ones are not judged."""
    effective = {**(inherited or {}), **declared}
    effective = {name: value for name, value in effective.items() if not _is_unset(value)}
    for name, value in sorted(effective.items()):
        if name not in observed or not same_parameter(name, value, observed[name]):
            yield f"parameters.{name}", _show(value), _show(observed.get(name))
    for name, value in sorted(observed.items()):
        tolerated = name not in declared and (
            inherited is None or (name == "stop" and detected and not inherited)
        )
        if name not in effective and not _is_unset(value) and not tolerated:
            yield f"parameters.{name}", "", _show(value)


def _is_unset(value: object) -> bool:
    return value is None or value == ()


def _show(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _message_differences(
    recipe: Recipe, own: Contents, base: Contents | None, *, from_weights: bool
) -> Iterable[tuple[str, str, str]]:
    wanted = recipe.messages
    if not wanted:
        wanted = () if from_weights else base.messages if base else own.messages
    if wanted != own.messages:
        yield "messages", _show_messages(wanted), _show_messages(own.messages)


def _show_messages(messages: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"{role}: {content}" for role, content in messages)


def _license_differences(
    recipe: Recipe, own: Contents, base: Contents | None, *, from_weights: bool
) -> Iterable[tuple[str, str, str]]:
    """Licences append: the base's, then the declared ones, joined by newlines as `show` prints them."""
    if base is None and not from_weights:
        if recipe.licenses and not own.license_text.endswith("\n".join(recipe.licenses)):
            yield "licenses", "\n".join(recipe.licenses), own.license_text
        return
    inherited = (base.license_text,) if base and base.license_text else ()
    wanted = "\n".join((*inherited, *recipe.licenses))
    if wanted != own.license_text:
        yield "licenses", wanted, own.license_text


def _weights_verdict(
    desired: DesiredModel,
    own: Contents,
    base: Contents | None,
    features: Features,
    memory: Memory | None,
    *,
    just_made: bool,
) -> WeightsVerdict:
    recipe = desired.recipe
    assert recipe is not None
    if recipe.base is not None and base is None:
        return "same"  # not judged: the next round looks again, when the base is there
    expected = _expected_blobs(recipe, base, features)
    observed = {*own.blobs, *own.adapters}
    if expected is not None and observed <= expected and bool(observed) == bool(expected):
        return "same" if _has_all(expected, observed, recipe) else "different"
    if expected is not None:
        return "different"
    if just_made:
        return "same"
    if memory is not None and same_weights(memory.fingerprint, desired.fingerprint) and memory.blobs:
        if not observed <= {Digest.parse(blob) for blob in memory.blobs}:
            return "different"
        return "same" if memory.verified else "unverified"
    return "unverified" if _headers_agree(desired.weights, own, recipe.quantize) else "different"


def _has_all(expected: set[Digest], observed: set[Digest], recipe: Recipe) -> bool:
    """Servers print one model layer only, so files of several shards need not all be seen; a base's must."""
    return expected == observed or recipe.base is None


def _expected_blobs(recipe: Recipe, base: Contents | None, features: Features) -> set[Digest] | None:
    """The digests that `show` must print, or None when the server converts what it is given."""
    converted = recipe.quantize is not None or recipe.draft_quantize is not None
    local = (*recipe.files, *recipe.adapters, *recipe.drafts)
    if converted or not all(_is_gguf(blob) for blob in local):
        return None
    if (recipe.files or recipe.drafts) and features.gguf_rewritten:
        return None
    inherited = {*base.blobs, *base.adapters} if base else set()
    return inherited | {blob.digest for blob in local}


def _is_gguf(blob: Blob) -> bool:
    return not blob.name.endswith((".safetensors", ".json", ".bin", ".pth", ".model", ".jinja"))


def _headers_agree(weights: tuple[FileInfo, ...], own: Contents, quantize: str | None) -> bool:
    """Whether what the file's header says is what the host shows, as far as both say anything."""
    models = [info for info in weights if info.architecture and not info.is_projector]
    if not models or not own.architecture:
        return True
    if own.architecture not in {info.architecture for info in models}:
        return False
    count = sum(info.parameter_count for info in models)
    if own.parameter_count and count and own.parameter_count != count:
        return False
    if quantize:
        return not own.quantization or own.quantization.lower() == quantize.lower()
    return not own.tensors or models[0].tensors <= own.tensors or len(models) > 1


def _weights_difference(host: str, desired: DesiredModel, own: Contents, base: Contents | None) -> Difference:
    recipe = desired.recipe
    assert recipe is not None
    wanted = base.blobs if base else tuple(blob.digest for blob in recipe.files)
    return Difference(
        host=host,
        model=desired.name,
        kind="weights",
        path="weights",
        desired=", ".join(digest.short for digest in wanted),
        observed=", ".join(digest.short for digest in own.blobs),
    )
