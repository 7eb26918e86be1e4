"""Why something is done, in words: a Difference as part of a line, and as a diff below it.

Values arrive whole, a system prompt of a hundred lines included; a phrase here is always one short line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import assert_never

from ollamaops.plan.actions import Difference, Kind
from ollamaops.plan.diff import SERVERS_OWN
from ollamaops.report.words import plural, shorten, shorten_digests

_MAX_VALUE = 36  # characters of one value in a phrase
_MAX_SHOWN = 3  # differences named in one line
_MAX_DIFFED_LINES = 2000  # difflib is quadratic; nobody reads a diff of more
_CONTEXT = 9  # characters kept on each side of what changed in a long line
_BARE = re.compile(r'[\w.,:/+-]+( \([\w.]+\))?|\[.*\]|"[^"]*"|not verified')

_FACTS: Mapping[Kind, str] = {  # reasons that name no values
    "unwanted": "declared absent",
    "undeclared": "not declared, and in the scope of prune",
    "unverified": "not verified yet",
    "unknown": "the server finds out whether it is current",
    "template": "the weights' own template is used, not the declared one",
    "effective": "the template that makes the prompts is not the locked one",
}


def render_reasons(because: Sequence[Difference], *, everything: bool = False) -> str:
    """`, not there` or `: parameters.temperature 0.7 → 0.2; system +1 −1 lines`; empty without a reason."""
    clauses: list[str] = []
    changes: list[str] = []
    for difference in because:
        (changes if is_change(difference) else clauses).append(render_difference(difference))
    shown = list(dict.fromkeys(changes))
    if len(shown) > _MAX_SHOWN + 1 and not everything:
        shown = [*shown[:_MAX_SHOWN], f"and {len(shown) - _MAX_SHOWN} more"]
    said = "".join(f", {clause}" for clause in dict.fromkeys(clauses))
    return said + (f": {'; '.join(shown)}" if shown else "")


def is_change(difference: Difference) -> bool:
    """Whether the reason names two values, rather than a fact."""
    return difference.kind in ("field", "content", "weights", "template", "effective")


def render_difference(difference: Difference) -> str:
    """One reason as a phrase: `not there`, `content 3f2a… → 9bc1…`, `parameters.temperature 0.7 → 0.2`."""
    desired, observed = difference.desired, difference.observed
    match difference.kind:
        case "missing":
            return observed or "not there"
        case "unwanted" | "undeclared" | "unverified" | "unknown" | "template" | "effective":
            return _FACTS[difference.kind]
        case "field" | "content" | "weights":
            return _render_values(difference)
        case "base":
            return f"its base {desired} changes" if desired else "its base changes"
        case "alias":
            return f"is {shorten_digests(observed) or 'another model'}, not {shorten_digests(desired)}"
        case "moved":
            return "its name before" if observed else f"renamed to {desired}"
        case "unpushed":
            return _render_unpushed(shorten_digests(observed))
        case "resident" | "damaged":
            return observed
        case _:
            assert_never(difference.kind)


def _render_unpushed(there: str) -> str:
    """`there`: the digest that the registry has in its place, "nothing", or "" when that is not known."""
    if not there:
        return "not known to be in the registry"
    return "not in the registry" if there == "nothing" else f"the registry has {there} instead"


def _render_values(difference: Difference) -> str:
    path, desired, observed = difference.path or difference.kind, difference.desired, difference.observed
    is_count = difference.kind == "weights" != path and desired.isdecimal() and observed.isdecimal()
    return (_render_count if is_count else _render_change)(path, observed, desired)


def _render_count(what: str, there: str, declared: str) -> str:
    """`what` is in the plural: `adapters`, `adapters or drafts`."""
    one = re.sub(r"s\b", "", what)
    number = f"no {one}" if declared == "0" else f"{declared} {one if declared == '1' else what}"
    return f"{number} declared, {'none' if there == '0' else there} there"


def _render_change(path: str, observed: str, desired: str) -> str:
    if desired == SERVERS_OWN:
        return f"{path} is left to the server"
    before, after = shorten_digests(observed), shorten_digests(desired)
    if before and before == after:
        return f"{path} declared differently than before"
    if before and after and before.split() == after.split():
        return f"{path} differs in white space only"
    if "\n" in before.strip("\n") or "\n" in after.strip("\n"):
        return f"{path} {_render_line_change(before, after)}"
    if max(len(before), len(after)) > _MAX_VALUE and before and after:
        before, after = _cut_common(before, after)
    return f"{path} {_quote(before)} → {_quote(after)}"


def _render_line_change(before: str, after: str) -> str:
    if not before or not after:
        return f"{_render_lines(before)} → {_render_lines(after)}"
    diff = diff_lines(before, after)
    added, removed = (sum(line.startswith(sign) for line in diff) for sign in "+-")
    return f"+{added} −{removed} lines" if diff else f"{_render_lines(before)} → {_render_lines(after)}"


def _render_lines(text: str) -> str:
    return plural(len(text.strip("\n").split("\n")), "line") if text else "not set"


def _quote(text: str) -> str:
    """A value in a phrase: bare when it is one word, quoted when it has spaces, `not set` when it is empty."""
    if not text:
        return "not set"
    short = shorten(" ".join(text.split()), _MAX_VALUE + 2 * _CONTEXT)
    return short if _BARE.fullmatch(short) else f'"{short}"'


def _cut_common(before: str, after: str) -> tuple[str, str]:
    """Two long lines without the beginning and the end that they share, but for a few characters."""
    head = _shared(before, after)
    tail = _shared(before[:head:-1], after[:head:-1])
    return _cut_ends(before, head, tail), _cut_ends(after, head, tail)


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _cut_ends(text: str, head: int, tail: int) -> str:
    start, end = max(head - _CONTEXT, 0), len(text) - max(tail - _CONTEXT, 0)
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def diff_lines(before: str, after: str, context: int = 2) -> list[str]:
    """A unified diff without its file names; empty when nothing differs or the texts are too long to compare."""
    if before.endswith("\n") and after.endswith("\n"):
        before, after = before[:-1], after[:-1]
    old, new = before.split("\n"), after.split("\n")
    if max(len(old), len(new)) > _MAX_DIFFED_LINES:
        return []
    return list(difflib.unified_diff(old, new, n=context, lineterm=""))[2:]


def detail_lines(because: Iterable[Difference], limit: int | None = None) -> tuple[str, ...]:
    """Below a line: for each field whose values do not fit into it, its path and a diff of at most `limit` lines."""
    details: list[str] = []
    for difference in because:
        values = (shorten_digests(difference.observed), shorten_digests(difference.desired))
        if is_change(difference) and any("\n" in value or len(value) > _MAX_VALUE for value in values):
            details += [f"{difference.path or difference.kind}:", *_cut(field_diff(difference), limit)]
    return tuple(details)


def field_diff(difference: Difference) -> list[str]:
    """What is there as `-`, what is wanted as `+`: a unified diff for texts, two lines for single values."""
    observed, desired = difference.observed, difference.desired
    if observed and desired and ("\n" in observed or "\n" in desired):
        diff = diff_lines(observed, desired)
        return diff or ["@@ texts too long to compare line by line @@"]
    return [f"{sign}{line}" for sign, text in (("-", observed), ("+", desired)) for line in _lines_of(text)]


def _lines_of(text: str) -> list[str]:
    return text.strip("\n").split("\n") if text else []


def _cut(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit + 1:
        return lines
    return [*lines[:limit], f"@@ and {len(lines) - limit} more lines @@"]
