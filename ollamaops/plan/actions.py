"""What can be done to a host, as data: a closed union of frozen values, and the plan that has them.

planner.py makes these values, report/ puts them into words, apply/perform.py carries them out. An action's `id` is
made from what it does, so the same need has the same id in every run. `because` gives the reasons as differences;
like everything that is written for people it stays out of the fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

from msgspec import Struct, field

from ollamaops.names import Digest, ModelName
from ollamaops.plan.expectations import Expectation
from ollamaops.settings import Settings
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint

Kind = Literal[
    "missing",  # declared, not there
    "unwanted",  # declared absent, there
    "undeclared",  # not declared, there, and in the scope of prune
    "content",  # the pulled content is not what the registry, the lock or the pin says
    "damaged",  # a file of it is gone from the host, or cannot be read
    "weights",  # the model layer is not the base's, or not the file's
    "field",  # one declared field differs; `path` says which
    "base",  # the model it is made from changes in this plan
    "alias",  # a copy does not point where it should
    "moved",  # it is there under the name it had before
    "unpushed",  # the registry is not known to have this content
    "unverified",  # it was not yet seen to do what is expected
    "unknown",  # cannot be told from here: only a pull shows it
    "resident",  # in memory or not, against the declaration
    "template",  # the server uses another template than the declared one, which it has
    "effective",  # the template that makes the prompts is not the locked one
]


class Difference(Struct, frozen=True, kw_only=True):
    """One way in which a host is not as declared.

    `desired` and `observed` are whole values as text (a system prompt may have many lines); report/ shortens.
    For kind "field", `path` is `system`, `template`, `parameters.num_ctx`, `messages`, `licenses`, `renderer` …
    """

    host: str
    model: ModelName
    kind: Kind
    path: str = ""
    desired: str = ""
    observed: str = ""


class Fact(Struct, frozen=True):
    """A fact the action relies on: `model` had this tags digest when the plan was made (None: was not there)."""

    model: ModelName
    digest: str | None


class Cost(Struct, frozen=True):
    """Bytes to move, as far as they are known (None: not known from here), and bytes the host has already."""

    download_bytes: int | None = 0
    upload_bytes: int | None = 0
    present_bytes: int = 0


class Blob(Struct, frozen=True):
    """A file that the server knows by digest: `name` is what the create request calls it."""

    name: str
    digest: Digest


class Recipe(Settings, frozen=True, kw_only=True):
    """What a create asks for, with every file replaced by its digest."""

    base: ModelName | None = None
    files: tuple[Blob, ...] = ()
    adapters: tuple[Blob, ...] = ()
    drafts: tuple[Blob, ...] = ()


class _Step(Struct, frozen=True, kw_only=True):
    """What all actions have: where, on which model, why, after which others, on which facts it relies, its cost, and
    how often it is tried again."""

    host: str
    model: ModelName
    because: tuple[Difference, ...] = ()
    needs: tuple[str, ...] = ()
    expects: tuple[Fact, ...] = ()
    cost: Cost = Cost()
    retries: int = 5


class PullModel(_Step, frozen=True, kw_only=True):
    """Have the host pull `model`. `registry_digest` is what the registry has now ("" if it was not asked), `current`
    the tags digests that stand for it, `pin` those one of which the result must have (none: anything).

    `verify`: a VerifyModel says afterwards whether it stays, until when the previous content is kept. `keep` is how
    many previous versions stay on the host for good. `template_change`: the digests of the templates that make the
    prompts, now and then, where they differ.
    """

    cost: Cost = Cost(download_bytes=None)
    insecure: bool = False
    registry_digest: str = ""
    current: tuple[str, ...] = ()
    pin: tuple[str, ...] = ()
    verify: bool = False
    keep: int = 0
    fingerprint: Fingerprint = NO_FINGERPRINT
    template_change: tuple[Digest, ...] = ()


class UploadBlob(_Step, frozen=True, kw_only=True):
    """Send the local file at `path` to the host, unless it has that digest already. `model` is who needs it.

    With `parts` (name in it, path here) it is a zip archive of these files, made on the way; `path` is their folder.
    `stated`: the digest is the manifest's word, and the file has to be read if the host has the blob already.
    """

    digest: Digest
    path: str
    size_bytes: int
    stated: bool = False
    parts: tuple[tuple[str, str], ...] = ()


class CreateModel(_Step, frozen=True, kw_only=True):
    """Build `model` on the host from `recipe`, replacing what has that name.

    With `aside` it is built under that name, and `model` stays as it is until a CopyModel switches.
    """

    recipe: Recipe
    aside: ModelName | None = None
    fingerprint: Fingerprint = NO_FINGERPRINT


class CopyModel(_Step, frozen=True, kw_only=True):
    """Make `model` the same as `source`, which is deleted afterwards when it is a reserved name.

    `keep` is how many previous versions of `model` stay on the host; what is still called `former` is one of them
    when the model is not there. `rollback_key` is what a rollback is remembered under.
    """

    source: ModelName
    keep: int = 0
    former: ModelName | None = None
    rollback_key: str = ""
    fingerprint: Fingerprint = NO_FINGERPRINT


class DeleteModel(_Step, frozen=True, kw_only=True):
    """Remove `model` from the host."""


class PushModel(_Step, frozen=True, kw_only=True):
    """Have the host push `model`, whose name says which registry; `source` is the declared model behind it."""

    source: ModelName
    insecure: bool = False


class VerifyModel(_Step, frozen=True, kw_only=True):
    """See that the new content of `model`, which is found under the name `at`, does what is expected of it.

    No expectation means that it can be loaded. When it fails and `at` is the model itself, which was pulled to be
    verified, the previous content comes back. `keep` is how many previous versions stay when it does not.
    """

    at: ModelName
    expectations: tuple[Expectation, ...] = ()
    keep: int = 0


class LoadModel(_Step, frozen=True, kw_only=True):
    """Have the host load `model` and keep it for `keep_alive_s` seconds after its last use; negative: for ever."""

    keep_alive_s: float = -1.0


class UnloadModel(_Step, frozen=True, kw_only=True):
    """Have the host drop `model` from memory; it stays on its disk."""


Action = (
    PullModel
    | UploadBlob
    | CreateModel
    | CopyModel
    | DeleteModel
    | PushModel
    | VerifyModel
    | LoadModel
    | UnloadModel
)


def verb_of(action: Action) -> str:
    """`pull`, `upload`, `create`, `copy`, `delete`, `push`, `verify`, `load` or `unload`."""
    match action:
        case PullModel():
            return "pull"
        case UploadBlob():
            return "upload"
        case CreateModel():
            return "create"
        case CopyModel():
            return "copy"
        case DeleteModel():
            return "delete"
        case PushModel():
            return "push"
        case VerifyModel():
            return "verify"
        case LoadModel():
            return "load"
        case UnloadModel():
            return "unload"
        case _:
            assert_never(action)


def subject_of(action: Action) -> str:
    """What the action is about: a model's display name, or the short digest of a blob."""
    return f"sha256:{action.digest.short}" if isinstance(action, UploadBlob) else action.model.display


def continues_another(action: Action) -> bool:
    """Whether the action is a step of what another one began with the same model, for whose reasons it is there."""
    return isinstance(action, VerifyModel | CopyModel) and not action.because


def is_check(action: Action) -> bool:
    """Whether the action only finds out whether something differs: a pull, of which no registry was asked."""
    return isinstance(action, PullModel) and {why.kind for why in action.because} == {"unknown"}


def id_of(action: Action) -> str:
    """Deterministic: `gpu-1/create/support-bot:v3`; the same need has the same id in every run."""
    return f"{action.host}/{verb_of(action)}/{subject_of(action)}"


class Refusal(Struct, frozen=True, kw_only=True):
    """A safety rule that said no, with its numbers and the way out. `rule` is what `--force` would name."""

    rule: str
    host: str
    message: str
    hint: str
    model: ModelName | None = None


class Note(Struct, frozen=True, kw_only=True):
    """Something the reader of a plan should know that is neither an action nor a refusal.

    `unresolved` marks what could not be found out: the run is then partial (exit 3), not in sync. `waits` marks what
    will be found out when an action of the same plan is done. `unverified`: the model is as declared, except that
    its weights could not be compared. `lasting` are differences that no action mends: this is drift (exit 2), and an
    apply that leaves it is partial (exit 3).
    """

    host: str
    message: str
    model: ModelName | None = None
    hint: str | None = None
    unresolved: bool = False
    waits: bool = False
    unverified: bool = False
    lasting: tuple[Difference, ...] = ()


class EffectiveTemplate(Struct, frozen=True):
    """The template that makes a model's prompts, and whether it is the model's or one that its weights carry."""

    digest: Digest
    origin: Literal["model", "weights"]


class HostPlan(Struct, frozen=True, kw_only=True):
    """What one host needs.

    `unmanaged` are undeclared models that stay as they are, `rolled_back` those that stay at a previous version.
    `templates` are, by name, those of the models that were looked into. `leftovers` are reserved names that an
    interrupted run may have left behind.
    """

    host: str
    actions: tuple[Action, ...] = ()
    unchanged: tuple[ModelName, ...] = ()
    unmanaged: tuple[ModelName, ...] = ()
    rolled_back: tuple[ModelName, ...] = ()
    leftovers: tuple[ModelName, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    templates: Mapping[str, EffectiveTemplate] = field(default_factory=dict)
    server_version: str = ""


class UnreachedHost(Struct, frozen=True, kw_only=True):
    """A host whose state is unknown, so nothing is planned for it."""

    host: str
    error: str
    hint: str | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that would be done, host by host, in the manifest's order of hosts.

    `kind` says how it is carried out: a saved plan and a rollback exactly, the others with further rounds for what
    they could not know (of a prune only what is undeclared). `made_from` holds what a saved plan is checked against:
    the manifest's fingerprint and the environment.
    """

    hosts: tuple[HostPlan, ...]
    unreached: tuple[UnreachedHost, ...] = ()
    made_from: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["fresh", "saved", "rollback", "prune"] = "fresh"

    @property
    def actions(self) -> tuple[Action, ...]:
        """All actions of all hosts, in order."""
        return tuple(action for host in self.hosts for action in host.actions)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """All refusals of all hosts, in order."""
        return tuple(refusal for host in self.hosts for refusal in host.refusals)

    @property
    def unresolved(self) -> tuple[Note, ...]:
        """What could not be found out on hosts that did answer."""
        return tuple(note for host in self.hosts for note in host.notes if note.unresolved)

    @property
    def lasting(self) -> tuple[Note, ...]:
        """What is not as declared and stays so, whatever the plan does."""
        return tuple(note for host in self.hosts for note in host.notes if note.lasting)
