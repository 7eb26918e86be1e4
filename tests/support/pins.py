"""Which installed releases are not those of constraints.txt; ends 0 when there are none."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<release>[^\s;]+)(?: *; *(?P<marker>.+))?")
# What every venv begins with, and we ourselves.
_UNPINNED = {"pip", "setuptools", "wheel", "ollamaops"}


def pins() -> Iterator[re.Match[str]]:
    """Each line of constraints.txt that is not a comment."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin = _PIN.fullmatch(line.strip())
            assert pin, f"not a pin: {line}"
            yield pin


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Release by normalized name."""
    return {normalized(found.metadata["Name"]): found.version for found in distributions()}


def unpinned() -> list[str]:
    """`name release`, for each installed release that constraints.txt does not name."""
    known: set[tuple[str, str]] = {(normalized(pin["name"]), pin["release"]) for pin in pins()}
    return sorted(
        f"{name} {release}"
        for name, release in installed().items()
        if name not in _UNPINNED and (name, release) not in known
    )


if __name__ == "__main__":
    others = unpinned()
    print("not as in constraints.txt:", ", ".join(others) or "nothing")
    sys.exit(bool(others))
