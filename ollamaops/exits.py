"""What the process's exit code says; see the table in the README.

2 means "changes pending", so usage errors, for which click would take 2, are 64.
"""

from __future__ import annotations

from typing import Final

DONE: Final = 0
ERROR: Final = 1
CHANGES: Final = 2
PARTIAL: Final = 3
REFUSED: Final = 4
UNEXPECTED: Final = 5
USAGE: Final = 64
INVALID: Final = 65
INTERRUPTED: Final = 130
TERMINATED: Final = 143

MEANINGS: Final = {
    DONE: "done, or in sync",
    ERROR: "error: nothing could be computed or applied",
    CHANGES: "changes pending: drift always, plan and diff with --detailed-exitcode",
    PARTIAL: "partial: some hosts unreached or some actions failed",
    REFUSED: "refused by a safety rule; nothing was changed",
    UNEXPECTED: "applied, but an expectation failed",
    USAGE: "the command line is wrong",
    INVALID: "the manifest is not valid",
    INTERRUPTED: "interrupted (143: terminated); consistent, run again",
}
_PRECEDENCE: Final = (INVALID, REFUSED, ERROR, UNEXPECTED, PARTIAL, CHANGES, DONE)


def worst(*codes: int) -> int:
    """The code that counts when several hold: 65 > 4 > 1 > 5 > 3 > 2 > 0."""
    return next(code for code in _PRECEDENCE if code in codes)
