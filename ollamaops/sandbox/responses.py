"""What a piece of streaming work (create, pull, push) is made of, and the words for what goes wrong in it.

Work is a generator of lines. A line is a progress object, or a `Refusal` that the server reports and then goes on
from; a Refusal that is raised ends the work. Whether the caller sees a status or a line is for `streams` to decide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

from ollamaops.sandbox.inference_requests import Refusal

Line = dict[str, object] | Refusal
Work = Iterator[Line]
T = TypeVar("T")

SUCCESS = "success"


def line(status: str, **further: object) -> dict[str, object]:
    """A progress line; `further` keys with 0 are left out, as Go's omitempty does."""
    return {"status": status, **{key: value for key, value in further.items() if value}}


def bad_request(text: str) -> Refusal:
    """The error of a request that will never do."""
    return Refusal(400, text)


def failure(text: str) -> Refusal:
    """An error for which the server has no status in mind."""
    return Refusal(500, text)


def os_failure(error: OSError, operation: str = "open") -> Refusal:
    """An operating system's error in Go's words: `open /path: no such file or directory`."""
    return failure(os_error_text(error, operation))


def os_error_text(error: OSError, operation: str = "open") -> str:
    """`open /path: no such file or directory`."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{operation} {error.filename}: {reason.lower()}"
