"""Bytes and durations: text ↔ numbers.

Sizes are whole bytes; durations are seconds as float. Easily missed: `GB` is 10⁹ and `GiB` is 2³⁰, as written
(`G` and `Gi` likewise). Formatting is for people (`20.2 GB`, `1m30s`); what it gives is not exact.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from ollamaops.errors import MAX_SERVER_TEXT, InvalidValue

_DECIMAL = {letter: 1000**power for power, letter in enumerate("kmgt", 1)}
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("kmgt", 1)}
_SIZE_UNITS = {"": 1, **_DECIMAL, **_BINARY}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_HINT = "write a number and a unit: 24GiB, 500MB, 4096"

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_BARE_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION_HINT = "write it like 30s, 5m, 1h30m or 2d"


def parse_size(text: str | int) -> int:
    """Bytes in `24GiB`, `1.5 GB`, `4096` or a bare integer; a fraction of a byte is cut. InvalidValue otherwise."""
    if isinstance(text, int):
        if isinstance(text, bool) or text < 0:
            raise InvalidValue(f"{text} is not a size", hint=_SIZE_HINT)
        return text
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS.get(match[2].lower().removesuffix("b")) if match else None
    if match is None or unit is None:
        raise InvalidValue(f"{text[:MAX_SERVER_TEXT]!r} is not a size", hint=_SIZE_HINT)
    return int(Fraction(match[1]) * unit)


def parse_duration(text: str | float) -> float:
    """Seconds in `90s`, `1h30m`, `300ms`, `2d`, or a bare number of seconds. InvalidValue for anything else."""
    if not isinstance(text, str):
        if isinstance(text, bool) or not math.isfinite(text) or text < 0:
            raise InvalidValue(f"{text} is not a duration", hint=_DURATION_HINT)
        return float(text)
    compact = text.strip()
    if _BARE_SECONDS.fullmatch(compact):
        return float(compact)
    if not _DURATION.fullmatch(compact):
        raise InvalidValue(f"{text[:MAX_SERVER_TEXT]!r} is not a duration", hint=_DURATION_HINT)
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(compact))


def format_size(size_bytes: int) -> str:
    """For people, decimal units and three digits at most: `999 B`, `1.5 kB`, `20.2 GB`."""
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """For people: `0.3s`, `42s`, `1m30s`, `2h05m`, `3d04h`."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
