"""The vocabulary that all reports share: counts, lists of names, sizes, and foreign text made safe to show.

Everything that comes from a server, a model or a user's file passes `clean` before it reaches a terminal, because a
system prompt can hold escape sequences that rewrite what the reader sees.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

Style = Literal["good", "change", "bad", "send", "unknown", "bold", "dim"]

_SGR: Mapping[Style, str] = {
    "good": "32",
    "change": "33",
    "bad": "31",
    "send": "36",
    "unknown": "35",
    "bold": "1",
    "dim": "2",
}
# Controls, lone surrogates, and the characters that reorder or hide text (Unicode TR36, "Trojan Source").
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_PLAIN_FORMS = {"→": "->", "…": "...", "−": "-", "✗": "x", "·": "*", "»": ">", "✓": "v"}
_DIGEST = re.compile(r"(sha256[:-])?\b[0-9a-f]{64}\b")


class Stream(Protocol):
    """What a report is written to: `sys.stdout`, `sys.stderr`, or anything like them."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


class Paint(Struct, frozen=True):
    """Puts colors around text, or leaves it alone when `color` is False."""

    color: bool = False

    def __call__(self, style: Style, text: str) -> str:
        """`text` in that style; text must be clean already."""
        return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if self.color and text else text


def wants_color(stream: Stream, environ: Mapping[str, str], *, no_color: bool = False) -> bool:
    """Whether to color what goes to `stream`: on terminals, unless --no-color, NO_COLOR or TERM=dumb say no."""
    if no_color or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def clean(text: str) -> str:
    """One safe line: white space collapsed, controls and hidden characters written as escapes (`\\x1b`)."""
    return _escape(" ".join(text.split()))


def clean_line(text: str) -> str:
    """A safe line whose spaces are kept as they are; tabs become four spaces."""
    return _escape(text.replace("\t", "    "))


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def fit_encoding(text: str, encoding: str) -> str:
    """`text` with what `encoding` cannot say replaced: `→` by `->`, anything else by `?`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for sign, plain in _PLAIN_FORMS.items():
            text = text.replace(sign, plain)
        return text.encode(encoding, "replace").decode(encoding)
    return text


def plural(count: int, one: str, many: str = "") -> str:
    """`1 model`, `2 models`; `many` when an `s` is not enough."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def join_names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; from four on `a, b and 18 more`."""
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; longer text ends in `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_digests(text: str) -> str:
    """Every 64-digit digest cut to its first 12 digits, as `ollama list` shows them."""
    return _DIGEST.sub(lambda match: match[0].removeprefix(match[1] or "")[:12], text)


def without_host(host: str, text: str) -> str:
    """`text` without the `host: ` that it begins with, for a line that names the host already."""
    return text.removeprefix(f"{host}: ")


def cells(text: str) -> int:
    """How many columns of a terminal the (clean) text takes; wide East Asian characters take two."""
    return sum(_width(sign) for sign in text)


def _width(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def pad(text: str, width: int) -> str:
    """`text` filled up with spaces to `width` columns."""
    return text + " " * (width - cells(text))
