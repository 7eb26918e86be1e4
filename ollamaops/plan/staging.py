"""Changing models that are in use: what has to be proven before a change counts, and what is on trial.

Decides which models are staged and plans their proof; the names in which versions wait are asides.py's. The fact a
reader would miss: servers pull under a model's own name only, so a pull is on trial in its place, while everything
else waits aside and is switched to by a copy.
"""

from __future__ import annotations

from typing import assert_never

from ollamaops.manifest.types import Build, Copy, ModelSpec, Pull
from ollamaops.names import ModelName
from ollamaops.plan.actions import CopyModel, ProbeModel
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.expectations import read_expectations
from ollamaops.plan.lookups import Because, former_of
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.versions import next_of, previous_of

_ON_TRIAL, _UNUSABLE = "?", "!"


def is_proven_first(spec: ModelSpec) -> bool:
    """Whether a change of the model has to be seen to work before it counts."""
    return bool(spec.expect) or (spec.staged and not _runs_elsewhere(spec))


def _runs_elsewhere(spec: ModelSpec) -> bool:
    """Whether nothing of the model is on the host, so that it cannot be loaded there."""
    match spec.source:
        case Pull(ref=name) | Copy(source=name):
            return name.source_suffix == "cloud"
        case Build(base=base):
            return base is not None and base.source_suffix == "cloud"
        case _:
            assert_never(spec.source)


def is_staged(spec: ModelSpec) -> bool:
    """Whether a new version is made aside and then switched to: it has to be proven, or the old one to be kept."""
    return is_proven_first(spec) or spec.staged or spec.keep_previous > 0


def on_trial(fingerprint: str) -> str:
    """The fingerprint under which content is remembered that was pulled and not proven yet; no declaration has it."""
    return f"{_ON_TRIAL}{fingerprint}"


def is_on_trial(fingerprint: str) -> bool:
    """Whether the content of that fingerprint waits for its proof."""
    return fingerprint.startswith(_ON_TRIAL)


def after_trial(fingerprint: str) -> str:
    """The fingerprint once it is proven."""
    return fingerprint.removeprefix(_ON_TRIAL)


def unusable(fingerprint: str) -> str:
    """The fingerprint of content that was pulled and cannot be opened; no declaration has it."""
    return f"{_UNUSABLE}{fingerprint}"


def is_marked(fingerprint: str) -> bool:
    """Whether it is no declaration's: the content waits for its proof, or cannot be opened."""
    return fingerprint.startswith((_ON_TRIAL, _UNUSABLE))


def is_unusable(own: ObservedModel, observed: ObservedHost) -> bool:
    """Whether the run that pulled this content found that the server cannot open it."""
    memory = observed.memory.get(own.name)
    return memory is not None and memory.digest == own.digest and memory.fingerprint.startswith(_UNUSABLE)


def awaits_proof(model: DesiredModel, observed: ObservedHost) -> bool:
    """Whether a run ended after pulling the model and before proving it: memory says so, or the content aside."""
    name = model.name
    own, memory = observed.models.get(name), observed.memory.get(name)
    if own is None or not is_proven_first(model.spec):
        return False
    if memory is not None and is_on_trial(memory.fingerprint) and memory.digest in ("", own.digest):
        return True
    aside = observed.asides.get(previous_of(name))
    return aside is not None and aside != own.digest


def add_probe(draft: PlanBuilder, model: DesiredModel, at: ModelName, because: Because = ()) -> None:
    """Plan to prove what will be at `at` by then, if the model is to be proven."""
    if is_proven_first(model.spec):
        draft.add(
            ProbeModel(
                host=draft.host,
                model=model.name,
                at=at,
                expectations=read_expectations(model.spec.expect),
                because=because,
                needs=draft.needs(model.name, at),
                keep=model.spec.keep_previous,
                retries=model.spec.retries,
            )
        )


def add_switch(draft: PlanBuilder, model: DesiredModel) -> None:
    """Plan to make the model what was made aside, and proven if need be."""
    draft.add(
        CopyModel(
            host=draft.host,
            model=model.name,
            source=next_of(model.name),
            needs=draft.needs(model.name),
            expects=draft.expect(model.name),
            keep=model.spec.keep_previous,
            former=former_of(model, draft.desired, draft.observed),
            fingerprint=model.fingerprint,
            retries=model.spec.retries,
        )
    )
