"""`keep_alive` as Ollama reads it: a number of seconds or a Go duration.

Decides how long a model stays loaded and the words of the refusal; when that time is over is the server's to see.
The fact one would miss: a bare "10" is refused although 10 is not, and servers before 0.11.8 cut fractions off
and take everything below one second as "unload now".

Source: Ollama 0.3.4 to 0.33.0, `api.Duration`; Go's `time.ParseDuration`.
"""

from __future__ import annotations

import math
import re

FOREVER_S = math.inf
_LONGEST_NS = 2**63 - 1
_PART = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


class InvalidKeepAlive(ValueError):
    """A `keep_alive` that Ollama refuses with status 400; the message is Ollama's."""


def parse_keep_alive(value: object, *, fractions: bool = True) -> float | None:
    """Seconds to stay loaded after the answer: `FOREVER_S` for a negative value, None for the server's default.

    `fractions` is False for servers before 0.11.8, which drop what is below a whole second of a number.
    Raises InvalidKeepAlive with the server's words.
    """
    match value:
        case None:
            return None
        case bool():
            raise InvalidKeepAlive("Unsupported type: 'bool'")
        case int() | float():
            seconds = float(value) if fractions else float(math.trunc(value))
            return FOREVER_S if value < 0 else seconds
        case str():
            seconds = parse_go_duration(value)
            return FOREVER_S if seconds < 0 else seconds
        case list():
            raise InvalidKeepAlive("Unsupported type: '[]interface {}'")
        case _:
            raise InvalidKeepAlive("Unsupported type: 'map[string]interface {}'")


def is_unload(keep_alive_s: float | None, *, fractions: bool = True) -> bool:
    """Whether an empty request with this `keep_alive` asks to unload the model at once."""
    if keep_alive_s is None or keep_alive_s == FOREVER_S:
        return False
    return keep_alive_s == 0 if fractions else keep_alive_s < 1


def parse_go_duration(text: str) -> float:
    """Seconds in a Go duration such as `1h30m`, `-1.5s`, `300ms` or `0`; InvalidKeepAlive in Go's words."""
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return 0.0
    if not body:
        raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
    total_ns = _sum_of_parts(body, text)
    if total_ns > _LONGEST_NS:
        raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
    return (-total_ns if text[0] == "-" else total_ns) / 10**9


def _sum_of_parts(body: str, text: str) -> int:
    total_ns, place = 0, 0
    while place < len(body):
        part = _PART.match(body, place)
        whole, fraction, unit = part.groups("") if part else ("", "", "")
        if not whole and len(fraction) < 2:
            raise InvalidKeepAlive(f"time: invalid duration {_quoted(text)}")
        if not unit:
            raise InvalidKeepAlive(f"time: missing unit in duration {_quoted(text)}")
        if unit not in _UNIT_NS:
            raise InvalidKeepAlive(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
        total_ns += int(whole or "0") * _UNIT_NS[unit] + int(float("0" + fraction) * _UNIT_NS[unit])
        place += len(whole) + len(fraction) + len(unit)
    return total_ns


def _quoted(text: str) -> str:
    """In Go's quotes; bytes that are not printable ASCII are escaped as UTF-8, as `time` does."""
    printable = "".join(
        f"\\{char}" if char in '"\\' else char if " " <= char < "\x7f" else _escaped(char) for char in text
    )
    return f'"{printable}"'


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
