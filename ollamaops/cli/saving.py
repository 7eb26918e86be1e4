"""Saved plans: write one, read it back, and refuse it when what it relies on is no longer so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ollamaops.apply.recording import declaration_digest
from ollamaops.cli.context import Scene
from ollamaops.errors import RefusedError, UsageError
from ollamaops.plan.actions import Plan
from ollamaops.plan.codec import plan_from_json, plan_to_json


def save_plan(plan: Plan, scene: Scene, path: str) -> None:
    """Write the plan as JSON, with what it was made from. Refusals are kept: such a plan cannot be applied."""
    made_from = {"declaration": declaration_of(scene), "environment": scene.shared.environment or ""}
    text = json.dumps(plan_to_json(replace(plan, made_from=made_from)), indent=2, ensure_ascii=False)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the plan to {path}: {error.strerror}") from error


def load_plan(path: str, scene: Scene) -> Plan:
    """The plan in the file; RefusedError if the declaration has changed since, UsageError if it cannot be read."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not a saved plan: it is not JSON", hint="write one with plan --out"
        ) from error
    plan = plan_from_json(document)
    if plan.made_from.get("declaration") != declaration_of(scene):
        raise RefusedError(
            f"the manifest has changed since {path} was made",
            hint="plan again, or check -f, -e, --host and -l",
        )
    known = {case.spec.name for case in scene.cases}
    unknown = sorted({host.host for host in plan.hosts} - known)
    if unknown:
        raise RefusedError(
            f"the plan is for hosts that are not chosen: {', '.join(unknown)}", hint="check --host and -l"
        )
    return plan


def declaration_of(scene: Scene) -> str:
    """A digest of everything declared for the chosen hosts, local weights included."""
    return declaration_digest(scene.cases)
