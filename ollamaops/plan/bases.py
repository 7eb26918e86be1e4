"""Bases that somebody replaced: nothing is made from them, and they are told of."""

from __future__ import annotations

from ollamaops.manifest.types import Copy
from ollamaops.names import ModelName
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import Because, strange_content
from ollamaops.plan.plan_builder import PlanBuilder


def is_strange(builder: PlanBuilder, source: ModelName, model: DesiredModel, because: Because) -> bool:
    """Whether something that nobody asked for is under the name of `source`; then nothing is made from it, with a
    note."""
    base, there = builder.desired.find(source), builder.find(source)
    if base is None or there is None or source in builder.changing or source in builder.options.distrust:
        return False
    if isinstance(base.spec.source, Copy):
        return is_strange(builder, base.spec.source.source, model, because)
    pulled = strange_content(base, model, builder.observed)
    if not pulled:
        return False
    builder.give_up(
        model.name,
        f"not made from '{source}', because somebody replaced it: it was {pulled[:12]}, "
        f"now it is {there.digest[:12]}",
        f"to have '{source}' pulled again, delete it on the host or give it update: latest; "
        f"to build on what is there, pin it: digest: sha256:{there.digest}",
        because=because,
    )
    return True


def tell_of_stranger(builder: PlanBuilder, model: DesiredModel) -> None:
    """`update: missing` takes whatever has the name, which may not be what was pulled."""
    there = builder.find(model.name)
    pulled = strange_content(model, model, builder.observed)
    if there and pulled:
        builder.note(
            model.name,
            f"somebody replaced it: {pulled[:12]} was pulled, {there.digest[:12]} is there",
            "update: latest, or digest:, has it pulled again",
        )
