"""Whether this run trusts whoever wrote its manifest: `--untrusted`, `--trusted`, else what CI says of the run.

A manifest from the pull request of a fork may be anybody's, and CI may have secrets that are nobody else's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from ollamaops.cli.options import Shared
from ollamaops.errors import RefusedError, UsageError
from ollamaops.manifest.load import load_base
from ollamaops.manifest.trust import Untrusted

_GITHUB_EVENTS = ("pull_request", "pull_request_target", "pull_request_review", "workflow_run")
_ONLY_LOOKS = "it only looks, unless it works on pretend servers: --sandbox"


def is_untrusted(shared: Shared, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether strangers wrote this run's manifest: nothing may be run because of it, and no secret sent."""
    return shared.trust == "untrusted" or (shared.trust is None and find_fork(environ) is not None)


def limits_of(shared: Shared, *, asks_hosts: bool = True) -> Untrusted | None:
    """What the manifest of this run may use; None where it is trusted. UsageError; ManifestError for --hosts-from."""
    if not is_untrusted(shared):
        return None
    if shared.trust is None:
        click.echo(f"note: --untrusted, because {find_fork(os.environ)}; --trusted says otherwise", err=True)
    if shared.allow_outside:
        raise UsageError("--allow-outside is not for a manifest that is not trusted", hint="leave it out")
    base = load_base(shared.hosts_from, environment=shared.environment) if shared.hosts_from else None
    return Untrusted(
        variables=frozenset(shared.allow_env), base=base, asks_hosts=asks_hosts and not shared.sandbox
    )


def require_trusted(shared: Shared) -> None:
    """RefusedError where a run would change servers, or make them work, for a manifest that is not trusted."""
    if is_untrusted(shared) and not shared.sandbox:
        raise RefusedError("this run is --untrusted, and would make servers work", hint=_ONLY_LOOKS)


def find_fork(environ: Mapping[str, str]) -> str | None:
    """Why CI's variables say that this run is for the pull request of a fork; None where they do not.

    As GitHub Actions, GitLab, CircleCI, Azure Pipelines, Buildkite, Travis and Jenkins document them.
    """
    if environ.get("GITHUB_EVENT_NAME") in _GITHUB_EVENTS:
        return _fork_on_github(environ.get("GITHUB_EVENT_PATH", ""))
    get = environ.get
    pairs = {
        "GitLab": (get("CI_MERGE_REQUEST_SOURCE_PROJECT_ID"), get("CI_PROJECT_ID")),
        "Travis": (get("TRAVIS_PULL_REQUEST_SLUG"), get("TRAVIS_REPO_SLUG")),
        "Buildkite": (get("BUILDKITE_PULL_REQUEST_REPO"), get("BUILDKITE_REPO")),
    }
    for name, (source, own) in pairs.items():
        if source and source != own:
            return f"{name} says that this is a pull request from {_cleaned(source)}"
    marks = {
        "CircleCI": get("CIRCLE_PR_REPONAME"),
        "Jenkins": get("CHANGE_FORK"),
        "Azure Pipelines": get("SYSTEM_PULLREQUEST_ISFORK", "").lower() == "true",
    }
    for name, mark in marks.items():
        if mark:
            return f"{name} says that this is the pull request of a fork"
    return None


def _fork_on_github(path: str) -> str | None:
    """What the event says: the head's repository is another, or gone. An event that cannot be read is a fork's."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        event = json.loads(Path(path).read_text(encoding="utf-8"))
        if "workflow_run" in event:
            head, own = event["workflow_run"]["head_repository"], event["repository"]
        else:
            head, own = event["pull_request"]["head"]["repo"], event["pull_request"]["base"]["repo"]
        if head is None:
            return "GitHub Actions says that this is the pull request of a fork that is gone"
        if head["full_name"] == own["full_name"]:
            return None
        return f"GitHub Actions says that this is a pull request from {_cleaned(head['full_name'])}"
    return "GitHub Actions does not say whose pull request this is"


def _cleaned(text: str) -> str:
    return "".join(sign if sign.isprintable() else "�" for sign in text)[:200]
