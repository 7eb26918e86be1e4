"""Saved plans as files: write one, read one back."""

from __future__ import annotations

import json
from pathlib import Path

from ollamaops.engine import Engine
from ollamaops.errors import UsageError
from ollamaops.files.output import write_output
from ollamaops.plan.actions import Plan


def save_plan(plan: Plan, engine: Engine, path: str) -> None:
    """Write the plan as JSON, with what it was made from, for this user only."""
    text = json.dumps(engine.save(plan), indent=2, ensure_ascii=False)
    try:
        write_output(Path(path), text + "\n", is_private=True)
    except OSError as error:
        raise UsageError(f"cannot write the plan to {path}: {error.strerror}") from error


def load_plan(path: str, engine: Engine) -> Plan:
    """The plan in the file, if what it relies on is still so; else RefusedError. UsageError if it cannot be read."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not a saved plan: it is not JSON", hint="write one with plan --out"
        ) from error
    return engine.check_saved(document, path)
