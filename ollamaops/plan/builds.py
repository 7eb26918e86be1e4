"""Plan built models: what has to be made again, and from which uploads.

A model cannot be compared while its base is missing, so the base is fetched first and the model is looked at again.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from ollamaops.names import ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import first_version_with
from ollamaops.plan.actions import Blob, CopyModel, CreateModel, Recipe, UploadBlob, id_of
from ollamaops.plan.bases import is_strange
from ollamaops.plan.comparison import Comparison, Differs, InSync, Unknown, WeightsEvidence
from ollamaops.plan.costs import upload_cost
from ollamaops.plan.desired import DesiredModel, LocalBlob
from ollamaops.plan.diff import compare_build, ignores_weights, is_ignored
from ollamaops.plan.lookups import Because, former_of, is_as_made, is_trusted, place_of
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.pulls import describe_stub, ensure, rename
from ollamaops.plan.templates import (
    find_override,
    offers_more,
    say_override,
    ways_out,
    weights_template,
)
from ollamaops.plan.unclear import find_obstacle
from ollamaops.plan.unsupported import unsupported
from ollamaops.plan.versions import is_staged, next_of, versions_to_keep

_NEWER = "upgrade this host, or lower requires:"


def plan_build(builder: PlanBuilder, model: DesiredModel, recipe: Recipe) -> None:
    """Plan a model that is made from a base, whose values it inherits, or from weights files."""
    place = place_of(model, builder.desired, builder.observed)
    match _compare(builder, model, recipe, place):
        case InSync(weights=weights):
            _note_weights(builder, model, weights)
            if place != model.name:
                rename(builder, model)
            elif not (_tell_of_override(builder, model) or _tell_of_requirement(builder, model)):
                builder.record_unchanged(model)
        case Differs(differences):
            _plan_create(builder, model, recipe, differences)
        case Unknown(waits_for=base) if base is not None:
            if ensure(builder, base, model.name, builder.damage(place)):
                builder.wait(model.name, base, builder.flaw_of(place))
        case Unknown(why, hint):
            builder.doubt(model.name, why, hint)
        case never:
            assert_never(never)


def _compare(
    builder: PlanBuilder, model: DesiredModel, recipe: Recipe, place: ModelName | None
) -> Comparison:
    """Whether the model has to be made: by what this plan does to its base, by memory, by a look inside."""
    if place is None:
        return Differs(builder.why(model.name, "missing"))
    stub = builder.stub_at(place, model)
    if stub is not None:
        return Differs(builder.why(model.name, "missing", observed=describe_stub(stub)))
    if builder.stub_at(recipe.base, model):
        return Unknown(waits_for=recipe.base)
    if recipe.base and _changes_with(builder, recipe.base, model):
        return Differs(builder.why(model.name, "base", desired=str(recipe.base)))
    damage = builder.damage(place)
    if damage and recipe.base and (builder.is_pending(recipe.base) or builder.flaw_of(recipe.base)):
        return Unknown(waits_for=recipe.base)
    if damage:
        return Differs(damage)
    if is_trusted(model, builder.observed, builder.options, place):
        memory = builder.recall(place)
        if memory is None or memory.weights_verified or ignores_weights(model.spec.ignore):
            return InSync()
        return InSync(weights="unverified" if memory.blobs else "hidden")
    return _look_inside(builder, model, recipe, place)


def _changes_with(builder: PlanBuilder, base: ModelName, model: DesiredModel) -> bool:
    """Whether this plan changes the base in what the model takes over: words always, weights unless it tolerates
    others."""
    if base not in builder.replaced:
        return False
    if not ignores_weights(model.spec.ignore):
        return True
    steps = (step for step in builder.actions.values() if step.model == base)
    changes = (step for step in steps if isinstance(step, CreateModel | CopyModel))
    return any(why.kind != "weights" for step in changes for why in step.because)


def _look_inside(builder: PlanBuilder, model: DesiredModel, recipe: Recipe, place: ModelName) -> Comparison:
    own = builder.observed.shown.get(place)
    if builder.observed.models[place].is_cloud:
        return _compare_stub(builder, model)
    if own is None:
        return Differs(builder.why(model.name, "missing", observed="listed, but it cannot be shown"))
    base = _base_of(builder, recipe)
    comparison = compare_build(
        builder.host,
        model,
        own,
        base,
        builder.features,
        memory=builder.recall(place),
        just_made=model.name in builder.options.made,
    )
    if isinstance(comparison, Differs):
        return comparison
    if recipe.base is not None and base is None:
        is_ours = builder.find(recipe.base) is None and is_as_made(model, builder.observed, place)
        return comparison if is_ours else _without_base(builder, recipe.base)
    if comparison.weights != "compared" and builder.options.verify_weights:
        return Differs(
            builder.why(model.name, "weights", "weights", desired="verified", observed="not verified")
        )
    return comparison


def _base_of(builder: PlanBuilder, recipe: Recipe) -> Contents | None:
    """What is in the base, or in what this plan renames to the base."""
    if recipe.base is None:
        return None
    place = recipe.base
    change = builder.actions.get(builder.changing.get(recipe.base, ""))
    if isinstance(change, CopyModel) and any(why.kind == "moved" for why in change.because):
        place = change.source
    return builder.observed.shown.get(place)


def _compare_stub(builder: PlanBuilder, model: DesiredModel) -> Comparison:
    """A model that runs on ollama.com cannot be looked into, so memory alone counts, even right after it was made."""
    if is_as_made(model, builder.observed, model.name):
        return InSync()
    return Differs(builder.why(model.name, "missing", observed="a cloud stub, and not known to be this one"))


def _without_base(builder: PlanBuilder, base: ModelName) -> Comparison:
    """Nothing declared differs, but what is inherited from the base cannot be compared."""
    there = builder.find(base)
    if there is None:
        return Unknown(waits_for=base)
    if there.is_cloud:
        return InSync()
    return Unknown(
        f"cannot be compared with '{base}', which is listed but cannot be shown",
        f"delete '{base}' if it is broken: it is then pulled or made again",
    )


def _tell_of_override(builder: PlanBuilder, model: DesiredModel) -> bool:
    """Whether the weights' own template is used in the place of the declared one, which is then said."""
    own, wanted = builder.observed.shown.get(model.name), builder.desired.setting_of(model, "template")
    difference = find_override(builder.host, model, wanted, own) if own and wanted else None
    if wanted is None or difference is None:
        return False
    jinja = difference.observed
    said, way_out = say_override(model.name, wanted, jinja), ways_out(wanted, jinja)
    builder.cannot_mend(model.name, (difference,), said, way_out)
    return True


def _tell_of_requirement(builder: PlanBuilder, model: DesiredModel) -> bool:
    """Whether the server is older than is required, which is then said."""
    required = _unmet_requirement(builder, model)
    if required is None:
        return False
    observed = builder.observed.version
    because = builder.why(model.name, "field", "server version", desired=required, observed=observed)
    builder.cannot_mend(model.name, because, "servers do not check it", _NEWER)
    return True


def _too_old(builder: PlanBuilder, model: DesiredModel) -> tuple[str, str] | None:
    """(what and why, the way out) if a newer server is required."""
    required = _unmet_requirement(builder, model)
    return (f"it needs {required}", _NEWER) if required else None


def _unmet_requirement(builder: PlanBuilder, model: DesiredModel) -> str | None:
    """The version that the entry requires, or one that it is made from, if the server is older."""
    wanted = builder.desired.setting_of(model, "requires")
    if wanted is None or not builder.features.version.is_older_than(wanted.text):
        return None
    by = "" if wanted.by == model.name else f" by '{wanted.by}'"
    return f"{wanted.text} or newer (required{by})"


def _foretell_override(builder: PlanBuilder, model: DesiredModel, recipe: Recipe) -> None:
    """Say before a model is made that its template will not be in force, where that can be known."""
    wanted = builder.desired.setting_of(model, "template")
    if wanted is None or not builder.features.jinja_in_template or is_ignored("template", model.spec.ignore):
        return
    carried = builder.observed.carried_templates
    jinja = weights_template(builder.desired, model, _base_of(builder, recipe), carried)
    if offers_more(jinja, wanted.text):
        said = say_override(model.name, wanted, jinja, is_plan=True)
        builder.note(model.name, said, ways_out(wanted, jinja))


def _note_weights(builder: PlanBuilder, model: DesiredModel, weights: WeightsEvidence) -> None:
    match weights:
        case "compared":
            return
        case "unverified":
            why, source = "the server stores them rewritten", " from the declared file"
        case "hidden":
            why, source = "the server does not show them", ""
        case _:
            assert_never(weights)
    builder.note(
        model.name,
        f"weights not verified: {why}, and only the header could be compared",
        f"--verify-weights builds the model again{source}",
        unverified=True,
    )


def _plan_create(builder: PlanBuilder, model: DesiredModel, recipe: Recipe, because: Because) -> None:
    if builder.find(model.name) is not None and model.spec.update == "never":
        builder.give_up(
            model.name,
            "update: never forbids replacing it",
            "set update: missing, or declare what is there",
            because=because,
        )
        return
    recipe, blobs = _as_sent(model, recipe)
    problem = (
        find_obstacle(model.name, builder.observed, "create")
        or _hollow_base(builder, model, recipe.base)
        or _quantized_base(builder, recipe)
        or unsupported(recipe, builder.features, model.weights)
        or _too_old(builder, model)
    )
    if problem:
        what, hint = problem
        said = f"cannot be made by Ollama {builder.observed.version}: {what}"
        builder.give_up(model.name, said, hint, because=because)
        return
    if recipe.base and is_strange(builder, recipe.base, model, because):
        return
    if recipe.base and not ensure(builder, recipe.base, model.name, because):
        return
    _foretell_override(builder, model, recipe)
    uploads = dict.fromkeys(_add_upload(builder, model, blob) for blob in blobs)
    aside = next_of(model.name) if is_staged(model.spec) else None
    builder.add(
        CreateModel(
            host=builder.host,
            model=model.name,
            recipe=recipe,
            aside=aside,
            because=because,
            needs=(*builder.needs(recipe.base), *uploads),
            expects=builder.expect(model.name, recipe.base),
            fingerprint=model.fingerprint,
            retries=model.spec.retries,
        )
    )
    if aside is not None:
        builder.add_verify(model, aside)
        builder.add(
            CopyModel(
                host=builder.host,
                model=model.name,
                source=aside,
                needs=builder.needs(model.name),
                expects=builder.expect(model.name),
                keep=versions_to_keep(model.spec),
                former=former_of(model, builder.desired, builder.observed),
                fingerprint=model.fingerprint,
                retries=model.spec.retries,
            )
        )


def _hollow_base(builder: PlanBuilder, model: DesiredModel, base: ModelName | None) -> tuple[str, str] | None:
    """(what and why, the way out) for a cloud model that the server would take for an ordinary one without layers."""
    if (
        base is None
        or not model.in_cloud
        or (builder.features.suffix_routing and base.source_suffix == "cloud")
    ):
        return None
    there = builder.find(base)
    if there.is_cloud if there else base.source_suffix == "cloud":
        since = first_version_with("suffix_routing")
        return (
            f"it would make an empty model from '{base}', which runs on ollama.com",
            f"name a base that is on the host, or upgrade to {since} and name the cloud model by its own -cloud tag",
        )
    return None


def _quantized_base(builder: PlanBuilder, recipe: Recipe) -> tuple[str, str] | None:
    """(what and why, the way out) for a base that no server quantizes once more, not even to what it is."""
    there = builder.find(recipe.base)
    if not recipe.quantize or there is None or there.name in builder.changing:
        return None
    if not there.quantization.upper().startswith(("Q", "IQ")):
        return None
    return (
        f"it quantizes what is not quantized yet, and '{there.name}' is {there.quantization}",
        "make it from an F16 model, or leave out quantize",
    )


def _as_sent(model: DesiredModel, recipe: Recipe) -> tuple[Recipe, tuple[LocalBlob, ...]]:
    """The recipe and its uploads, with the archive in the place of the files that are in it."""
    if model.archive is None:
        return recipe, model.blobs
    name = f"{model.archive.path.rpartition('/')[2]}.zip"
    sent = replace(recipe, files=(Blob(name, model.archive.digest),))
    return sent, (model.archive, *model.blobs[len(recipe.files) :])


def _add_upload(builder: PlanBuilder, model: DesiredModel, blob: LocalBlob) -> str:
    """Plan to send a file, once for all models that need it; which of them it names does not depend on order."""
    upload = UploadBlob(
        host=builder.host,
        model=model.name,
        digest=blob.digest,
        path=blob.path,
        size_bytes=blob.size_bytes,
        stated=blob.stated,
        parts=blob.parts,
        cost=upload_cost(blob, builder.observed),
        retries=model.spec.retries,
    )
    before = builder.actions.get(id_of(upload))
    if isinstance(before, UploadBlob):
        first = min(before, upload, key=lambda one: (one.model, one.path))
        upload = replace(first, retries=max(before.retries, upload.retries))
    return builder.add(upload)
