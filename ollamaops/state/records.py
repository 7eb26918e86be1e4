"""What is remembered between runs, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, get_args

from msgspec import Struct

How = Literal["pulled", "created", "copied", "adopted"]
Status = Literal["applied", "unverified", "unusable", "doubted", "rolled_back"]
WAYS: frozenset[str] = frozenset(get_args(How))
STATUSES: frozenset[str] = frozenset(get_args(Status))


class Fingerprint(Struct, frozen=True, order=True):
    """What a declaration says, as two hashes, so that a change of words is told from a change of weights.

    In saved plans and their JSON it is one text, `words:weights`.
    """

    words: str = ""
    weights: str = ""

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """The fingerprint that `str` made this text of."""
        words, _, weights = text.partition(":")
        return cls(words, weights)

    def __str__(self) -> str:
        return f"{self.words}:{self.weights}" if self != NO_FINGERPRINT else ""


NO_FINGERPRINT = Fingerprint()  # of what nobody declared


class ModelRecord(Struct, frozen=True, kw_only=True):
    """What we did with one model on one host, and what came out.

    `how` it got there: `adopted` was there before us, so it is never pruned. `status`:

    * `applied`: it is what the declaration with this fingerprint asks for;
    * `unverified`: pulled for that declaration, but not yet seen to do what is expected of it;
    * `unusable`: pulled for that declaration, but the server cannot open it;
    * `doubted`: a later look found it to differ, so the next run looks inside;
    * `rolled_back`: it is the previous version, and stays until the manifest entry (hashed in `entry`) changes.

    `digest` is the one that `/api/tags` showed afterwards ("": the run ended before it knew), `base_digest` its
    base's at that time, `blobs` what `/api/show` printed. `weights_verified`: the weights are known to be the
    declared ones. `at` is the moment, in RFC 3339.

    Those say what the content is; it never changes under one digest. What a look found is a verdict, and holds only
    for what decided it: `declared` is the hash of the declaration that the content met, with what it tolerates,
    `seen_on` which server it was seen on, by which ollamaops. Both are empty until a look has found it in sync.
    `verified_for` is the hash of the expectations that were seen to hold, the content that they held for, and the
    server's version.
    """

    how: How
    digest: str
    status: Status = "applied"
    fingerprint: Fingerprint = NO_FINGERPRINT
    entry: str = ""
    base_digest: str | None = None
    blobs: tuple[str, ...] = ()
    weights_verified: bool = True
    declared: str = ""
    seen_on: str = ""
    verified_for: str = ""
    at: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether we pulled, created or copied the model, and did not just find it."""
        return self.how != "adopted"

    def is_applied_for(self, fingerprint: Fingerprint) -> bool:
        """Whether the model was applied for exactly this declaration."""
        return self.status == "applied" and self.fingerprint == fingerprint


class LedgerStore(Protocol):
    """Where records about hosts are kept: the ledger in the state folder, or one on the host itself.

    `host` is the host's identity (its URL, or a sandbox's store), `model` is `ModelName.key`. Every method raises
    StateError when the store cannot be used; reading a store on a host also raises RemoteError.
    """

    def load(self, host: str) -> Mapping[str, ModelRecord]:
        """What is known of one host, by model."""

    def remember(self, host: str, records: Mapping[str, ModelRecord]) -> None:
        """Keep the records, in one write; older ones about the same models are replaced."""

    def forget(self, host: str, model: str) -> None:
        """Drop what is known of one model on one host."""

    def load_pushes(self, host: str) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(model, reference) → the digests of what was pushed there last."""

    def remember_push(self, host: str, model: str, ref: str, digests: Iterable[str]) -> None:
        """Keep that this was pushed to `ref`: its tags digest and, if known, the registry's."""

    def load_layers(self, host: str) -> Mapping[str, tuple[str, ...]]:
        """Tags digest → the digests of the weights layers of that content; none where a server shows none."""

    def remember_layers(self, host: str, layers: Mapping[str, Iterable[str]]) -> None:
        """Keep the layers of everything on the host, in the place of what was known before."""


UNFINISHED = -1


class RunRecord(Struct, frozen=True, kw_only=True):
    """One run of a command that may change hosts.

    `hosts` is a JSON text that sums up each host's part, `plan` the document of the plan that was agreed to,
    `outcomes` a JSON list of what became of each action. `who` is `user@machine`, `commit` the git commit of the
    manifest's folder ("" outside of one; `-dirty` when files differ from it). `exit_code` is UNFINISHED from the
    start of the run to its end, so it stays UNFINISHED when the run is killed.
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
