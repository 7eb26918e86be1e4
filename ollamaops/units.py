"""Bytes, durations and moments: text ↔ numbers.

Sizes are whole bytes; durations are seconds as float. The trap: `GB` is 10⁹ and `GiB` is 2³⁰, as written
(`G` and `Gi` likewise). Formatting is for people (`20.2 GB`, `1m30s`); what it gives is not exact. Parsing has upper
limits, so that what was parsed is a number that files, sockets and servers can take.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction

from ollamaops.errors import InvalidValue, cut_text

_DECIMAL = {letter: 1000**power for power, letter in enumerate("kmgt", 1)}
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("kmgt", 1)}
_SIZE_UNITS = {"": 1, **_DECIMAL, **_BINARY}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_HINT = "write a number and a unit: 24GiB, 500MB, 4096"
_MOST_BYTES = 2**63 - 1  # what a file can have
_MOST_DIGITS = 40  # more than any number below the limits needs; Python refuses 4301

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_BARE_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION_HINT = "write it like 30s, 5m, 1h30m or 2d"
_MOST_SECONDS = 10 * 365 * 86400


def parse_size(text: str | int) -> int:
    """Bytes in `24GiB`, `1.5 GB`, `4096` or a bare integer; a fraction of a byte is cut.

    InvalidValue for anything else, and for what no file can have: 2⁶³ bytes and more.
    """
    size_bytes = _read_size(text) if isinstance(text, str) else text
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < 0:
        raise InvalidValue(f"{_shown(text)} is not a size", hint=_SIZE_HINT)
    if size_bytes > _MOST_BYTES:
        raise InvalidValue(f"{_shown(text)} is not a size: more than any file can have", hint=_SIZE_HINT)
    return size_bytes


def _read_size(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS.get(match[2].lower().removesuffix("b")) if match else None
    if match is None or unit is None:
        return None
    return _MOST_BYTES + 1 if len(match[1]) > _MOST_DIGITS else int(Fraction(match[1]) * unit)


def parse_duration(text: str | float) -> float:
    """Seconds in `90s`, `1h30m`, `300ms`, `2d`, or a bare number of seconds.

    InvalidValue for anything else, and for more than ten years.
    """
    seconds = _read_duration(text) if isinstance(text, str) else text
    if seconds is None or isinstance(seconds, bool) or not seconds >= 0:
        raise InvalidValue(f"{_shown(text)} is not a duration", hint=_DURATION_HINT)
    if seconds > _MOST_SECONDS:
        raise InvalidValue(f"{_shown(text)} is not a duration: more than ten years", hint=_DURATION_HINT)
    return float(seconds)


def parse_timeout(text: str | float) -> float:
    """Seconds, as parse_duration reads them, and more than none: InvalidValue for a wait of nothing."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise InvalidValue(f"{_shown(text)} is no time to wait", hint=_DURATION_HINT)
    return seconds


def _read_duration(text: str) -> float | None:
    compact = text.strip()
    if _BARE_SECONDS.fullmatch(compact):
        return float(compact)
    if not _DURATION.fullmatch(compact):
        return None
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(compact))


def _shown(given: str | float) -> str:
    """The text in quotes, cut; a number as it is, unless it is too long for Python to print."""
    if isinstance(given, int) and abs(given) > _MOST_BYTES:
        return "a number of more than 18 digits"
    return repr(cut_text(given, _MOST_DIGITS)) if isinstance(given, str) else str(given)


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


def utc_now() -> str:
    """Now as RFC 3339, in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
