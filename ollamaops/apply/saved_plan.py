"""What a saved plan was made from, and refusing the plan when any of that has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import to_builtins

from ollamaops.errors import RefusedError
from ollamaops.files.location import FileInfo
from ollamaops.manifest.types import Policy
from ollamaops.names import NamePattern
from ollamaops.observe.run import HostTask, desired_of

# in made_from, on the command line, what it is when it was not given
_OPTIONS = (("environment", "-e", "none"), ("targets", "--target", "none"), ("prune", "--prune", "nothing"))
_WEIGHTS = "weights "


def build_made_from(
    tasks: Sequence[HostTask], policy: Policy, *, environment: str, targets: Sequence[NamePattern]
) -> dict[str, str]:
    """What a plan is made from: the declaration, and the options that change what of it counts."""
    return {
        "declaration": declaration_digest(tasks),
        "environment": environment,
        "targets": " ".join(sorted(map(str, targets))),
        "prune": _render_prune(policy.prune),
        **_weights_of(tasks),
    }


def require_same(then: Mapping[str, str], now: Mapping[str, str], path: str) -> None:
    """RefusedError when the plan in `path` was made from something else; it names the option or file if it is one."""
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


def declaration_digest(tasks: Sequence[HostTask]) -> str:
    """64 hex digits that stand for everything declared for these hosts, local weights included."""
    facts = [
        [
            task.spec.name,
            sorted((str(model.name), str(model.fingerprint)) for model in desired_of(task).models),
            sorted(str(entry.pattern) for entry in task.absent),
            _policy_facts(task.policy),
        ]
        for task in sorted(tasks, key=lambda task: task.spec.name)
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _policy_facts(policy: Policy) -> dict[str, object]:
    """What the policy says other than the default, so that a key that a later version adds changes no digest.

    `require_lock` says how to run, not what is declared.
    """
    default = to_builtins(Policy())
    return {
        name: value
        for name, value in to_builtins(policy).items()
        if name != "require_lock" and value != default[name]
    }


def _weights_of(tasks: Sequence[HostTask]) -> dict[str, str]:
    """The digests of all declared weights, as far as they are known: `weights PATH` or an address → hex digits."""
    files = tasks[0].files if tasks else {}
    known = {where: info for where, info in files.items() if isinstance(info, FileInfo)}
    return {f"{_WEIGHTS}{where}": info.digest.hex for where, info in known.items()}


def _render_prune(scope: Literal[False, "owned"] | tuple[NamePattern, ...]) -> str:
    return ",".join(map(str, scope)) if isinstance(scope, tuple) else scope or "nothing"
