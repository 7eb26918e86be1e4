"""The manifest as values: what is wanted, with defaults merged, variables filled in and names parsed.

Paths are absolute and already confined. `from:`, `files:` and `modelfile:` all become one kind of source, `Build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from ollamaops.errors import Problem
from ollamaops.files.location import Location
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.settings import Settings

Update = Literal["missing", "latest", "locked", "never"]
StatePlace = Literal["local", "server"]


class Place(Struct, frozen=True):
    """Where in the user's files something was written; lines and columns count from 1."""

    path: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


class SecretFromEnv(Struct, frozen=True):
    """`{env: NAME}`"""

    name: str


class SecretFromFile(Struct, frozen=True):
    """`{file: PATH}`; the file's text without its trailing newline."""

    path: Path


class SecretFromCommand(Struct, frozen=True):
    """`{command: [argv…]}`; what the command prints, without the trailing newline. No shell."""

    argv: tuple[str, ...]


Secret = SecretFromEnv | SecretFromFile | SecretFromCommand


class BearerAuth(Struct, frozen=True):
    """`Authorization: Bearer …`"""

    token: Secret


class BasicAuth(Struct, frozen=True):
    """`Authorization: Basic …` (RFC 7617)"""

    user: str
    password: Secret


Auth = BearerAuth | BasicAuth


class Tls(Struct, frozen=True, kw_only=True):
    """How the host's certificate is checked and which one we show. `verify` False accepts any certificate."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True


class HostSpec(Struct, frozen=True, kw_only=True):
    """One Ollama server. `url` is normalized: scheme, host, port, optional path prefix, no trailing slash.

    `timeout_s` bounds connecting and the silence between two pieces of an answer; `stall_s` bounds how long
    `completed` may stand still in a pull. `parallel` is how many pulls and how many uploads run at once. `written`
    has the values that came from the environment as they were written, by their path in the host's entry.
    """

    name: str
    url: str
    labels: Mapping[str, str] = field(default_factory=dict)
    auth: Auth | None = None
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    tls: Tls = Tls()
    proxy: str | None = None
    timeout_s: float = 30.0
    stall_s: float = 300.0
    parallel: int = 2
    disk_bytes: int | None = None
    place: Place = Place()
    identity: str = ""
    written: Mapping[tuple[str | int, ...], str] = field(default_factory=dict)

    @property
    def memory_key(self) -> str:
        """What the ledger files this host's facts under: its URL, or the store of a sandbox."""
        return self.identity or self.url


class WeightsFile(Struct, frozen=True):
    """A file, local or remote, that goes to the server as a blob.

    `name` is relative to the common folder of the files (what the server is told), `known` the digest the
    manifest states, if it does.
    """

    path: Location
    name: str
    known: Digest | None = None


class Pull(Struct, frozen=True, kw_only=True):
    """Pulled from a registry under `ref`; when that is not the entry's name, the name becomes a copy of it."""

    ref: ModelName
    insecure: bool = False


class Build(Settings, frozen=True, kw_only=True):
    """Made on the server, from a base model or from weights; exactly one of `base` and `files` is given."""

    base: ModelName | None = None
    files: tuple[WeightsFile, ...] = ()
    adapters: tuple[WeightsFile, ...] = ()
    drafts: tuple[WeightsFile, ...] = ()


class Copy(Struct, frozen=True, kw_only=True):
    """An alias: the same digest as `source`, always."""

    source: ModelName


Source = Pull | Build | Copy


class Requirement(Struct, frozen=True):
    """One condition of a label selector: `vram>=24GiB`, `site!=lyon`, `gpu` (present), `!gpu` (absent)."""

    key: str
    operator: Literal["=", "!=", ">", ">=", "<", "<=", "in", "notin", "exists", "absent"]
    values: tuple[str, ...] = ()


Selector = tuple[Requirement, ...]


class ModelSpec(Struct, frozen=True, kw_only=True):
    """One model that should be there, on every host that `where` selects (no condition: all of them).

    `insecure`: the registry of what it is made from speaks plain http (`Pull` and `push_insecure` say it for theirs).
    `expect` is the declared expectation as plain JSON values; `resident` None means "not managed", True
    forever, False unloaded, a number seconds. `accepts` comes from the lock file: every tags digest (bare hex)
    that stands for what may be pulled for this model or for its undeclared base; none: anything. So do `templates`,
    the digests of the templates one of which has to make its prompts; none: any.
    """

    name: ModelName
    source: Source
    where: Selector = ()
    update: Update = "missing"
    insecure: bool = False
    digest: Digest | None = None
    accepts: tuple[str, ...] = ()
    templates: tuple[Digest, ...] = ()
    resident: bool | float | None = None
    protect: bool = False
    ignore: tuple[str, ...] = ()
    expect: tuple[Mapping[str, object], ...] = ()
    staged: bool = False
    keep_previous: int = 0
    push: ModelName | None = None
    push_insecure: bool = False
    moved_from: ModelName | None = None
    retries: int = 5
    place: Place = Place()


class AbsentSpec(Struct, frozen=True, kw_only=True):
    """Models that should not be there, by name or glob."""

    pattern: NamePattern
    where: Selector = ()
    place: Place = Place()


class Limit(Struct, frozen=True):
    """How many changes are allowed: an absolute `count`, or a `percent` of the host's models (10 models up)."""

    count: int | None = None
    percent: float | None = None


class Window(Struct, frozen=True, kw_only=True):
    """When changes may begin. `days` (mon … sun) are those on which the window opens; none: every day.

    Minutes count from midnight in `timezone` (an IANA name); `ends` at or before `begins` is on the next day.
    """

    days: tuple[str, ...] = ()
    begins_minute: int = 0
    ends_minute: int = 24 * 60
    timezone: str = "UTC"


class Policy(Struct, frozen=True, kw_only=True):
    """What may be touched. `prune` is False, "owned", or the patterns whose undeclared models are deleted.

    `registries` and `licenses` None mean "any". `busy` is what happens to a model in use, `windows` none: always.
    `require_lock` is --locked of one run.
    """

    prune: Literal[False, "owned"] | tuple[NamePattern, ...] = False
    protect: tuple[NamePattern, ...] = ()
    ignore: tuple[NamePattern, ...] = ()
    max_delete: Limit | None = None
    max_replace: Limit | None = None
    registries: tuple[str, ...] | None = None
    licenses: tuple[str, ...] | None = None
    cloud: bool = False
    min_version: str | None = None
    busy: Literal["refuse", "wait", "force"] | None = None
    windows: tuple[Window, ...] = ()
    require_lock: bool = False


class Manifest(Struct, frozen=True, kw_only=True):
    """Everything the user's files declare for one environment.

    `root` is the folder that paths were confined to, `files` every file that was read (relative to the current
    folder where possible), `warnings` what is legal and probably a mistake. `state` is where facts about hosts are
    kept: in the local state folder, or on each host itself. `is_trusted` False: strangers wrote it, so nothing may be
    run, and no secret sent anywhere, because of what it says. `hidden` is what came from the process's environment,
    each text with the reference that is shown instead.
    """

    root: Path
    files: tuple[str, ...]
    hosts: tuple[HostSpec, ...]
    models: tuple[ModelSpec, ...]
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    warnings: tuple[Problem, ...] = ()
    state: StatePlace = "local"
    is_trusted: bool = True
    hidden: Mapping[str, str] = field(default_factory=dict)
