"""The options that every command shares; each may stand before or after the command's name.

The group and every command declare the same options without defaults; what is nearer to the command wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import click
from msgspec import Struct
from msgspec.structs import asdict, replace

from ollamaops.errors import InvalidName, InvalidValue, UsageError

Command = TypeVar("Command", bound=Callable[..., object])
Value = TypeVar("Value")
FORMATS = ("text", "json", "markdown", "html")


class Shared(Struct, frozen=True, kw_only=True):
    """What the shared options said; None and empty mean "not given"."""

    files: tuple[str, ...] = ()
    environment: str | None = None
    selector: str | None = None
    hosts: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    jobs: int | None = None
    timeout: str | None = None
    output: str | None = None
    sandbox: str | None = None
    state_dir: str | None = None
    lock_file: str | None = None
    no_color: bool = False
    progress: Literal["auto", "plain", "none"] | None = None
    quiet: bool = False
    verbose: int = 0
    log_format: str | None = None
    allow_outside: bool = False
    allow_no_match: bool = False
    no_registry: bool = False
    trust: Literal["untrusted", "trusted"] | None = None
    allow_env: tuple[str, ...] = ()
    hosts_from: str | None = None

    def over(self, outer: Shared) -> Shared:
        """These options where given, else the outer ones."""
        given = {name: value for name, value in asdict(self).items() if value}
        return replace(outer, **given)


def read_option(name: str, text: str, parse: Callable[[str], Value]) -> Value:
    """What `parse` makes of an option's text; UsageError, which names the option, where it makes nothing of it."""
    try:
        return parse(text)
    except (InvalidValue, InvalidName) as error:
        raise UsageError(f"{name}: {error}", hint=error.hint) from error


_OPTIONS = (
    click.option(
        "-f",
        "--file",
        "files",
        multiple=True,
        metavar="FILE|DIR|-",
        help="Read this manifest: a file, a folder (every YAML and JSON file in it) or - for stdin; repeatable. "
        "Without it ollamaops.yaml, else the folder manifests.",
    ),
    click.option(
        "-e",
        "--env",
        "environment",
        metavar="ENV",
        help="Apply the changes under environments.ENV of the manifest.",
    ),
    click.option(
        "-l",
        "--selector",
        metavar="SELECTOR",
        help="Only hosts whose labels match, such as site=paris,vram>=24GiB.",
    ),
    click.option(
        "--host",
        "hosts",
        multiple=True,
        metavar="GLOB",
        help="Only hosts whose name matches: 'gpu-*'; repeatable.",
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="MODEL",
        help="Only models with this name (or glob), and what they are made from; repeatable.",
    ),
    click.option(
        "-j", "--jobs", type=click.IntRange(1, 256), metavar="N", help="Work on up to N hosts at once (8)."
    ),
    click.option(
        "--timeout",
        metavar="D",
        help="Give up on a host or registry that does not connect, or falls silent, for this long: 10s, 2m "
        "(30s; registries 10s).",
    ),
    click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        help="Format of the result on stdout (text).",
    ),
    click.option(
        "--sandbox",
        metavar="[=DIR]",
        help="Use pretend servers instead of the hosts; their models, and what is remembered of them, live in DIR (a "
        "folder in your user cache, one for each current folder).",
    ),
    click.option(
        "--state-dir",
        metavar="DIR",
        help="Where to remember what was applied (OLLAMAOPS_STATE_DIR, else your user state folder; with --sandbox, "
        "in its DIR).",
    ),
    click.option(
        "--lock-file",
        metavar="FILE",
        help="Use this lock file (ollamaops.lock beside the manifest; with --sandbox, in its DIR).",
    ),
    click.option(
        "--no-color", is_flag=True, help="Print without colors, as NO_COLOR in the environment does."
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "none"]),
        help="Progress on stderr: auto shows bars in a terminal and lines elsewhere, plain shows lines (auto).",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print only results and errors."),
    click.option(
        "-v", "--verbose", count=True, help="Print more detail; -vv also prints tracebacks of bugs."
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        help="Format of progress and notes on stderr: json writes one line per event (text).",
    ),
    click.option("--allow-outside", is_flag=True, help="Let the manifest use files outside its own folder."),
    click.option(
        "--allow-no-match",
        is_flag=True,
        help="Do nothing, instead of failing, when no host or model matches.",
    ),
    click.option(
        "--no-registry",
        is_flag=True,
        help="Do not ask registries from this machine: sizes stay unknown, and `update: latest` means the latest "
        "as of the host's last pull, which apply repeats.",
    ),
    click.option(
        "--untrusted",
        "trust",
        flag_value="untrusted",
        help="Strangers wrote the manifest: run nothing, read no variable and no absolute path, ask no address for "
        "it, and change nothing, but as the next options allow. On by itself in CI for a fork's pull request.",
    ),
    click.option(
        "--trusted", "trust", flag_value="trusted", help="The opposite, whatever CI says of the run."
    ),
    click.option(
        "--allow-env",
        multiple=True,
        metavar="NAME",
        help="Everybody may know what is in this environment variable; repeatable.",
    ),
    click.option(
        "--hosts-from",
        metavar="FILE",
        help="With --untrusted: take the hosts, as they are there, and the allowed registries from this manifest.",
    ),
)
_NAMES = frozenset(Shared.__struct_fields__)


def write_options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """The command's own options first, then those that every command has."""
    sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Options of every command": []}
    own, shared = sections.values()
    for param in command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None:
            (shared if param.name in _NAMES else own).append(record)
    for title, records in sections.items():
        with formatter.section(title):
            formatter.write_dl(records)


class OneCommand(click.Command):
    """A command whose help begins with what is its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)


class Commands(click.Group):
    """A group whose help begins with what is its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)


def shared_options(command: Command) -> Command:
    """Add the shared options to a command or group."""
    decorated: Any = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return cast("Command", decorated)


def take_shared(given: dict[str, Any]) -> tuple[Shared, dict[str, Any]]:
    """Split a command's keyword arguments into the shared ones and its own."""
    shared = Shared(**{name: value for name, value in given.items() if name in _NAMES})
    return shared, {name: value for name, value in given.items() if name not in _NAMES}


def offer_formats(command: click.Command, formats: Sequence[str], *, help_text: str | None = None) -> None:
    """Let the command's own -o take, and its help list, these formats alone."""
    for param in command.params:
        if isinstance(param, click.Option) and param.name == "output":
            param.type = click.Choice(formats)
            param.help = help_text or param.help


def command_with_shared(
    *, formats: Sequence[str] = ("text", "json"), **attributes: Any
) -> Callable[[Callable[..., int]], click.Command]:
    """A click command whose function gets `shared` merged with what was given before the command's name.

    `formats` are those that the command can write.
    """

    def decorate(function: Callable[..., int]) -> click.Command:
        @click.pass_context
        def run(context: click.Context, /, **given: Any) -> int:
            shared, own = take_shared(given)
            outer = context.obj if isinstance(context.obj, Shared) else Shared()
            return function(shared.over(outer), **own)

        run.__doc__ = function.__doc__
        run.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        made: click.Command = click.command(cls=OneCommand, **attributes)(shared_options(run))
        offer_formats(made, formats)
        return made

    return decorate


force_option = click.option(
    "--force",
    multiple=True,
    metavar="RULE",
    help="Lift one safety rule, by the name shown in its refusal; repeatable.",
)
wait_option = click.option(
    "--wait",
    metavar="D",
    help="Wait up to D, such as 10m, for a host that another run is using; without it that is an error.",
)
_PLANNING = (
    click.option(
        "--plan-key",
        metavar="FILE",
        help="Sign a saved plan with the key in FILE, and apply only what it has signed; OLLAMAOPS_PLAN_KEY holds a "
        "key itself.",
    ),
    click.option(
        "--prune",
        is_flag=False,
        flag_value="",
        metavar="[SCOPE]",
        help="Also delete undeclared models: --prune=owned means those that ollamaops made or pulled, "
        "--prune=GLOB,… selects by name.",
    ),
    click.option(
        "--no-prune", is_flag=True, help="Never delete undeclared models, whatever the policy says."
    ),
    force_option,
    click.option(
        "--verify-weights",
        is_flag=True,
        help="Rebuild models whose weights could be compared only by their header.",
    ),
    click.option("--locked", is_flag=True, help="Refuse to pull models that are not in the lock file."),
    click.option(
        "--release",
        is_flag=True,
        help="Also update models that `ollamaops rollback` keeps at a previous version.",
    ),
)


def planning_options(command: Callable[..., int]) -> Callable[..., int]:
    """`command` with what `plan` and `apply` both take: what may be deleted, lifted, doubted, released."""
    for option in reversed(_PLANNING):
        command = option(command)
    return command
