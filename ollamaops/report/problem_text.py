"""Problems in users' files and errors of a run, in words.

A place is shown as `file:line:column: message`, then the line itself when its text is at hand, with a mark under the
word. Columns count characters; marks on a terminal count cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ollamaops.errors import ManifestError, OllamaopsError, Problem
from ollamaops.plan.codec import Json
from ollamaops.report.lines import join_lines, wrap
from ollamaops.report.words import Paint, cells, clean, clean_line, plural

_WORD = re.compile(r"[\w.${}:/*-]*[\w}*]")
_EXCERPT = 100  # characters of a long line that are shown around the place


def render_problems(
    problems: Sequence[Problem],
    texts: Mapping[str, str] | None = None,
    *,
    color: bool = False,
    width: int | None = None,
    level: str = "error",
) -> str:
    """Every problem with its place, the line it is on (if `texts` has the file's text) and its hint, then a count.

    `level` is what the problems are called: `error` or `warning`.
    """
    paint, texts = Paint(color), texts or {}
    lines = [line for problem in problems for line in _problem_lines(problem, texts, paint, width)]
    files = len({problem.path for problem in problems})
    count = f"{plural(len(problems), level)} in {plural(files, 'file')}"
    return join_lines([*lines, paint("bold", count)] if problems else [])


def _problem_lines(
    problem: Problem, texts: Mapping[str, str], paint: Paint, width: int | None
) -> Iterable[str]:
    place = clean(problem.place)
    head, *rest = wrap(f"{place}: {clean(problem.message)}", width)
    yield paint("bold", place) + head[len(place) :] if head.startswith(place) else head
    yield from rest
    yield from _excerpt(problem, texts.get(problem.path), paint)
    if problem.hint:
        yield from wrap(f"hint: {clean(problem.hint)}", width, first="    ")


def _excerpt(problem: Problem, text: str | None, paint: Paint) -> list[str]:
    """The line and a mark under the word at the column; nothing when the place is not in the text."""
    lines = text.split("\n") if text is not None else []
    if not 0 < problem.line <= len(lines):
        return []
    source, start = lines[problem.line - 1].rstrip("\r"), max(problem.column - 1, 0)
    first = max(start - _EXCERPT // 2, 0) if len(source) > _EXCERPT else 0
    before, after = clean_line(source[first:start]), source[start : first + _EXCERPT]
    word = _WORD.match(after)
    mark = "^" * max(cells(word[0]) if word else 1, 1)
    number = f"{problem.line:5} | "
    bar = " " * 5 + " | "
    shown = f"{number}{before}{clean_line(after)}".rstrip()
    return [paint("dim", shown), paint("dim", bar) + " " * cells(before) + paint("bad", mark)]


def render_error(error: OllamaopsError, *, color: bool = False, width: int | None = None) -> str:
    """`error: what: why` and `hint: …`; every problem of a ManifestError."""
    if isinstance(error, ManifestError):
        return render_problems(error.problems, color=color, width=width)
    paint = Paint(color)
    head, *rest = wrap(f"error: {clean(str(error)) or type(error).__name__}", width)
    lines = [paint("bad", "error:") + head.removeprefix("error:"), *rest]
    if error.hint:
        lines += wrap(f"hint: {clean(error.hint)}", width)
    return join_lines(lines)


def problems_to_json(problems: Iterable[Problem]) -> list[Json]:
    """Each problem as `file`, `line`, `column`, `message`, `hint`; line and column are null for a whole file."""
    return [
        {
            "file": problem.path,
            "line": problem.line or None,
            "column": problem.column or None,
            "message": problem.message,
            "hint": problem.hint,
        }
        for problem in problems
    ]
