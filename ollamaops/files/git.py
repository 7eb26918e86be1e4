"""The git commit that a folder was checked out from, read without running anything that its repository configures.

A repository is somebody's input: its config can name programs for git to run (a file monitor, filters, hooks, an ssh
command), and a folder in it may pretend to be a repository of its own. So git is asked only for what it stores, and
the files are compared here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

TIMEOUT_S = 5
LARGEST_COMPARED_BYTES = 4 << 20  # as large as a manifest may be; weights are recorded by their digests

_SAFE = (
    *("-c", "safe.bareRepository=explicit"),  # a folder that looks like a bare repository is none
    *("-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
    *("-c", "protocol.allow=never"),  # an object that is missing is not fetched from where the config says
)
_LINK, _SUBMODULE = "120000", "160000"


def commit_of(folder: Path) -> str:
    """The commit of a folder, 40 (or 64) hex digits, with `-dirty` when tracked files below it differ; "" outside of
    a repository.

    Compared are files of up to 4 MiB and links; line ends that git converted make no difference.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
    if not commit:
        return ""
    listing = _git(folder, "ls-tree", "-r", "-l", "-z", "HEAD")
    is_clean = all(_is_as_committed(folder, line) for line in listing.split("\0") if line)
    return commit if is_clean else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; "" if it fails, takes too long or is not there."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603  no shell reads it
            ["git", "--no-pager", "--no-replace-objects", *_SAFE, *arguments],  # noqa: S607  the user's own git
            cwd=folder,
            env={**environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return os.fsdecode(done.stdout) if done.returncode == 0 else ""


def _is_as_committed(folder: Path, line: str) -> bool:
    """Whether a file is as a line of `ls-tree` says: mode, type, object, size, then its path below the folder."""
    facts, _, name = line.partition("\t")
    mode, _, expected, size = facts.split()
    if mode == _SUBMODULE:
        return True
    path = folder / name
    try:
        if mode == _LINK:
            return _object_id(os.fsencode(path.readlink()), expected) == expected
        if int(size) > LARGEST_COMPARED_BYTES or path.stat().st_size > LARGEST_COMPARED_BYTES:
            return True
        data = path.read_bytes()
    except OSError:
        return False
    return expected in (_object_id(data, expected), _object_id(data.replace(b"\r\n", b"\n"), expected))


def _object_id(data: bytes, like: str) -> str:
    """What git calls a file with these bytes. Long ids are SHA-256."""
    kind = hashlib.sha1 if len(like) == 40 else hashlib.sha256
    return kind(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
