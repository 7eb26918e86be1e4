"""The `ollamaops` program: finds the command, runs it, turns what happened into an exit code.

Imports nothing but click until a command is chosen: `ollamaops --version` has to be instant.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

import click

from ollamaops import exits
from ollamaops.about import __version__
from ollamaops.cli.options import (
    FORMATS,
    Commands,
    Shared,
    offer_formats,
    shared_options,
    take_shared,
)
from ollamaops.cli.signals import exit_code
from ollamaops.errors import Cancelled, ManifestError, OllamaopsError, did_you_mean

# command → its one line of help; the module of the same name, or that in MODULES, holds it as `command`
COMMANDS = {
    "init": "Write a first manifest.",
    "validate": "Check manifests and Modelfiles; touches no server.",
    "plan": "Show what apply would do, and why.",
    "apply": "Make the servers match the manifest.",
    "drift": "Tell whether the servers are as declared (exit 2 if not).",
    "status": "Show every model on every host.",
    "ps": "Show which models every host has loaded.",
    "diff": "Show field by field how a model differs.",
    "import": "Write a manifest from a live server.",
    "lock": "Record exactly what each pulled model is.",
    "outdated": "Show what registries have that is newer than the hosts' models.",
    "verify": "Check that every declared model has its weights, loads and answers.",
    "test": "Another name of verify.",
    "prune": "Delete models that are no longer declared.",
    "history": "Show what was done when, by whom, and how it ended.",
    "rollback": "Switch models back to their previous version.",
    "schema": "Print the JSON Schema of the manifest.",
    "sandbox": "Run a pretend Ollama server.",
    "version": "Show versions of ollamaops and the servers.",
    "completion": "Print a shell completion script.",
}
MODULES = {"import": "import_", "test": "verify"}
EPILOG = """
\b
Examples:
  ollamaops init                      write ./ollamaops.yaml
  ollamaops plan --sandbox            try it without a server
  ollamaops apply -y                  make the servers match
  ollamaops drift -o json             from cron: exit 2 when something differs
"""


class LazyCommands(Commands):
    """Knows the names of all commands, imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ollamaops.cli.{MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"ollamaops {__version__}")
        context.exit(exits.DONE)


@click.group(
    cls=LazyCommands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@shared_options
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """The desired-state engine for Ollama: declare models in git, apply them to your servers, detect drift."""
    context.obj, _ = take_shared(given)


offer_formats(
    cli,
    FORMATS,
    help_text="Format of the result on stdout (text); a command's help lists its own formats.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave the process with its exit code."""
    # a shell's `>&-` closes a stream: nobody wants to see it, and the next file opened would take its place
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    code = run(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream and not stream.closed:
                stream.flush()
        except OSError:  # nobody has read it to its end, or there is no room for it
            code = code or exits.ERROR
            # Python flushes once more at its end, and would then complain and end with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the program; returns its exit code. Prints every error for people, never a traceback for their mistakes."""
    try:
        code: object = cli.main(
            args=_with_sandbox_value(arguments), prog_name="ollamaops", standalone_mode=False
        )
        return code if type(code) is int else exits.DONE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        _print_usage_error(error)
        return exits.USAGE
    except (click.Abort, KeyboardInterrupt, Cancelled):
        click.echo("interrupted; run again to continue", err=True)
        return exit_code()
    except OllamaopsError as error:
        _print_error(error, no_color="--no-color" in arguments)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return exits.ERROR
    except OSError as error:
        return _report_failure(error, verbose="-vv" in arguments)
    except Exception as error:  # noqa: BLE001  a bug: say so in a line, and show where only when asked
        return _report_bug(error, verbose="-vv" in arguments)


def _report_failure(error: OSError, *, verbose: bool) -> int:
    """What the system refused and nobody expected it to: a full disk, a folder that may not be entered."""
    if verbose:
        traceback.print_exc()
    where = f"{error.filename}: " if error.filename else "cannot write: " if error.errno == ENOSPC else ""
    click.echo(f"error: {where}{(error.strerror or type(error).__name__).lower()}", err=True)
    return exits.ERROR


def _report_bug(error: Exception, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
    click.echo("hint: this is a bug in ollamaops: please report it with the output of -vv", err=True)
    return exits.ERROR


def _with_sandbox_value(arguments: Sequence[str]) -> list[str]:
    """`--sandbox` alone means its default folder; click would take the next word for its value."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    if "--sandbox" not in words[:end]:
        return words
    from ollamaops.cli.sandboxes import default_sandbox

    given = f"--sandbox={default_sandbox()}"
    return [given if word == "--sandbox" and i < end else word for i, word in enumerate(words)]


def _print_usage_error(error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    click.echo(f"error: {error.format_message()}", err=True)
    context = getattr(error, "ctx", None)
    if context is not None:
        click.echo(f"hint: {context.command_path} --help", err=True)


def _print_error(error: OllamaopsError, *, no_color: bool) -> None:
    from ollamaops.report.problem_text import render_error, render_problems
    from ollamaops.report.words import wants_color

    color = wants_color(sys.stderr, os.environ, no_color=no_color)
    text = (
        render_problems(error.problems, color=color)
        if isinstance(error, ManifestError)
        else render_error(error, color=color)
    )
    click.echo(text.rstrip("\n"), err=True)


__all__ = ["COMMANDS", "Shared", "cli", "main", "run"]

if __name__ == "__main__":
    main()
