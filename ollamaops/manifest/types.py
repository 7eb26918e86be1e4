"""The manifest as values: what is wanted, with defaults merged, variables filled in and names parsed.

Paths are absolute and already confined. `from:`, `files:` and `modelfile:` all become one kind of source, `Build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ollamaops.errors import Problem
from ollamaops.files.location import Location
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.settings import Settings

Update = Literal["missing", "latest", "locked", "never"]
StatePlace = Literal["local", "server"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the user's files something was written; lines and columns count from 1."""

    path: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


@dataclass(frozen=True, slots=True)
class SecretFromEnv:
    """`{env: NAME}`"""

    name: str


@dataclass(frozen=True, slots=True)
class SecretFromFile:
    """`{file: PATH}`; the file's text without its trailing newline."""

    path: Path


@dataclass(frozen=True, slots=True)
class SecretFromCommand:
    """`{command: [argv…]}`; what the command prints, without the trailing newline. No shell."""

    argv: tuple[str, ...]


Secret = SecretFromEnv | SecretFromFile | SecretFromCommand


@dataclass(frozen=True, slots=True)
class BearerAuth:
    """`Authorization: Bearer …`"""

    token: Secret


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """`Authorization: Basic …` (RFC 7617)"""

    user: str
    password: Secret


Auth = BearerAuth | BasicAuth


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the host's certificate is checked and which one we show. `verify` False accepts any certificate."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
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
    written: Mapping[tuple[str | int, ...], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def memory_key(self) -> str:
        """What the ledger files this host's facts under: its URL, or the store of a sandbox."""
        return self.identity or self.url


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file, local or remote, that goes to the server as a blob.

    `name` is relative to the common folder of the files (what the server is told), `known` the digest the
    manifest states, if it does.
    """

    path: Location
    name: str
    known: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Pulled from a registry under `ref`; when that is not the entry's name, the name becomes a copy of it."""

    ref: ModelName
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Build(Settings):
    """Made on the server, from a base model or from weights; exactly one of `base` and `files` is given."""

    base: ModelName | None = None
    files: tuple[WeightsFile, ...] = ()
    adapters: tuple[WeightsFile, ...] = ()
    drafts: tuple[WeightsFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """An alias: the same digest as `source`, always."""

    source: ModelName


Source = Pull | Build | Copy


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition of a label selector: `vram>=24GiB`, `site!=lyon`, `gpu` (present), `!gpu` (absent)."""

    key: str
    operator: Literal["=", "!=", ">", ">=", "<", "<=", "in", "notin", "exists", "absent"]
    values: tuple[str, ...] = ()


Selector = tuple[Requirement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model that should be there, on every host that `where` selects (no condition: all of them).

    `insecure`: the registry of what it is made from speaks plain http (`Pull` and `push_insecure` say it for theirs).
    `expect` is the declared expectation as plain JSON values; `resident` None means "not managed", True
    forever, False unloaded, a number seconds. `accepts` comes from the lock file: every tags digest (bare hex)
    that stands for what may be pulled for this model or for its undeclared base; none: anything.
    """

    name: ModelName
    source: Source
    where: Selector = ()
    update: Update = "missing"
    insecure: bool = False
    digest: Digest | None = None
    accepts: tuple[str, ...] = ()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentSpec:
    """Models that should not be there, by name or glob."""

    pattern: NamePattern
    where: Selector = ()
    place: Place = Place()


@dataclass(frozen=True, slots=True)
class Limit:
    """How many changes are allowed: an absolute `count`, or a `percent` of the host's models (10 models up)."""

    count: int | None = None
    percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When changes may begin. `days` (mon … sun) are those on which the window opens; none: every day.

    Minutes count from midnight in `timezone` (an IANA name); `ends` at or before `begins` is on the next day.
    """

    days: tuple[str, ...] = ()
    begins_minute: int = 0
    ends_minute: int = 24 * 60
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What may be touched. `prune` is False, "owned", or the patterns whose undeclared models are deleted.

    `registries` and `licenses` None mean "any". `busy` is what happens to a model in use, `windows` none: always.
    `require_lock` is --locked of one run: it says nothing about what is declared, so it is not in `repr`.
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
    require_lock: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything the user's files declare for one environment.

    `root` is the folder that paths were confined to, `files` every file that was read (relative to the current
    folder where possible), `warnings` what is legal and probably a mistake. `state` is where facts about hosts are
    kept: in the local state folder, or on each host itself.
    """

    root: Path
    files: tuple[str, ...]
    hosts: tuple[HostSpec, ...]
    models: tuple[ModelSpec, ...]
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    warnings: tuple[Problem, ...] = ()
    state: StatePlace = "local"
