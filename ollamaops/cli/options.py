"""The options that every command shares; each may stand before or after the command's name.

The group and every command declare the same options without defaults; what is nearer to the command wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, cast

import click

Command = TypeVar("Command", bound=Callable[..., object])
DEFAULT_SANDBOX = ".ollamaops/sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
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

    def over(self, outer: Shared) -> Shared:
        """These options where given, else the outer ones."""
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name))}
        return replace(outer, **given)


_OPTIONS = (
    click.option("-f", "--file", "files", multiple=True, metavar="FILE|DIR|-", help="Manifest; repeatable."),
    click.option("-e", "--env", "environment", metavar="ENV", help="Apply environments.ENV of the manifest."),
    click.option(
        "-l", "--selector", metavar="SELECTOR", help="Only hosts with these labels: site=paris,vram>=24GiB"
    ),
    click.option(
        "--host", "hosts", multiple=True, metavar="GLOB", help="Only hosts with such a name; repeatable."
    ),
    click.option(
        "--target", "targets", multiple=True, metavar="MODEL", help="Only this model and what it needs."
    ),
    click.option("-j", "--jobs", type=click.IntRange(1, 256), metavar="N", help="Hosts at once (8)."),
    click.option("--timeout", metavar="D", help="Connect and idle timeout: 30s, 2m."),
    click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", "markdown", "html"]),
        help="Format of stdout (text).",
    ),
    click.option(
        "--sandbox", metavar="DIR", help=f"Use a pretend server; --sandbox=DIR ({DEFAULT_SANDBOX})."
    ),
    click.option("--state-dir", metavar="D", help="Where to remember what was applied."),
    click.option("--lock-file", metavar="F", help="Lock file (ollamaops.lock beside the manifest)."),
    click.option("--no-color", is_flag=True, help="No colour; NO_COLOR does the same."),
    click.option(
        "--progress", type=click.Choice(["auto", "plain", "none"]), help="How to show progress (auto)."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Only results and errors."),
    click.option("-v", "--verbose", count=True, help="Say more."),
    click.option("--log-format", type=click.Choice(["text", "json"]), help="Format of stderr (text)."),
    click.option("--allow-outside", is_flag=True, help="Let paths leave the manifest's folder."),
    click.option("--allow-no-match", is_flag=True, help="A selector that matches nothing is no error."),
    click.option("--no-registry", is_flag=True, help="Do not ask registries from here."),
)
_NAMES = frozenset(f.name for f in fields(Shared))


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


def command_with_shared(**attributes: Any) -> Callable[[Callable[..., int]], click.Command]:
    """A click command whose function gets `shared` merged with what was given before the command's name."""

    def decorate(function: Callable[..., int]) -> click.Command:
        @click.pass_context
        def run(context: click.Context, /, **given: Any) -> int:
            shared, own = take_shared(given)
            outer = context.obj if isinstance(context.obj, Shared) else Shared()
            return function(shared.over(outer), **own)

        run.__doc__ = function.__doc__
        run.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        made: click.Command = click.command(**attributes)(shared_options(run))
        return made

    return decorate
