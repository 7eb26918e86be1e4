"""The lines and tables of reports: `+ qwen3:32b on gpu-2: pull, not there: 20.2 GB`.

A Line holds text as it came. `render_lines` and the HTML renderer are the only gates where it is made safe; the cells
of a table must be clean already. Widths count terminal columns: a wide East Asian character takes two.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.report.words import Paint, Style, cells, clean, clean_line, join_names, pad

Mark = Literal[
    "new", "change", "delete", "send", "unknown", "same", "note", "trouble", "failed", "skipped", "passed"
]

SYMBOLS: Mapping[Mark, str] = {
    "new": "+",
    "change": "~",
    "delete": "-",
    "send": "→",
    "unknown": "?",
    "same": "=",
    "note": "·",
    "trouble": "!",
    "failed": "✗",
    "skipped": "»",
    "passed": "✓",
}
_STYLES: Mapping[Mark, Style] = {
    "new": "good",
    "change": "change",
    "delete": "bad",
    "send": "send",
    "unknown": "unknown",
    "same": "dim",
    "note": "dim",
    "trouble": "bad",
    "failed": "bad",
    "skipped": "change",
    "passed": "good",
}
_DETAIL_STYLES: Mapping[str, Style] = {"+": "good", "-": "bad", "@": "dim"}
_INDENT = "    "


class Line(Struct, frozen=True, kw_only=True):
    """One line of a report. `subject` is a model (or empty), `details` are lines below it, `hint` the way out.

    `cost` is what it costs on each of the hosts.
    """

    mark: Mark
    text: str
    subject: str = ""
    hosts: tuple[str, ...] = ()
    cost: str = ""
    details: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def where(self) -> str:
        """`on gpu-1, gpu-2 and 18 more`, or the hosts alone when there is no subject."""
        names = join_names(self.hosts)
        return f"on {names}" if names and self.subject else names

    @property
    def said(self) -> str:
        """The text with its cost: `pull, not there: 20.2 GB each (1.1 GB already there)`."""
        size, bracket, rest = self.cost.partition(" (")
        each = " each" if len(self.hosts) > 1 and size[:1].isdigit() else ""
        return self.text + (f": {size}{each}{bracket}{rest}" if size else "")


def group_lines(lines: Iterable[Line]) -> list[Line]:
    """Lines that say the same of several hosts made one, in order of first appearance."""
    groups: dict[Line, list[str]] = {}
    for line in lines:
        groups.setdefault(replace(line, hosts=()), []).extend(line.hosts)
    return [replace(line, hosts=tuple(dict.fromkeys(hosts))) for line, hosts in groups.items()]


def render_lines(lines: Iterable[Line], paint: Paint, width: int | None = None) -> list[str]:
    """Safe lines of text, wrapped to `width` columns if it is given, colored by `paint`."""
    return [text for line in lines for text in _render_line(line, paint, width)]


def _render_line(line: Line, paint: Paint, width: int | None) -> list[str]:
    symbol, subject, where = SYMBOLS[line.mark], clean(line.subject), clean(line.where)
    topic = " ".join(part for part in (subject, where) if part)
    head, *rest = wrap(f"{symbol} {topic}: {clean(line.said)}", width)
    bold = subject or where
    if head.startswith(start := f"{symbol} {bold}"):
        head = f"{paint(_STYLES[line.mark], symbol)} {paint('bold', bold)}{head[len(start) :]}"
    details = [_paint_detail(clean_line(text), paint) for text in line.details]
    hints = wrap(f"hint: {clean(line.hint)}", width, first=_INDENT) if line.hint else []
    return [head, *rest, *details, *(paint("dim", hint) for hint in hints)]


def _paint_detail(text: str, paint: Paint) -> str:
    style = _DETAIL_STYLES.get(text[:1])
    return _INDENT + (paint(style, text) if style else text)


def wrap(text: str, width: int | None, first: str = "") -> list[str]:
    """`text` in lines of at most `width` columns, continued with an indent; never cut inside a word."""
    if width is None or len(text) + len(first) <= width:
        return [first + text]
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=first + _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def join_lines(lines: Sequence[str]) -> str:
    """The lines as text, each ended; nothing for no lines."""
    return "".join(f"{line}\n" for line in lines)


Cell = tuple[str, Style | None]
GAP = 2


def table_width(rows: Sequence[Sequence[Cell]]) -> int:
    """How many columns of the terminal the table takes."""
    widths = _widths(rows)
    return sum(widths) + GAP * max(len(widths) - 1, 0)


def render_table(rows: Sequence[Sequence[Cell]], paint: Paint) -> list[str]:
    """The lines of the table; no line ends in spaces."""
    widths = [*_widths(rows)[:-1], 0]
    return [_render_row(row, widths, paint) for row in rows]


def _render_row(row: Sequence[Cell], widths: Sequence[int], paint: Paint) -> str:
    shown = (_paint(pad(text, width), style, paint) for (text, style), width in zip(row, widths, strict=True))
    return (" " * GAP).join(shown).rstrip()


def _widths(rows: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(cells(text) for text, _ in column) for column in zip(*rows, strict=True)]


def _paint(text: str, style: Style | None, paint: Paint) -> str:
    return paint(style, text) if style else text
