"""What tests get: golden files, live hosts, and an environment that does not depend on who runs the tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from breadth import mark_what_is_not_its_turn
from golden import Golden
from hypothesis import settings
from live_host import LiveHost, a_host
from properties import QUICK, SOAK

from ollamaops.http.cancel import CancelToken

settings.register_profile("quick", QUICK)
settings.register_profile("soak", SOAK)
settings.load_profile("quick")

# Set by terminals, CI systems and users of Ollama; each of them would change what our code does.
FOREIGN_VARIABLES = (
    "CI",
    "CLICOLOR_FORCE",
    "COLORTERM",
    "COLUMNS",
    "BUILDKITE_PULL_REQUEST_REPO",
    "CHANGE_FORK",
    "CI_MERGE_REQUEST_SOURCE_PROJECT_ID",
    "CIRCLE_PR_REPONAME",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "GITHUB_EVENT_NAME",
    "LINES",
    "NO_COLOR",
    "OLLAMA_HOST",
    "OLLAMA_MODELS",
    "SYSTEM_PULLREQUEST_ISFORK",
    "TRAVIS_PULL_REQUEST_SLUG",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden/ anew from what the code says now"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_what_is_not_its_turn(items)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    mine = tmp_path_factory.getbasetemp() / f"mine-{uuid.uuid4().hex}"
    monkeypatch.setenv("OLLAMAOPS_STATE_DIR", str(mine / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine / "cache"))
    for name in FOREIGN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program waits before it tries something again, it waits a fraction of the time."""
    wait = CancelToken.wait
    monkeypatch.setattr(
        CancelToken, "wait", lambda token, timeout=None: wait(token, timeout and timeout / 25)
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares a whole report with a file of tests/golden/; `--update-golden` writes the file instead."""
    return Golden(Path(__file__).parent / "golden", update=bool(request.config.getoption("--update-golden")))


@pytest.fixture
def host(version: str) -> Iterator[LiveHost]:
    """A sandbox as the version that the test is about."""
    with a_host(version) as running:
        yield running


@pytest.fixture
def newest() -> Iterator[LiveHost]:
    """A sandbox as the newest version."""
    with a_host() as running:
        yield running
