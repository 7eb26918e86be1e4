"""Saved plans: write one, read it back, and refuse it when what it relies on is no longer so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ollamaops.apply.history import declaration_digest
from ollamaops.cli.context import Scene
from ollamaops.errors import RefusedError, UsageError
from ollamaops.files.location import FileInfo
from ollamaops.names import NamePattern
from ollamaops.plan.actions import Plan
from ollamaops.plan.codec import plan_from_json, plan_to_json

# in made_from, on the command line, what it is when it was not given
_OPTIONS = (("environment", "-e", "none"), ("targets", "--target", "none"), ("prune", "--prune", "nothing"))

_WEIGHTS = "weights "


def save_plan(plan: Plan, scene: Scene, path: str) -> None:
    """Write the plan as JSON, with what it was made from. Refusals are kept: such a plan cannot be applied."""
    text = json.dumps(plan_to_json(replace(plan, made_from=_made_from(scene))), indent=2, ensure_ascii=False)
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
    _check_made_from(plan.made_from, _made_from(scene), path)
    known = {case.spec.name for case in scene.cases}
    unknown = sorted({host.host for host in plan.hosts} - known)
    if unknown:
        raise RefusedError(
            f"the plan is for hosts that are not chosen: {', '.join(unknown)}", hint="check --host and -l"
        )
    return plan


def _made_from(scene: Scene) -> dict[str, str]:
    """What a plan is made from: the declaration, and the options that change what of it counts."""
    return {
        "declaration": declaration_of(scene),
        "environment": scene.shared.environment or "",
        "targets": " ".join(sorted(scene.shared.targets)),
        "prune": _prune_of(scene.manifest.policy.prune),
        **_weights_of(scene),
    }


def _weights_of(scene: Scene) -> dict[str, str]:
    """The digests of all declared weights, as far as they are known: `weights PATH` or an address → hex digits."""
    files = scene.cases[0].files if scene.cases else {}
    known = {where: info for where, info in files.items() if isinstance(info, FileInfo)}
    return {f"{_WEIGHTS}{where}": info.digest.hex for where, info in known.items()}


def _prune_of(scope: Literal[False, "owned"] | tuple[NamePattern, ...]) -> str:
    return ",".join(map(str, scope)) if isinstance(scope, tuple) else scope or "nothing"


def _check_made_from(then: Mapping[str, str], now: Mapping[str, str], path: str) -> None:
    """RefusedError, which names the option or file if it is one, when a plan was made from something else."""
    if then.get("declaration") == now["declaration"]:
        return
    for key, option, none in _OPTIONS:
        was, given = then.get(key, now[key]), now[key]
        if was != given:
            raise RefusedError(
                f"{path} was made with {option} {was or none}, not {given or none}",
                hint=f"a saved plan is carried out as it is: give the same {option}, or plan again",
            )
    files = sorted(key for key in then if key.startswith(_WEIGHTS) and then[key] != now.get(key, then[key]))
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        changed = files[0].removeprefix(_WEIGHTS) + more
        raise RefusedError(f"{changed} changed since {path} was made", hint="plan again")
    raise RefusedError(
        f"the manifest has changed since {path} was made", hint="plan again, or check -f, --host and -l"
    )


def declaration_of(scene: Scene) -> str:
    """A digest of everything declared for the chosen hosts, local weights included."""
    return declaration_digest(scene.cases)
