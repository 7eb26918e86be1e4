"""The facts that are remembered between runs, as values.

Decides what one fact holds; leaves storing it to ledger.py. The one fact a reader would miss: a model that was
found and taken over (`adopted`) is remembered like the others, but it is not ours and is never pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

How = Literal["pulled", "created", "copied", "adopted"]
WAYS: frozenset[str] = frozenset(get_args(How))


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was done for one model on one host, and what came out.

    `host` is the host's identity (its URL, or a sandbox's store), `model` is `ModelName.key`, `fingerprint` that
    of the declaration, `digest` the one `/api/tags` showed afterwards, `base` the base's tags digest at that
    time, `weights` the blob digests that `/api/show` printed, `verified` whether the weights were known to be
    the declared ones, `at` the moment in RFC 3339.
    """

    host: str
    model: str
    how: How
    fingerprint: str
    digest: str
    at: str
    base: str | None = None
    weights: tuple[str, ...] = ()
    verified: bool = True

    @property
    def owned(self) -> bool:
        """Whether the model is there because of us: pulled, created or copied, not just found."""
        return self.how != "adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a command that may change hosts. `hosts` is a JSON text that sums up each host's part."""

    run_id: str
    at: str
    command: str
    hosts: str
    manifest_digest: str
    exit_code: int
