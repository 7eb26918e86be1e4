"""What a license is called, judged by its text, and whether a list of allowed ones names it.

Models carry whole license texts; lists name SPDX identifiers or first lines. Only the head of a text is read. A model
without any license text is never refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

# SPDX identifier → what the head of the text says (https://spdx.org/licenses/), blanks made one, case folded
_HEADS = (
    (
        "MIT",
        r"(the )?mit license\b|permission is hereby granted, free of charge, to any person obtaining",
    ),
    ("Apache-2.0", r"apache license,? version 2\.0\b"),
    ("BSD-3-Clause", r"(the )?bsd 3-clause license\b"),
    ("BSD-2-Clause", r"(the )?bsd 2-clause license\b"),
    ("AGPL-3.0", r"gnu affero general public license version 3\b"),
    ("LGPL-3.0", r"gnu lesser general public license version 3\b"),
    ("GPL-3.0", r"gnu general public license version 3\b"),
    ("GPL-2.0", r"gnu general public license version 2\b"),
    ("MPL-2.0", r"mozilla public license,? version 2\.0\b"),
    ("CC-BY-NC-SA-4.0", r"(creative commons )?attribution-noncommercial-sharealike 4\.0 international\b"),
    ("CC-BY-NC-4.0", r"(creative commons )?attribution-noncommercial 4\.0 international\b"),
    ("CC-BY-SA-4.0", r"(creative commons )?attribution-sharealike 4\.0 international\b"),
    ("CC-BY-4.0", r"(creative commons )?attribution 4\.0 international\b"),
    ("CC0-1.0", r"(creative commons )?cc0 1\.0 universal\b"),
    ("Unlicense", r"this is free and unencumbered software released into the public domain\b"),
)
_NO_MORE = r"(?!,? (?:with|plus|and|modified)\b)"
_IDENTIFIER = re.compile(r"spdx-license-identifier:\s*([a-z0-9.+-]+)", re.IGNORECASE)
_HEAD_CHARACTERS = 400


def names_of(text: str) -> Iterator[str]:
    """What the license may be called in a list: its identifier, as far as it is known, and its first line."""
    head = " ".join(text[: 4 * _HEAD_CHARACTERS].split())[:_HEAD_CHARACTERS]
    declared = _IDENTIFIER.search(head)
    if declared:
        yield declared[1]
    folded = head.casefold()
    yield from (name for name, pattern in _HEADS if re.match(f"(?:{pattern}){_NO_MORE}", folded))
    yield first_line(text)


def first_line(text: str) -> str:
    """The first line that says something, its blanks made one; "" for a text without any."""
    return next((line for line in (" ".join(raw.split()) for raw in text.splitlines()) if line), "")


def refused_licenses(texts: Iterable[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """The first line of every license that no entry of `allowed` names; entries may be globs, case does not count."""
    folded = [" ".join(entry.split()).casefold() for entry in allowed]
    lines = (first_line(text) for text in texts if not _is_allowed(text, folded))
    return tuple(dict.fromkeys(line for line in lines if line))


def _is_allowed(text: str, allowed: Sequence[str]) -> bool:
    return any(fnmatchcase(name.casefold(), entry) for name in names_of(text) for entry in allowed)
