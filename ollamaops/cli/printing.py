"""stdout is data: one place that writes a command's result in the asked format."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from ollamaops.cli.options import Shared
from ollamaops.errors import UsageError
from ollamaops.files.output import write_output
from ollamaops.plan.codec import Json
from ollamaops.report.json_output import render_json
from ollamaops.report.words import fit_encoding, wants_color

Writer = Callable[[], object]


def color_and_width(shared: Shared) -> tuple[bool, int | None]:
    """Whether to color stdout, and how wide a terminal it is (None: not a terminal, never wrap)."""
    color = wants_color(sys.stdout, os.environ, no_color=shared.no_color)
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
    return color, width


def emit(shared: Shared, writers: Mapping[str, Writer]) -> None:
    """Write the result with the writer of -o; UsageError if the command has no such format."""
    wanted = shared.output or "text"
    if wanted not in writers:
        raise UsageError(f"-o {wanted} is not possible here", hint=f"use -o {' or '.join(writers)}")
    result = writers[wanted]()
    write(result if isinstance(result, str) else _as_json(result))


def _as_json(document: object) -> str:

    return render_json(cast("Json", document))


def write(text: str) -> None:
    """Text to stdout, ending in one newline; nothing for an empty text."""
    if text:
        sys.stdout.write(fit_encoding(text.rstrip("\n") + "\n", sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()


def write_file(path: str, text: str) -> None:
    """Text to a file that an option names. UsageError when that cannot be done."""
    try:
        write_output(Path(path), text)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {(error.strerror or 'input/output error').lower()}"
        ) from error
