"""`ollamaops ps`: which models every host has loaded."""

from __future__ import annotations

from msgspec.structs import replace

from ollamaops import exits
from ollamaops.cli.context import open_engine
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.report.loaded_text import loaded_to_json, render_loaded


@command_with_shared(name="ps", epilog="\b\nExamples:\n  ollamaops ps\n  ollamaops ps -l site=paris -o json")
def command(shared: Shared) -> int:
    """Show which models every host has loaded: size, share on the GPU, for how long, and whether they are stale.

    Stale is a model that was replaced after it was loaded. Models that are declared resident and are not in memory
    are listed as well. Exit 3 when a host could not be asked. Writes to no server.
    """

    with open_engine(replace(shared, targets=())) as engine:
        hosts, unreached = engine.loaded()
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_loaded(hosts, unreached, color=color, width=width),
            "json": lambda: loaded_to_json(hosts, unreached),
        },
    )
    return exits.PARTIAL if unreached else exits.DONE
