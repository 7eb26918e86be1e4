"""Ollama's parameters: their types, how a value is read and sent, and when two values are the same.

Servers from 0.5.5 on check no parameter: what is not refused here is stored with status 200 and fails when the model
runs.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Literal

from ollamaops.errors import InvalidValue, cut_text
from ollamaops.settings import ParameterValue

ParameterType = Literal["int", "float", "bool", "list"]

_INTS = (
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu num_thread main_gpu "
    "draft_num_predict"
)
_FLOATS = "top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty"

# Ollama 0.33; draft_num_predict is new in 0.30.0, min_p in 0.3.1
PARAMETER_TYPES: Mapping[str, ParameterType] = {
    **dict.fromkeys(_INTS.split(), "int"),
    **dict.fromkeys(_FLOATS.split(), "float"),
    "use_mmap": "bool",
    "stop": "list",
}

# the last version that knew the parameter; `ollama create` warns and skips them, and so do we
GONE_PARAMETERS: Mapping[str, str] = {
    "numa": "0.3.3",
    "tfs_z": "0.5.1",
    "penalize_newline": "0.5.4",
    **dict.fromkeys(("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"), "0.6.8"),
    **dict.fromkeys(("mirostat", "mirostat_tau", "mirostat_eta"), "0.6.8"),
}

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "text or a list of texts",
}
_INT = re.compile(r"[+-]?[0-9]{1,1000}")  # longer ones are out of range, and Python refuses to read them
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_INT64 = range(-(2**63), 2**63)


def parse_parameter(name: str, text: str) -> int | float | bool | tuple[str, ...]:
    """The value of `PARAMETER name text`; `stop` is a tuple of one. InvalidValue in Ollama's words."""
    kind = PARAMETER_TYPES.get(name)
    if kind is None:
        raise InvalidValue(f"unknown parameter '{name}'")
    value = (text,) if kind == "list" else _from_text(kind, text)
    if value is None:
        raise InvalidValue(f"invalid {kind} value [{text}]")
    return value


def _from_text(kind: Literal["int", "float", "bool"], text: str) -> int | float | bool | None:
    """As Go's ParseInt(10), ParseFloat(32) and ParseBool read it; None if they refuse it, or it is inf or nan."""
    if kind == "int":
        return int(text) if _INT.fullmatch(text) and int(text) in _INT64 else None
    if kind == "float":
        return _to_float32(float(text)) if _FLOAT.fullmatch(text) else None
    return _BOOLS.get(text)


def check_parameter(name: str, value: object) -> str | None:
    """Why a server would not take this value (as YAML and JSON have it) for this parameter; None if it would.

    None as the value un-sets any parameter.
    """
    if name in GONE_PARAMETERS:
        return (
            f"parameter '{name}' was removed: Ollama {GONE_PARAMETERS[name]} was the last version to have it"
        )
    if name not in PARAMETER_TYPES:
        return f"unknown parameter '{name}'"
    try:
        normalize_parameter(name, value)
    except InvalidValue as error:
        return str(error)
    return None


def normalize_parameter(name: str, value: object) -> ParameterValue:
    """The value as it is sent: of the parameter's type, floats as a float32 prints, lists as tuples.

    Text is taken where a Modelfile would take it (`"4096"`, as a variable gives it), and 1e3 for 1000, which a
    Modelfile may not say. Parameters that are not in
    PARAMETER_TYPES keep any scalar or list of texts. InvalidValue otherwise.
    """
    if value is None:
        return None
    kind = PARAMETER_TYPES.get(name)
    result = _plain(value) if kind is None else _of_kind(kind, value)
    if result is None:
        wanted = _WANTED[kind] if kind else "a number, true, false, text or a list of texts"
        shown = cut_text(json.dumps(value, ensure_ascii=False, default=str))
        raise InvalidValue(f"parameter '{name}' takes {wanted}, not {shown}")
    return result


def _of_kind(kind: ParameterType, value: object) -> ParameterValue:
    if kind == "list":
        return (value,) if isinstance(value, str) else _texts(value)
    if isinstance(value, str):
        return _from_text(kind, value)
    match kind, value:
        case ("bool", bool()):
            return value
        case (_, bool()):
            return None  # which is an int to Python
        case ("int", int()):
            return value if value in _INT64 else None
        case ("int", float()):  # 1e3 and 1.0e+06 are floats to YAML
            return int(value) if value.is_integer() and int(value) in _INT64 else None
        case ("float", int() | float()):
            return _to_float32(value)
        case _:
            return None


def _plain(value: object) -> ParameterValue:
    return value if isinstance(value, bool | int | float | str) else _texts(value)


def _texts(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    texts = tuple(item for item in value if isinstance(item, str))
    return texts if len(texts) == len(value) else None


def same_parameter(name: str, a: object, b: object) -> bool:
    """Whether two values mean the same to a server: `"0.7"` and 0.7, 1e+06 and 1000000, "x" and ["x"] for stop.

    Numbers are compared as `/api/show` can tell them apart: as float64, floats rounded to float32.
    """
    return _comparable(name, a) == _comparable(name, b)


def _comparable(name: str, value: object) -> tuple[str, object]:
    """A value that is equal exactly when the parameter is; tagged, since True == 1 in Python."""
    if isinstance(value, str) and PARAMETER_TYPES.get(name) == "int" and _FLOAT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and value.is_integer() and PARAMETER_TYPES.get(name) == "int":
        value = int(value)
    try:
        value = normalize_parameter(name, value)
    except InvalidValue:
        value = tuple(value) if isinstance(value, list) else value
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int | float):
        return "number", _as_float(value)
    return "other", value


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _to_float32(value: float) -> float | None:
    """The shortest decimal that is the same float32, as Go writes it to JSON; None beyond float32, inf and nan."""
    rounded = _round_to_float32(_as_float(value))
    if not math.isfinite(rounded):
        return None
    shorter = (float(f"{rounded:.{digits}g}") for digits in range(1, 10))
    return next(decimal for decimal in shorter if _round_to_float32(decimal) == rounded)


def _round_to_float32(value: float) -> float:
    try:
        (rounded,) = struct.unpack(
            "<f", struct.pack("<f", value)
        )  # "<" checks the range, native "f" does not
    except OverflowError:
        return math.inf
    return float(rounded)
