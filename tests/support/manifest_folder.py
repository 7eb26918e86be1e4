"""A folder of manifests for one test: written from a case of tests/cases/manifest/, loaded, its problems as text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict

from ollamaops.errors import ManifestError, Problem
from ollamaops.manifest.load import load_manifest
from ollamaops.manifest.types import Manifest

WEIGHTS = Path(__file__).parents[1] / "contract" / "weights"
GOOD = Path(__file__).parents[1] / "cases" / "manifest" / "good"
LONG_FORM = (GOOD / "long-form.yaml").read_text()
EVERYTHING_ELSE = (GOOD / "everything-else.yaml").read_text()


class Case(TypedDict, total=False):
    """One case: files by path (`bytes`: in hex, or a count of zeros), and what is said of them."""

    name: str
    files: dict[str, str]
    bytes: dict[str, str | int]
    weights: list[str]
    paths: list[str]
    env: str
    environ: dict[str, str]
    says: str


def write_folder(folder: Path, case: Case) -> None:
    """Everything that the case wants to find on the disk."""
    for name, text in case.get("files", {}).items():
        write(folder / name, text.encode())
    for name, data in case.get("bytes", {}).items():
        write(folder / name, bytes(data) if isinstance(data, int) else bytes.fromhex(data))
    for name in case.get("weights", []):
        copy_weights(folder, name)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def copy_weights(folder: Path, name: str) -> Path:
    """A file or folder of tests/contract/weights, copied into `folder`."""
    source, target = WEIGHTS / name, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def load_text(
    folder: Path,
    text: str,
    *,
    environment: str | None = None,
    environ: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    public: Collection[str] = (),
) -> Manifest:
    """The manifest in `text`, written to m.yaml in the folder."""
    write(folder / "m.yaml", text.encode())
    return load_manifest(
        [folder / "m.yaml"],
        environment=environment,
        environ=environ or {},
        allow_outside=allow_outside,
        public=public,
    )


def problems_of(case: Case, folder: Path) -> str:
    """What loading the case complains of, one problem a line with its hint below; "" if nothing."""
    write_folder(folder, case)
    before = Path.cwd()
    os.chdir(folder)
    try:
        load_manifest(
            case.get("paths", ["m.yaml"]), environment=case.get("env"), environ=case.get("environ", {})
        )
    except ManifestError as error:
        return "".join(map(as_text, error.problems)).replace(str(folder), "<folder>")
    finally:
        os.chdir(before)
    return ""


def as_text(problem: Problem) -> str:
    hint = f"    {problem.hint}\n" if problem.hint else ""
    return f"{problem.place}: {problem.message}\n{hint}"
