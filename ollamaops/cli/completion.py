"""`ollamaops completion SHELL`: the script that makes the shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ollamaops import exits
from ollamaops.cli.main import cli
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import write


@command_with_shared(
    name="completion",
    formats=("text",),
    epilog='\b\nExamples:\n  eval "$(ollamaops completion bash)"\n  ollamaops completion zsh > ~/.zfunc/_ollamaops',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shared: Shared, shell: str) -> int:
    """Print a completion script for SHELL."""

    found = get_completion_class(shell)
    assert found is not None
    if shell == "bash":
        # click's class would start bash to learn its version; the script alone is wanted here
        template = found.source_template
        names = {"complete_func": "_ollamaops_completion", "complete_var": "_OLLAMAOPS_COMPLETE"}
        write(template % (names | {"prog_name": "ollamaops"}))
    else:
        write(found(cli, {}, "ollamaops", "_OLLAMAOPS_COMPLETE").source())
    return exits.DONE
