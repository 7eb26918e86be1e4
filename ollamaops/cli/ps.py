"""`ollamaops ps`: what is in the memory of every host."""

from __future__ import annotations

from ollamaops.cli import exits
from ollamaops.cli.options import Shared, command_with_shared


@command_with_shared(name="ps", epilog="\b\nExamples:\n  ollamaops ps\n  ollamaops ps -l site=paris -o json")
def command(shared: Shared) -> int:
    """Show which models every host has loaded: size, share on the GPU, for how long, and whether they are stale.

    Stale is a model that was replaced after it was loaded. Models that are declared resident and are not in memory
    are listed as well. Exit 3 when a host could not be asked. Writes to no server.
    """
    from ollamaops.cli.context import load, open_fleet
    from ollamaops.cli.printing import color_and_width, emit
    from ollamaops.manifest.hosts import models_on
    from ollamaops.observe.loaded_models import Overview, look_at_loaded
    from ollamaops.report.loaded_text import loaded_to_json, render_loaded

    with open_fleet(shared, load(shared)) as fleet:
        declared = {host.name: models_on(host, fleet.manifest) for host in fleet.hosts}
        overview = Overview(cancel=fleet.cancel, jobs=shared.jobs or 8)
        hosts, unreached = look_at_loaded(overview, fleet.hosts, declared)
    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_loaded(hosts, unreached, color=color, width=width),
            "json": lambda: loaded_to_json(hosts, unreached),
        },
    )
    return exits.PARTIAL if unreached else exits.DONE
