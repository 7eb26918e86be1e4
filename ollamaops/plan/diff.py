"""When is a built model the same as its declaration? Declared against observed, with what is known of the base.

The value of a field that is not declared cannot always be predicted: a server detects a chat template and its stop
words by itself, and has renderers for some architectures. Such an open field counts as a difference only when the
words of the declaration, or the model, have changed since we made it and nothing else shows why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from msgspec.structs import replace

from ollamaops.errors import InvalidName
from ollamaops.files.location import FileInfo
from ollamaops.manifest.parameters import PARAMETER_TYPES, same_parameter
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import NO_TEMPLATE, Contents
from ollamaops.ollama.features import Features
from ollamaops.ollama.shown_modelfile import read_back
from ollamaops.plan.actions import Blob, Difference, Recipe
from ollamaops.plan.comparison import Differs, InSync
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.verdict import is_remembered
from ollamaops.settings import ParameterValue
from ollamaops.state.records import ModelRecord

SERVERS_OWN = "the server's own"  # what is wanted of a field that is neither declared nor predictable

WeightsVerdict = Literal["same", "different", "unverified"]
Parameters = Mapping[str, ParameterValue]
Field = tuple[str, str, str]  # path, desired, observed
Tensor = tuple[str, tuple[int, ...]]  # name, shape

# what converts, or may convert, on its way into a layer: everything that is not a GGUF
_CONVERTED = (".safetensors", ".json", ".bin", ".pth", ".model", ".jinja")
_SHORT_QUANTIZATIONS = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_UNKNOWN_ARCHITECTURES = ("", "unknown")  # of a file without a header, or whose header was not read
_UNKNOWN_QUANTIZATIONS = ("", "UNKNOWN")  # every server shows F32 as unknown
# Ollama sets stop words for it at every create that leaves it without renderer or parser (0.20.0 on)
_STOPS_BY_ARCHITECTURE = ("gemma4",)


def compare_build(
    host: str,
    desired: DesiredModel,
    own: Contents,
    base: Contents | None,
    features: Features,
    *,
    memory: ModelRecord | None = None,
    just_made: bool = False,
) -> InSync | Differs:
    """Compare a model that is built (`desired.recipe`) with what the host shows of it.

    `base` None means that the base could not be looked at: only what is declared is compared then. `just_made`
    says that this run built the model from uploads the server verified, so its weights are the declared ones.
    """
    recipe = desired.recipe
    if recipe is None:
        raise ValueError(f"{desired.name} is not built from a recipe")
    verdict: WeightsVerdict = "same"
    if not ignores_weights(desired.spec.ignore):
        verdict = _weights_verdict(desired, recipe, own, base, features, memory, just_made=just_made)
    handed_on = _handed_on(recipe, base, features)
    open_fields = _open_fields(recipe, own, handed_on, desired.weights, just_made=just_made)
    if just_made:
        own = _as_sent(own)
    judged = (field for field in _field_differences(recipe, own, handed_on) if field[0] not in open_fields)
    found = _as_differences(host, desired, judged)
    if verdict == "different":
        found += _weights_differences(host, desired, recipe, own, base, features)
    if not found and not just_made and _is_stale(memory, desired, own):
        stale = ((path, SERVERS_OWN, observed) for path, observed in open_fields.items())
        found = _as_differences(host, desired, stale)
    if found:
        return Differs(tuple(found))
    if verdict == "unverified":
        return InSync(weights="unverified" if own.blobs else "hidden")
    return InSync()


def _as_differences(host: str, desired: DesiredModel, fields: Iterable[Field]) -> list[Difference]:
    """What of it is not tolerated."""
    return [
        Difference(host=host, model=desired.name, kind="field", path=path, desired=wanted, observed=observed)
        for path, wanted, observed in fields
        if not is_ignored(path, desired.spec.ignore)
    ]


def _is_stale(memory: ModelRecord | None, desired: DesiredModel, own: Contents) -> bool:
    """Whether we made exactly this model, and for a declaration in other words; or for this very declaration, and
    somebody else has put another in its place."""
    if memory is None or not memory.is_ours:
        return False
    if memory.digest != own.digest:
        return is_remembered(memory, desired, memory.digest)
    if memory.status == "doubted":
        return False
    return memory.status == "rolled_back" or memory.fingerprint.words != desired.fingerprint.words


def is_ignored(path: str, ignore: Iterable[str]) -> bool:
    """Whether drift in the field `path` is tolerated: `parameters` covers `parameters.num_ctx`."""
    return any(path == entry or path.startswith(f"{entry}.") for entry in ignore)


def ignores_weights(ignore: Iterable[str]) -> bool:
    """Whether it is tolerated that a model is made from other weights than declared."""
    return not {"weights", "from", "files", "digest"}.isdisjoint(ignore)


# fields


def _handed_on(recipe: Recipe, base: Contents | None, features: Features) -> Contents | None:
    """What undeclared fields inherit: the base's values; nothing from plain weights. None: the base was not shown."""
    if recipe.base is None:
        return Contents(digest="", template=NO_TEMPLATE)
    if base is None or features.renderer_and_parser_inherited:
        return base
    return replace(base, renderer="", parser="")


def _open_fields(
    recipe: Recipe,
    own: Contents,
    handed_on: Contents | None,
    weights: tuple[FileInfo, ...],
    *,
    just_made: bool,
) -> dict[str, str]:
    """The fields that are not declared and that a server fills in by itself, with what is in them.

    What is in a model that was just made is what its server gives, also one that is newer than all we know.
    """
    if handed_on is None:
        return {}
    found: dict[str, str] = {}
    detected = just_made or _may_be_detected(weights)
    if recipe.template is None and recipe.base is None and detected:
        found["template"] = own.template
    if "stop" not in recipe.parameters and (detected or _has_stops_by_architecture(own, handed_on)):
        found["parameters.stop"] = _show(own.parameters.get("stop"))
    return found | {
        path: observed
        for path, declared, inherited, observed in _config_fields(recipe, own, handed_on)
        if not declared and (just_made or (observed and not inherited))
    }


def _may_be_detected(weights: tuple[FileInfo, ...]) -> bool:
    """Whether the server may have added a template and stop words that it found in the weights."""
    return any(info.chat_template or not info.architecture for info in weights)


def _has_stops_by_architecture(own: Contents, handed_on: Contents) -> bool:
    return own.architecture in _STOPS_BY_ARCHITECTURE and not (handed_on.renderer and handed_on.parser)


def _config_fields(
    recipe: Recipe, own: Contents, handed_on: Contents | None
) -> tuple[tuple[str, str | None, str, str], ...]:
    """(path, declared, inherited, observed) of what is in a model's config rather than in a layer."""
    base = handed_on or own
    return (
        ("renderer", recipe.renderer, base.renderer, own.renderer),
        ("parser", recipe.parser, base.parser, own.parser),
        ("requires", recipe.requires, base.requires, own.requires),
    )


def _field_differences(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    """Every field that differs from what is declared, or else handed on by `base`; None: not judged."""
    yield from _template_difference(recipe, own, base)
    yield from _system_difference(recipe, own, base)
    yield from _parameter_differences(recipe, own, base)
    yield from _message_difference(recipe, own, base)
    yield from _license_difference(recipe, own, base)
    for path, declared, inherited, observed in _config_fields(recipe, own, base):
        wanted = declared or inherited
        if wanted != observed:
            yield path, wanted, observed


def _template_difference(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    wanted = recipe.template
    if wanted is None:
        wanted = base.template if base else own.template
    if wanted != own.template and wanted not in own.templates and read_back(wanted) != own.template:
        yield "template", wanted, own.template


def _system_difference(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    wanted = recipe.system
    if wanted is None:
        wanted = base.system if base else own.system
    if wanted != own.system:
        yield "system", wanted, own.system


def _parameter_differences(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    """Declared values over inherited ones. Without a base, undeclared ones are not judged."""
    declared, inherited = recipe.parameters, base.parameters if base else {}
    wanted = {name: value for name, value in {**inherited, **declared}.items() if not _is_unset(value)}
    there = {name: value for name, value in own.parameters.items() if not _is_unset(value)}
    for name in sorted(wanted.keys() | there.keys()):
        path, want, have = f"parameters.{name}", wanted.get(name), there.get(name)
        if name not in wanted:
            if name in declared or base is not None:
                yield path, "", _show(have)
        elif _is_mistyped(name, want, have, is_declared=name in declared):
            yield path, _show(want), f'"{have}"'
        elif not same_parameter(name, _flat(want), _flat(have)):
            yield path, _show(want), _show(have)


def _is_mistyped(name: str, want: ParameterValue, have: ParameterValue, *, is_declared: bool) -> bool:
    """Whether the server holds text where its API needs something else: it then fails to load the model."""
    if not isinstance(have, str) or isinstance(want, str) or name not in PARAMETER_TYPES:
        return False
    return is_declared or name != "stop"  # how an inherited list was written is not known for sure


def _is_unset(value: object) -> bool:
    return value is None or value == ()


def _as_sent(own: Contents) -> Contents:
    """A model that was just made has its stop word as it was sent, although a blob with it as text is there too."""
    stop = own.parameters.get("stop")
    return replace(own, parameters={**own.parameters, "stop": (stop,)}) if isinstance(stop, str) else own


def _flat(value: ParameterValue) -> ParameterValue:
    """A list of one looks like its item in `show`."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


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


def _message_difference(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    wanted = recipe.messages or (base.messages if base else own.messages)
    if wanted != own.messages:
        yield "messages", _show_messages(wanted), _show_messages(own.messages)


def _show_messages(messages: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"{role}: {content}" for role, content in messages)


def _license_difference(recipe: Recipe, own: Contents, base: Contents | None) -> Iterator[Field]:
    """Licenses append: the base's, then the declared ones, joined by newlines as `show` prints them."""
    declared = "\n".join(recipe.licenses)
    if base is None:
        if declared and own.license_text != declared and not own.license_text.endswith(f"\n{declared}"):
            yield "license", declared, own.license_text
        return
    wanted = "\n".join(text for text in (base.license_text, declared) if text)
    if wanted != own.license_text:
        yield "license", wanted, own.license_text


# weights


def _weights_verdict(
    desired: DesiredModel,
    recipe: Recipe,
    own: Contents,
    base: Contents | None,
    features: Features,
    memory: ModelRecord | None,
    *,
    just_made: bool,
) -> WeightsVerdict:
    """What is stored as it was given is compared by digest; what the server converts, by memory, else by header."""
    if recipe.base is not None and base is None:
        return "same"  # not compared now: builds.py has it looked at again when the base is there
    tolerated = _adapters(recipe, own, base) if "adapters" in desired.spec.ignore else frozenset()
    observed = {*own.blobs, *own.adapters} - tolerated
    if memory is not None and not (memory.is_ours or memory.fingerprint.weights):
        memory = None  # it was found, and its weights were never compared
    if memory is not None and recipe.base is None and _is_verified(memory, desired, observed):
        return "same"
    kept = _are_files_kept(desired, recipe, features)
    given = _given_digests(recipe, base, kept=kept) - tolerated
    converted = _is_converted(recipe, kept=kept)
    if not given <= observed or (given != observed and not converted):
        return "different"
    unseen = _is_unseen(base)
    if just_made or not (converted or unseen):
        return "same"
    if memory is not None and _is_outdated(memory, desired, recipe, base):
        return "different"
    if memory is not None and (memory.digest == own.digest if unseen else memory.blobs):
        remembered = {Digest.parse(blob) for blob in memory.blobs} - tolerated
        return "different" if observed != remembered else "same" if memory.weights_verified else "unverified"
    headers = _expected_headers(desired, base)
    agree = _tensors_agree(headers, own) and not _other_quantization(headers, own, recipe.quantize)
    if not agree or any(_other_counts(desired, recipe, own, base, features)):
        return "different"
    return "different" if unseen and _has_other_parent(own, recipe) else "unverified"


def _is_verified(memory: ModelRecord, desired: DesiredModel, observed: set[Digest]) -> bool:
    """Whether these layers came of the declared files. An older server does not undo what a newer one rewrote."""
    is_for_these = memory.weights_verified and memory.fingerprint.weights == desired.fingerprint.weights
    return is_for_these and observed == set(map(Digest.parse, memory.blobs))


def _is_unseen(base: Contents | None) -> bool:
    """Whether no server shows the layers that are inherited: those of MLX models (0.14 on)."""
    return base is not None and not base.blobs


def _has_other_parent(own: Contents, recipe: Recipe) -> bool:
    """Whether the host says that it is made from another model; many models say nothing, or no name."""
    try:
        return ModelName.parse(own.parent) != recipe.base
    except InvalidName:
        return False


def _adapters(recipe: Recipe, own: Contents, base: Contents | None) -> frozenset[Digest]:
    inherited = base.adapters if base else ()
    return frozenset((*own.adapters, *inherited, *(blob.digest for blob in recipe.adapters)))


def _are_files_kept(desired: DesiredModel, recipe: Recipe, features: Features) -> bool:
    """Whether the uploads in `files` are the layers that `show` prints. Of several models it prints the last only."""
    models = [info for info in desired.weights if not info.is_projector]
    return len(models) <= 1 and not (features.gguf_rewritten or recipe.quantize)


def _given_digests(recipe: Recipe, base: Contents | None, *, kept: bool) -> set[Digest]:
    """The digests of everything that is stored as it was given, so that `show` must print them."""
    uploads = (*(recipe.files if kept else ()), *recipe.adapters)
    given = {blob.digest for blob in uploads if _is_gguf(blob)}
    if base is not None:
        given |= {*base.adapters, *(() if recipe.quantize else base.blobs)}
    return given


def _is_converted(recipe: Recipe, *, kept: bool) -> bool:
    """Whether the server makes layers whose digests cannot be predicted."""
    if recipe.drafts or recipe.quantize or (recipe.files and not kept):
        return True
    return not all(_is_gguf(blob) for blob in (*recipe.files, *recipe.adapters))


def _is_gguf(blob: Blob) -> bool:
    return not blob.name.lower().endswith(_CONVERTED)


def _is_outdated(memory: ModelRecord, desired: DesiredModel, recipe: Recipe, base: Contents | None) -> bool:
    """Whether what we remember was made from other weights: other files, or a base that has changed since.

    The base's layers, where they are to be seen in the model, are compared themselves.
    """
    if memory.fingerprint.weights != desired.fingerprint.weights:
        return True
    is_hidden = recipe.quantize is not None or _is_unseen(base)
    return is_hidden and base is not None and memory.base_digest != base.digest


def _expected_headers(desired: DesiredModel, base: Contents | None) -> list[FileInfo]:
    if base is None:
        return [info for info in desired.weights if not info.is_projector]
    return [
        FileInfo(
            digest=Digest(base.digest),
            size_bytes=0,
            architecture=base.architecture,
            parameter_count=base.parameter_count,
            quantization=base.quantization,
            tensors=base.tensors,
        )
    ]


def _tensors_agree(headers: list[FileInfo], own: Contents) -> bool:
    """Whether the headers (of one model, maybe in shards) agree with what the host shows, where both say anything."""
    architectures = {info.architecture for info in headers} - {""}
    if not architectures or not own.architecture:
        return True
    if own.architecture not in architectures:
        return False
    count = sum(info.parameter_count for info in headers)
    if own.parameter_count and count and own.parameter_count != count:
        return False
    tensors = frozenset[Tensor]().union(*(_normalized(info.tensors) for info in headers))
    return not own.tensors or tensors <= _normalized(own.tensors)


def _other_quantization(
    headers: list[FileInfo], own: Contents, quantize: str | None
) -> tuple[str, str] | None:
    """(wanted, observed) when the host shows another quantization than is declared, or than the headers say."""
    said = {_quantization(info.quantization) for info in headers if info.architecture and own.architecture}
    wanted = ({_quantization(quantize)} if quantize else said) - {*_UNKNOWN_QUANTIZATIONS}
    observed = _quantization(own.quantization)
    if not wanted or observed in _UNKNOWN_QUANTIZATIONS or observed in wanted:
        return None
    return " or ".join(sorted(wanted)), observed


def _normalized(tensors: frozenset[Tensor]) -> frozenset[Tensor]:
    """Without the ones at the end of shapes: llama-quantize, which rewrites imports since 0.30, drops them."""
    return frozenset((name, _without_last_ones(shape)) for name, shape in tensors)


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = next((end for end in range(len(shape), 0, -1) if shape[end - 1] != 1), 0)
    return shape[:kept]


def _quantization(text: str) -> str:
    return _SHORT_QUANTIZATIONS.get(text.upper(), text.upper())


def _other_counts(
    desired: DesiredModel, recipe: Recipe, own: Contents, base: Contents | None, features: Features
) -> Iterator[Field]:
    """What there is more or less of than declared, beside the weights. What shows no weights is not judged."""
    counts = _counts(desired, recipe, own, base, features) if own.blobs else ()
    for path, declared, unknown, there in counts:
        if not declared <= there <= declared + unknown:
            yield path, str(declared), str(there)


def _counts(
    desired: DesiredModel, recipe: Recipe, own: Contents, base: Contents | None, features: Features
) -> Iterator[tuple[str, int, int, int]]:
    """(path, declared, how many more it may be, there). A GGUF file without a header that is known may be anything,
    and it is not known how many layers other weights become.

    Every version prints all projectors and all adapters; of drafts, which nothing here tells from adapters, the last.
    """
    unknown = [
        blob
        for blob, info in zip(recipe.files, desired.weights, strict=True)
        if info.architecture in _UNKNOWN_ARCHITECTURES and not info.is_projector
    ]
    projectors = sum(info.is_projector for info in desired.weights) + (len(base.blobs[1:]) if base else 0)
    yield "projectors", projectors, len(unknown), len(own.blobs[1:])
    if "adapters" in desired.spec.ignore:
        return
    kept = {*(base.adapters if base else ()), *(blob.digest for blob in recipe.adapters if _is_gguf(blob))}
    are_converted = not all(map(_is_gguf, recipe.adapters))  # together they are one
    adapters = len(kept) + are_converted
    more, drafts, there = sum(map(_is_gguf, unknown)), int(bool(recipe.drafts)), len({*own.adapters})
    if features.drafts:
        declared = [path for path, count in (("adapters", adapters), ("drafts", drafts)) if count]
        yield " and ".join(declared) or "adapters or drafts", adapters + drafts, more, there
    else:
        yield "adapters", adapters, more, there
        yield "drafts", drafts, 0, 0


def _weights_differences(
    host: str,
    desired: DesiredModel,
    recipe: Recipe,
    own: Contents,
    base: Contents | None,
    features: Features,
) -> list[Difference]:
    """What is said of weights that differ: their digests, unless these cannot be compared or there is more to say."""
    if base and not (base.blobs or own.blobs):
        return [Difference(host=host, model=desired.name, kind="base", desired=str(recipe.base))]
    fields: list[Field] = []
    if _is_converted(recipe, kept=_are_files_kept(desired, recipe, features)):
        fields += _other_counts(desired, recipe, own, base, features)
    headers = _expected_headers(desired, base)
    other = _other_quantization(headers, own, recipe.quantize)
    if other and (recipe.files or recipe.quantize) and _tensors_agree(headers, own):
        fields.append(("quantization", *other))
    observed = ", ".join(digest.short for digest in (*own.blobs, *own.adapters))
    return [
        Difference(host=host, model=desired.name, kind="weights", path=path, desired=wanted, observed=there)
        for path, wanted, there in fields or [("weights", _say_weights(recipe, base), observed)]
    ]


def _say_weights(recipe: Recipe, base: Contents | None) -> str:
    """The digests of everything that the weights are made from, with what they are quantized to."""
    made_of = [*(base.blobs if base else ()), *(blob.digest for blob in recipe.files)]
    kept = [*(base.adapters if base else ()), *(blob.digest for blob in recipe.adapters)]
    drafts = [blob.digest for blob in recipe.drafts]
    parts = ((made_of, recipe.quantize), (kept, None), (drafts, recipe.draft_quantize))
    return ", ".join(
        digest.short + (f" as {_quantization(quantize)}" if quantize else "")
        for digests, quantize in parts
        for digest in digests
    )
