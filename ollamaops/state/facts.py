"""The facts that are remembered between runs, as values.

Decides what one fact holds; leaves storing it to ledger.py. The one fact a reader would miss: a model that was
found and taken over (`adopted`) is remembered like the others, but it is not ours and is never pruned. What was
rolled back is `held`: its fingerprint is that of the hold, which no declaration has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

How = Literal["pulled", "created", "copied", "adopted", "held"]
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


class FactStore(Protocol):
    """Where facts about hosts are kept: the ledger in the state folder, or one on the host itself.

    Every method raises StateError when the store cannot be used; a store on a host also RemoteError when it is read.
    """

    def remember(self, fact: Applied) -> None:
        """Keep the fact; an older one about the same model on the same host is replaced."""

    def remember_all(self, facts: Iterable[Applied]) -> None:
        """Keep all of them, in one write where the store can."""

    def recall(self, host: str) -> Mapping[str, Applied]:
        """Everything known of one host, by `ModelName.key`."""

    def forget(self, host: str, model: str) -> None:
        """Drop what is known of one model on one host."""

    def remember_push(self, host: str, model: str, ref: str, digest: str) -> None:
        """Keep that this was pushed to `ref`: its tags digest and, if known, the registry's after a blank."""

    def recall_pushes(self, host: str) -> Mapping[tuple[str, str], str]:
        """(`ModelName.key`, ref) → the digests of what was pushed there last, as they were given."""


UNFINISHED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a command that may change hosts.

    `hosts` is a JSON text that sums up each host's part, `plan` the document of the plan that was agreed to,
    `outcomes` a JSON list of what became of each action. `who` is `user@machine`, `commit` the git commit of the
    manifest's folder ("" outside of one; `-dirty` when files differ from it). `exit_code` is UNFINISHED from the
    start of the run to its end, so for ever when it was killed.
    """

    run_id: str
    at: str
    command: str
    hosts: str
    manifest_digest: str
    exit_code: int
    plan: str = ""
    outcomes: str = ""
    who: str = ""
    commit: str = ""
    ended_at: str = ""

    @property
    def is_finished(self) -> bool:
        """False while it runs, and when it was killed."""
        return self.exit_code != UNFINISHED
