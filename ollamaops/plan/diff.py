"""When is a built model the same as its declaration? Declared against observed, with what is known of the base.

The value of a field that is not declared cannot always be predicted: a server detects a chat template and its stop
words by itself, and has renderers for some architectures. Such an open field counts as a difference only when the
words of the declaration, or the model, have changed since we made it and nothing else shows why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from ollamaops.files.location import FileInfo
from ollamaops.manifest.parameters import PARAMETER_TYPES, same_parameter
from ollamaops.ollama.contents import NO_TEMPLATE, Contents
from ollamaops.ollama.features import Features
from ollamaops.ollama.shown_modelfile import read_back
from ollamaops.plan.actions import Difference, Recipe
from ollamaops.plan.comparison import Differs, InSync
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.diff_weights import Field, WeightsVerdict, weights_differences, weights_verdict
from ollamaops.plan.verdict import is_remembered
from ollamaops.settings import ParameterValue
from ollamaops.state.records import ModelRecord

SERVERS_OWN = "the server's own"  # what is wanted of a field that is neither declared nor predictable

Parameters = Mapping[str, ParameterValue]

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
        verdict = weights_verdict(desired, recipe, own, base, features, memory, just_made=just_made)
    handed_on = _handed_on(recipe, base, features)
    open_fields = _open_fields(recipe, own, handed_on, desired.weights, just_made=just_made)
    if just_made:
        own = _as_sent(own)
    judged = (field for field in _field_differences(recipe, own, handed_on) if field[0] not in open_fields)
    found = _as_differences(host, desired, judged)
    if verdict == "different":
        found += weights_differences(host, desired, recipe, own, base, features)
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
