"""The audit log: one JSON line per action that ended, in `audit.jsonl` in the state folder, never rewritten.

A line is written with one call, so that lines of several processes never mix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ollamaops.errors import StateError
from ollamaops.files.output import open_private

FILE_NAME = "audit.jsonl"


class AuditLog:
    """The log in `folder`, made with the first line, for this user only. Safe from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def append(self, entry: Mapping[str, object]) -> None:
        """Write one line, ASCII. StateError if the file cannot be written; TypeError for what is not JSON."""
        line = (json.dumps(entry) + "\n").encode("ascii")
        try:
            descriptor = open_private(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                written = os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unusable((error.strerror or str(error)).lower()) from error
        if written != len(line):
            raise self._unusable(f"only {written} of {len(line)} bytes were written")

    def _unusable(self, why: str) -> StateError:
        return StateError(
            f"{self.path}: the audit log cannot be written: {why}",
            hint="free some space, or choose another folder with --state-dir",
        )
