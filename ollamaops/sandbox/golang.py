"""How Go writes values, as far as bytes, digests and answers depend on it: JSON, `%v` and `%#v`, counts, times.

Go's JSON escapes `<`, `>` and `&`, sorts the keys of maps but not of structs, and an Encoder ends a document with a
newline. So callers pass a struct as a plain dict in its order, and a map as `sorted_map(...)`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

MAX_DURATION_S = (2**63 - 1) / 1e9
"""Go's longest duration, about 292 years: how the server writes "forever"."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


def sorted_map(mapping: Mapping[str, object]) -> dict[str, object]:
    """The mapping in the order in which Go writes a map: keys by their bytes."""
    return {key: mapping[key] for key in sorted(mapping, key=str.encode)}


def json_text(value: object) -> str:
    """What `json.Marshal` writes. Floats as Go writes float64, text with Go's escapes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(key)}:{json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(json_text, value)) + "]"
    if isinstance(value, float):
        return _json_float(value)
    return _escape_html(_encode(value))


def json_line(value: object) -> bytes:
    """What `json.NewEncoder(…).Encode` writes: the document and a newline."""
    return json_text(value).encode("utf-8", "replace") + b"\n"


def _escape_html(text: str) -> str:
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _json_float(value: float) -> str:
    if value != 0 and (abs(value) < 1e-6 or abs(value) >= 1e21):
        mantissa, _, exponent = _exponent_form(value).partition("e")
        return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"
    return _plain_form(value)


def _plain_form(value: float) -> str:
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0") if "." in text else text


def _exponent_form(value: float) -> str:
    """`1.5e+06`: the shortest digits that read back, an exponent of two digits at least."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    power = int(exponent) + len(text) - 1
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"


def float_text(value: float) -> str:
    """A float64 as `%v` and `%#v` print it: with an exponent below 1e-4 and from 1e+06 on."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    power = Decimal(repr(value)).adjusted() if value else 0
    return _exponent_form(value) if power < -4 or power >= 6 else _plain_form(value)


def shortest_float32(value: float) -> float:
    """The float64 whose shortest text is the shortest text of `value` as a float32 (Go encodes float32 so)."""
    wanted = struct.pack("<f", value)
    (narrow,) = struct.unpack("<f", wanted)
    candidates = (float(f"{narrow:.{digits}g}") for digits in range(1, 9))
    return next((short for short in candidates if _float32_bytes(short) == wanted), float(f"{narrow:.9g}"))


def _float32_bytes(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # rounded to fewer digits, it is more than a float32 can be
        return b""


_ESCAPES = {char: f"\\{letter}" for char, letter in zip('\a\b\f\n\r\t\v"\\', 'abfnrtv"\\', strict=True)}


def quoted(text: str) -> str:
    """The string as `%q` and `%#v` print it (`strconv.Quote`)."""
    return '"' + "".join(map(_quoted_rune, text)) + '"'


def _quoted_rune(rune: str) -> str:
    if rune in _ESCAPES:
        return _ESCAPES[rune]
    if rune.isprintable():
        return rune
    number = ord(rune)
    if number < 0x20 or number == 0x7F:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def value_text(value: object) -> str:
    """A value out of JSON as `%v` prints it."""
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{value_text(item)}' for key, item in sorted_map(value).items())}]"
    if isinstance(value, list):
        return f"[{' '.join(map(value_text, value))}]"
    return value if isinstance(value, str) else value_syntax(value)


def value_syntax(value: object) -> str:
    """A value out of JSON as `%#v` prints it. Numbers are float64, as Go reads them."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "<nil>", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return float_text(float(value))
    if isinstance(value, dict):
        items = (f"{quoted(key)}:{_inner_syntax(item)}" for key, item in sorted_map(value).items())
        return "map[string]interface {}{" + ", ".join(items) + "}"
    listed = map(_inner_syntax, value if isinstance(value, list) else ())
    return "[]interface {}{" + ", ".join(listed) + "}"


def _inner_syntax(value: object) -> str:
    return "interface {}(nil)" if value is None else value_syntax(value)


def human_number(number: int) -> str:
    """Ollama's short form of a count of parameters: `27K`, `1.49M`, `3.2B`."""
    for size, sign, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if number >= size:
            return f"{number / size:.{0 if number % size == 0 else digits}f}{sign}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


def time_text(time_ns: int) -> str:
    """A moment (nanoseconds since 1970) as Go marshals it in UTC: RFC 3339, no zeros at the fraction's end."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f"{fraction}Z"
