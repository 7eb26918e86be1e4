"""A table in a terminal: rows of cells in columns, filled up to the widest cell of each.

Decides the layout only; what is in the cells, and that it is clean, is the caller's. Widths count terminal columns,
in which a wide East Asian character takes two.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollamaops.report.words import Paint, Style, cells, pad

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
