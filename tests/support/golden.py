"""Whole reports, kept as files: `golden("plan.txt", text)` holds the text against tests/golden/plan.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Golden:
    """Compares with, or with `update` writes, the files of one folder."""

    folder: Path
    update: bool = False

    def __call__(self, name: str, text: str) -> None:
        """AssertionError, with the difference, unless `text` is what the file `name` holds."""
        path = self.folder / name
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
            return
        assert path.is_file(), f"{path} is not there: run pytest --update-golden and read what it wrote"
        assert text == path.read_bytes().decode("utf-8"), f"{path.name} differs: see --update-golden"
