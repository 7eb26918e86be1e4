"""constraints.txt pins all that the project installs, as pyproject.toml allows, and does not say from where."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from pins import CONSTRAINTS, normalized, pins

ROOT = Path(__file__).parents[2]


def pinned() -> dict[str, list[str]]:
    """Releases by name; several where they depend on the Python."""
    releases: dict[str, list[str]] = defaultdict(list)
    for pin in pins():
        releases[normalized(pin["name"])].append(pin["release"])
    return releases


def declared() -> list[Requirement]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["project"]["optional-dependencies"]
    lines = [
        *document["build-system"]["requires"],
        *document["project"]["dependencies"],
        *extras["sandbox"],
        *extras["test"],
    ]
    return [wanted for line in lines if (wanted := Requirement(line)).name != "ollamaops"]


def test_each_requirement_is_pinned_to_a_release_that_it_allows() -> None:
    known = pinned()
    assert [
        f"{wanted}: pinned to {known.get(normalized(wanted.name))}; run make constraints"
        for wanted in declared()
        if not (releases := known.get(normalized(wanted.name), []))
        or not all(map(wanted.specifier.contains, releases))
    ] == []


def test_whatever_a_pinned_release_needs_is_pinned_too() -> None:
    known = pinned()
    missing = {
        f"{found.metadata['Name']} needs {line}; run make constraints"
        for found in distributions()
        if found.version in known.get(normalized(found.metadata["Name"]), [])
        for line in found.requires or ()
        if ((wanted := Requirement(line)).marker is None or wanted.marker.evaluate({"extra": ""}))
        and normalized(wanted.name) not in known
    }
    assert missing == set()


def test_the_pins_hold_for_every_machine() -> None:
    text = CONSTRAINTS.read_text()
    assert not [line for line in text.splitlines() if "/" in line or "@" in line]
    assert {"pytest", "click", "hatchling", "uvicorn"} <= pinned().keys()
