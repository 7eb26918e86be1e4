"""`ollamaops schema`: the manifest's JSON Schema, for editors."""

from __future__ import annotations

import json

from ollamaops import exits
from ollamaops.cli.options import Shared, command_with_shared
from ollamaops.cli.printing import write
from ollamaops.manifest.schema import manifest_schema


@command_with_shared(
    name="schema",
    epilog="\b\nExamples:\n  ollamaops schema > ollamaops.schema.json   # then point your editor at it",
)
def command(shared: Shared) -> int:
    """Print the JSON Schema (draft 2020-12) of the manifest."""

    write(json.dumps(manifest_schema(), indent=2, ensure_ascii=False))
    return exits.DONE
