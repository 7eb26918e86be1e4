"""Saved plans as files: write one, read one back."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ollamaops.engine import Engine
from ollamaops.errors import RefusedError, UsageError
from ollamaops.files.output import write_output
from ollamaops.plan.actions import Plan

KEY_VARIABLE = "OLLAMAOPS_PLAN_KEY"


def save_plan(plan: Plan, engine: Engine, path: str, key: bytes | None = None) -> None:
    """Write the plan as JSON, with what it was made from, for this user only; with a key, signed by it."""
    document: dict[str, object] = dict(engine.save(plan))
    if key is not None:
        document["signature"] = _sign(document, key)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        write_output(Path(path), text + "\n", is_private=True)
    except OSError as error:
        raise UsageError(f"cannot write the plan to {path}: {error.strerror}") from error


def load_plan(path: str, engine: Engine, key: bytes | None = None) -> Plan:
    """The plan in the file, if what it relies on is still so, and with a key, if that has signed it.

    RefusedError if not; UsageError if it cannot be read.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not a saved plan: it is not JSON", hint="write one with plan --out"
        ) from error
    if key is not None:
        _require_signature(document, key, path)
    return engine.check_saved(document, path)


def read_key(path: str | None, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The key of --plan-key, else of the environment; None without either. UsageError."""
    if path is None:
        text = environ.get(KEY_VARIABLE, "").strip()
        return text.encode() if text else None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--plan-key: cannot read {path}: {error.strerror}") from error
    if not key:
        raise UsageError(f"--plan-key: {path} is empty", hint="write one with: openssl rand -hex 32")
    return key


def _require_signature(document: object, key: bytes, path: str) -> None:
    found = document.get("signature") if isinstance(document, dict) else None
    if not isinstance(found, str):
        raise RefusedError(f"{path} is not signed", hint="plan again with the same --plan-key")
    if not isinstance(document, dict) or not hmac.compare_digest(
        found.encode(), _sign(document, key).encode()
    ):
        raise RefusedError(
            f"{path} was changed after it was signed, or was signed with another key",
            hint="plan again with the same --plan-key",
        )


def _sign(document: Mapping[str, object], key: bytes) -> str:
    body = {name: value for name, value in document.items() if name != "signature"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return "hmac-sha256:" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
