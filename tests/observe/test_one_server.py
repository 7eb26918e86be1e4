"""Several servers behind one address, and one server under two names: noticed, said, and never called as declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from live_host import BASE, LiveHost, a_build, a_host, a_model
from one_address import NEEDS_NGINX, connection_by_connection, request_by_request
from patience import PATIENCE_S
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ollamaops import exits
from ollamaops.changes import apply
from ollamaops.engine import Engine, open_run
from ollamaops.manifest.types import HostSpec, Manifest, ModelSpec, Policy
from ollamaops.observe.run import RunOptions
from ollamaops.plan.results import code_of_drift, code_of_plan
from ollamaops.sandbox.app import App
from ollamaops.sandbox.server import Sandbox
from ollamaops.state.ledger import Ledger

BALANCERS = [pytest.param("nginx", marks=NEEDS_NGINX), "tcp"]


@contextmanager
def engine(folder: Path, hosts: Mapping[str, str], *models: ModelSpec) -> Iterator[Engine]:
    """An open run over hosts that are given as name → URL."""
    specs = tuple(HostSpec(name=name, url=url) for name, url in hosts.items())
    manifest = Manifest(root=folder, files=(), hosts=specs, models=models, absent=(), policy=Policy())
    options = RunOptions(costs=False)
    with open_run(manifest, Ledger(folder / "state"), options=options) as opened:
        yield opened


def planned(folder: Path, url: str, *models: ModelSpec) -> tuple[int, str]:
    with engine(folder, {"gpu": url}, *models) as opened:
        plan = opened.plan()
    assert not plan.unreached, plan.unreached
    return code_of_plan(plan), "; ".join(refusal.message for refusal in plan.refusals)


@contextmanager
def behind(balancer: str, folder: Path, *hosts: LiveHost) -> Iterator[str]:
    urls = [host.sandbox.url for host in hosts]
    with (
        request_by_request(folder / "nginx", *urls)
        if balancer == "nginx"
        else connection_by_connection(*urls)
    ) as url:
        yield url


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        ("0.5.7", "0.5.7", "is another one in each answer"),  # the same content, pulled twice
        ("0.12.11", "0.33.0-rc2", ""),
    ],
)
def test_several_servers_at_one_address_are_refused_before_a_change(
    balancer: str, one: str, two: str, says: str, tmp_path: Path
) -> None:
    with a_host(one) as first, a_host(two) as second, behind(balancer, tmp_path, first, second) as url:
        for host in (first, second):
            host.stranger.pull(BASE)
        wanted = (a_model(BASE), a_model("bot", a_build(BASE, system="s")))
        code, message = planned(tmp_path, url, *wanted)
        assert code == exits.REFUSED
        assert "several servers answer at this address" in message
        assert says in message
        assert {*first.stranger.tags(), *second.stranger.tags()} == {BASE}


@NEEDS_NGINX
def test_empty_servers_of_different_versions_are_told_apart_by_them(tmp_path: Path) -> None:
    with a_host("0.5.7") as one, a_host("0.12.11") as two, behind("nginx", tmp_path, one, two) as url:
        code, message = planned(tmp_path, url, a_model(BASE))
        assert (code, "Ollama 0.5.7" in message, "Ollama 0.12.11" in message) == (exits.REFUSED, True, True)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_equal_empty_servers_are_told_apart_once_one_of_them_was_changed(
    balancer: str, tmp_path: Path, hurry: None
) -> None:
    with a_host("0.12.11") as one, a_host("0.12.11") as two, behind(balancer, tmp_path, one, two) as url:
        with engine(tmp_path, {"gpu": url}, a_model(BASE)) as opened:
            plan = opened.plan()
            assert plan.refusals == ()
            report = apply(opened, plan, command="apply")
        assert report.exit_code == exits.REFUSED
        assert not report.is_as_declared
        assert any("several servers" in note.message for note in report.hosts[0].notes)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_one_server_behind_a_balancer_is_like_one_without(balancer: str, tmp_path: Path) -> None:
    with a_host("0.12.11") as host, behind(balancer, tmp_path, host) as url:
        with engine(tmp_path, {"gpu": url}, a_model(BASE)) as opened:
            report = apply(opened, opened.plan(), command="apply")
        assert (report.exit_code, report.is_as_declared) == (exits.DONE, True)


def test_a_steady_host_costs_two_requests_and_a_change_three_more(newest: LiveHost) -> None:
    newest.apply([a_model(BASE)])
    newest.plan([a_model(BASE)])
    assert newest.requests_sent == 2
    newest.proxy.seen.clear()
    newest.plan([a_model(BASE), a_model("bot", a_build(BASE, system="s"))])
    paths = [request.path for request in newest.proxy.seen]
    assert paths.count("/api/tags") == 4


def test_a_router_that_calls_itself_one_is_never_as_declared(tmp_path: Path) -> None:
    def wrap(app: App) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            async def mark(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-olla-endpoint", b"gpu-7")]
                await send(message)

            await app(scope, receive, mark)

        return call

    with Sandbox(tmp_path / "models", faults=wrap) as sandbox:
        requests.post(f"{sandbox.url}/api/pull", json={"model": BASE}, timeout=PATIENCE_S)
        with engine(tmp_path, {"gpu": sandbox.url}, a_model(BASE)) as opened:
            assert code_of_drift(opened.drift()) == exits.PARTIAL
        code, message = planned(
            tmp_path, sandbox.url, a_model(BASE), a_model("bot", a_build(BASE, system="s"))
        )
        assert (code, "the router Olla answers" in message) == (exits.REFUSED, True)


@pytest.mark.parametrize("version", ["0.5.7", "0.33.0-rc2"])
def test_one_server_with_two_entries_is_named_and_not_as_declared(host: LiveHost, tmp_path: Path) -> None:
    """Each entry has its own idea of the model, so each apply undid the other's, and ended 0."""
    url = host.sandbox.url
    entries = {"one": url, "two": url.replace("127.0.0.1", "localhost")}
    host.stranger.pull(BASE)
    models = [a_model(BASE)]
    with engine(tmp_path, entries, *models, a_model("bot", a_build(BASE, system="s"))) as opened:
        report = apply(opened, opened.plan(), command="apply")
    assert report.exit_code == exits.PARTIAL
    for own, other in zip(report.hosts, reversed(report.hosts), strict=True):
        assert any(f"the server of '{other.host}' too" in note.message for note in own.notes)


def test_two_servers_that_are_changed_in_one_run_stay_two(tmp_path: Path) -> None:
    with a_host("0.12.11") as one, a_host("0.12.11") as two:
        entries = {"one": one.sandbox.url, "two": two.sandbox.url}
        with engine(tmp_path, entries, a_model(BASE)) as opened:
            report = apply(opened, opened.plan(), command="apply")
        assert (report.exit_code, report.is_as_declared) == (exits.DONE, True)
