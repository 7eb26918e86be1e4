"""Carrying out single actions: what is looked at before and after, what is told, what is remembered."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from breadth import in_turn
from live_host import (
    BASE,
    VERSIONS,
    WEIGHTS,
    LiveHost,
    NoWaitToken,
    a_build,
    a_copy,
    a_host,
    a_model,
    an_absence,
    assert_converged,
    name,
)
from msgspec.structs import replace
from patience import PATIENCE_S
from scripted_host import Asked, Script, ScriptedHost, Wire, always, routes, streaming
from session_actions import DIGEST, OTHER, at, copy, create, delete, pull, push, say, tagged, upload

from ollamaops.engine import plan_tasks
from ollamaops.errors import AccessDenied, StateError
from ollamaops.events import (
    Interrupted,
    Refused,
    Succeeded,
)
from ollamaops.names import Digest
from ollamaops.observe.contents import REPAIR_HINT
from ollamaops.observe.host import observe_all
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import (
    Action,
    Blob,
    Fact,
    UploadBlob,
)
from ollamaops.plan.versions import previous_of
from ollamaops.registry.client import RegistryClient
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import ModelRecord

pytestmark = in_turn("version")

every_version = pytest.mark.parametrize("version", VERSIONS)


# a full disk


@every_version
def test_a_full_disk_is_never_tried_again_and_names_what_may_go(host: LiveHost, tmp_path: Path) -> None:
    stranger = host.stranger
    stranger.pull("all-minilm")
    stranger.pull("smollm2:135m")
    for spare in ("one", "two", "three"):
        stranger.copy("smollm2:135m", spare)
    store = host.sandbox.store
    with at(host.sandbox.url, tmp_path, spare=("all-minilm", "one", "two", "gone")) as session:
        store.disk_full = True
        for action in (pull(BASE), upload("tiny-a.gguf")):
            outcome = session.fail(action)
            assert "no space left on device" in outcome.error
            assert str(outcome.hint).startswith("free space on the host; not declared: ")
            assert {"all-minilm:latest", "one:latest", "two:latest"} == {
                part.split(" ")[0] for part in str(outcome.hint).partition("declared: ")[2].split(", ")
            }
            assert "three:latest" not in str(outcome.hint)
        assert session.retries == 0
        store.disk_full = False


@pytest.mark.parametrize("version", ["0.33.0-rc2"])
def test_a_full_disk_without_anything_spare_says_what_helps(host: LiveHost, tmp_path: Path) -> None:
    host.sandbox.store.disk_full = True
    with at(host.sandbox.url, tmp_path) as session:
        assert "delete models, or restart the server" in str(session.fail(upload("tiny-a.gguf")).hint)
    host.sandbox.store.disk_full = False


def test_a_full_disk_on_a_host_that_says_nothing_more_keeps_its_hint(tmp_path: Path) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            wire.answer(404)
        elif asked.path.startswith("/api/blobs/"):
            wire.json({"error": "write: no space left on device"}, 500)
        elif asked.path == "/api/version":
            wire.json({"version": "0.33.0"})
        else:
            wire.json({"error": "no"}, 403)

    with ScriptedHost(script) as server, at(server.url, tmp_path, spare=("one",)) as session:
        assert "free space on the host" in str(session.fail(upload("tiny-a.gguf")).hint)


# names


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "0.3.4"])
def test_a_model_that_the_host_spells_in_another_case_is_the_same_model(host: LiveHost) -> None:
    """Before 0.5.2 it is another one, beside which nothing is made: cases/plan/names.yaml."""
    stranger = host.stranger
    stranger.pull(BASE)
    stranger.create("Bot:V1", BASE, system="old")
    stranger.copy(BASE, "Alias")
    stranger.copy(BASE, "Gone")
    models = [
        a_model(BASE),
        a_model("bot:v1", a_build(BASE, system="new")),
        a_model("child", a_build("BOT:v1", parameters={"top_k": 3})),
        a_model("alias", a_copy("bot:V1")),
    ]
    assert_converged(host, host.apply(models, [an_absence("gone")]))
    tags = stranger.tags()
    assert tags.keys() == {BASE, "Bot:V1", "child:latest", "Alias:latest"}
    assert tags["Alias:latest"] == tags["Bot:V1"]
    assert stranger.show("Bot:V1")["system"] == "new"
    assert host.plan(models, [an_absence("gone")]).actions == ()


@pytest.mark.parametrize("version", ["0.3.4", "0.33.0-rc2"])
def test_a_pull_over_a_name_in_another_case_lands_on_it(host: LiveHost, tmp_path: Path) -> None:
    host.stranger.pull("all-minilm")
    host.stranger.copy("all-minilm", "LLAMA3.2:3B")
    with at(host.sandbox.url, tmp_path) as session:
        outcome = session.do(pull(BASE))
    tags = host.stranger.tags()
    assert tags.keys() == {"all-minilm:latest", "LLAMA3.2:3B"}
    assert isinstance(outcome, Succeeded) is (tags["LLAMA3.2:3B"] != tags["all-minilm:latest"])


# looks before and after


def test_what_was_changed_in_this_run_is_no_surprise(newest: LiveHost, tmp_path: Path) -> None:
    newest.stranger.pull(BASE)
    expects = (Fact(name(BASE), DIGEST),)
    with at(newest.sandbox.url, tmp_path) as session:
        surprised = session.do(replace(copy(BASE, "chat"), expects=expects))
        assert isinstance(surprised, Refused)
        assert f"it was {DIGEST[:12]}, now it is" in surprised.because
        session.host.touched.add(name(BASE))
        assert isinstance(session.do(replace(copy(BASE, "chat"), expects=expects)), Succeeded)


@pytest.mark.parametrize(
    "action, message",
    [
        (copy("none", "chat"), "gpu-1: no model 'none:latest' to copy to 'chat:latest'"),
        (create("bot", base=name("none")), "gpu-1: no model 'none:latest' to make 'bot:latest' from"),
        (push("none", "me/bot"), "gpu-1: no model 'none:latest' to push to 'me/bot:latest'"),
    ],
    ids=["copy", "create", "push"],
)
def test_what_is_needed_and_missing_is_named_with_the_way_out(
    newest: LiveHost, tmp_path: Path, action: Action, message: str
) -> None:
    with at(newest.sandbox.url, tmp_path) as session:
        outcome = session.fail(action)
    assert (outcome.error, outcome.hint) == (message, "pull it first, or add it to models:")


def test_a_blob_that_nobody_can_send_again_needs_a_new_plan(newest: LiveHost, tmp_path: Path) -> None:
    with at(newest.sandbox.url, tmp_path) as session:
        outcome = session.fail(create("legal", files=(Blob("w.gguf", Digest(DIGEST)),)))
    assert outcome.error == f"gpu-1: the blob {DIGEST[:12]} of 'legal:latest' is not there"
    assert outcome.hint == "plan again"


def test_a_deletion_of_what_is_not_there_is_done_and_changed_nothing(
    newest: LiveHost, tmp_path: Path
) -> None:
    with at(newest.sandbox.url, tmp_path) as session:
        outcome = session.do(delete("none"))
    assert isinstance(outcome, Succeeded)
    assert not outcome.changed


def test_a_pull_whose_bytes_broke_on_the_way_is_begun_anew(tmp_path: Path) -> None:
    """The server has removed the broken file by then, so pulling again brings another one."""
    broken = {"error": "digest mismatch, file must be downloaded again: want sha256:1, got sha256:2"}
    answers = iter([({"status": "verifying sha256 digest"}, broken), ({"status": "success"},)])
    table: dict[str, Script] = {
        "/api/tags": tagged({"bot:latest": DIGEST}),
        "/api/pull": lambda asked, wire: wire.ndjson(next(answers)),
        "/api/show": always({"modelfile": "FROM x", "model_info": {}}),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        assert isinstance(session.do(pull("bot")), Succeeded)
        assert session.retries == 1


class Meeting:
    """A server that answers one request when a deletion comes, or after a while, and notes what ended when."""

    def __init__(self, slow: str, version: str) -> None:
        self.slow, self.version = slow, version
        self.began, self.deleted = threading.Event(), threading.Event()
        self.order: list[str] = []

    def __call__(self, asked: Asked, wire: Wire) -> None:
        if asked.path == self.slow:
            self.began.set()
            self.deleted.wait(0.3)
            self.order.append(self.slow)
        elif asked.path == "/api/delete":
            self.order.append(asked.path)
            self.deleted.set()
        names = ("bot", "bot:latest-ollamaops-previous", "base", "made")
        routes(
            {
                "/api/tags": tagged(dict.fromkeys(names, DIGEST)),
                "/api/pull": streaming({"status": "success"}),
                "/api/create": streaming({"status": "success"}),
                "/api/show": always({"modelfile": "FROM x", "model_info": {}}),
                "/api/delete": lambda asked, wire: wire.answer(200),
                "/api/copy": lambda asked, wire: wire.answer(200),
            },
            self.version,
        )(asked, wire)

    def hold(self, tmp_path: Path, first: Action, then: Action) -> list[str]:
        """Do the first until the server has its request, and the other beside it; what ended in which order."""
        with ScriptedHost(self) as server, at(server.url, tmp_path) as session, ThreadPoolExecutor(1) as pool:
            doing = pool.submit(session.do, first)
            assert self.began.wait(PATIENCE_S)
            session.do(then)
            assert isinstance(doing.result(), Succeeded)
        return self.order


KEPT = replace(pull("bot"), pin=(DIGEST,))


def test_what_a_pull_has_replaced_is_not_deleted_while_something_is_made(tmp_path: Path) -> None:
    """Servers lock nothing: a deletion would take layers that the create has just found there."""
    order = Meeting("/api/create", "0.33.0").hold(tmp_path, create("made", base=name("base")), KEPT)
    assert order == ["/api/create", "/api/delete"]


@pytest.mark.parametrize(
    ("version", "order"),
    [("0.5.12", ["/api/delete", "/api/pull"]), ("0.5.13", ["/api/pull", "/api/delete"])],
)
def test_where_a_deletion_removes_all_that_is_unused_it_waits_for_downloads(
    version: str, order: list[str], tmp_path: Path
) -> None:
    assert Meeting("/api/pull", version).hold(tmp_path, pull("bot"), delete("base"))[:2] == order


def test_a_pull_that_brought_nothing_new_says_so(newest: LiveHost, tmp_path: Path) -> None:
    with at(newest.sandbox.url, tmp_path) as session:
        outcomes = [session.do(pull(BASE)) for _ in range(2)]
    assert [isinstance(each, Succeeded) and each.changed for each in outcomes] == [True, False]


def test_a_stop_in_the_middle_is_an_interruption(newest: LiveHost, tmp_path: Path) -> None:
    with at(newest.sandbox.url, tmp_path) as session:
        newest.proxy.before = lambda request: session.host.cancel.cancel() if "pull" in request.path else None
        assert session.do(pull(BASE)) == Interrupted(started=True)


def test_a_stop_while_a_missing_model_is_looked_for_is_an_interruption(
    newest: LiveHost, tmp_path: Path
) -> None:
    class Impatient(NoWaitToken):
        def wait(self, timeout: float | None = None) -> bool:
            self.cancel()
            return True

    with at(newest.sandbox.url, tmp_path) as session:
        session.change_run(cancel=Impatient())
        assert session.do(copy("none", "chat")) == Interrupted(started=True)


LIES: dict[str, tuple[dict[str, Script], Action, str]] = {
    "a pull that brings nothing": (
        {"/api/tags": tagged({}), "/api/pull": streaming({"status": "success"})},
        pull("bot"),
        "gpu-1: 'bot:latest' is not there, although the server reported success",
    ),
    "a copy that is another model": (
        {"/api/tags": tagged({"bot:latest": DIGEST, "chat:latest": OTHER}), "/api/copy": say(200)},
        copy("bot", "chat"),
        f"gpu-1: 'chat:latest' is {OTHER[:12]} after it was copied from {DIGEST[:12]}",
    ),
    "a deletion that leaves the model": (
        {"/api/tags": tagged({"bot:latest": DIGEST}), "/api/delete": lambda asked, wire: wire.answer(200)},
        delete("bot"),
        "gpu-1: 'bot:latest' is still there, although the server reported success",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_success_is_only_believed_when_it_can_be_seen(tmp_path: Path, lie: str) -> None:
    table, action, message = LIES[lie]
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        assert session.fail(action).error == message
        assert session.host.ledger.load(server.url) == {}


def test_a_push_of_what_is_no_copy_any_more_is_refused(tmp_path: Path) -> None:
    table = {"/api/tags": tagged({"bot:latest": DIGEST, "me/bot:latest": OTHER})}
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        outcome = session.do(push("bot", "me/bot"))
    assert outcome == Refused(
        because=f"'me/bot:latest' is {OTHER[:12]} and no copy of 'bot:latest' ({DIGEST[:12]}) any more",
        hint="plan again",
    )


def test_a_server_that_can_show_no_model_at_all_is_ill_and_loses_none(tmp_path: Path) -> None:
    table = {
        "/api/tags": tagged({"bot:latest": DIGEST, "other:latest": OTHER}),
        "/api/pull": streaming({"status": "success"}),
        "/api/show": always({"error": "invalid file magic"}, 500),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        outcome = session.fail(pull("bot"))
        assert outcome.error == "gpu-1: 'bot:latest' cannot be opened, and no other model either"
        assert not any(path.startswith("DELETE") for path in server.paths())


def test_a_model_that_was_made_but_cannot_be_opened_is_not_called_done(tmp_path: Path) -> None:
    table = {
        "/api/tags": tagged({"bot:latest": DIGEST, "base:latest": OTHER}),
        "/api/create": streaming({"status": "success"}),
        "/api/show": always({"error": "unexpected EOF"}, 500),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        outcome = session.fail(create("bot", base=name("base")))
        assert outcome.error == "gpu-1: 'bot:latest' cannot be opened: its weights on the host are damaged"
        assert outcome.hint == REPAIR_HINT
        assert session.host.ledger.load(server.url) == {}


def test_a_blob_that_is_there_needs_no_local_file(newest: LiveHost, tmp_path: Path) -> None:
    """A plan made elsewhere: the blob was sent by somebody else, and the file is not on this machine."""
    newest.stranger.create_from_file("theirs", "tiny-a.gguf")
    blob = Blob("tiny-a.gguf", Digest.of((WEIGHTS / "tiny-a.gguf").read_bytes()))
    with at(newest.sandbox.url, tmp_path) as session:
        assert isinstance(session.do(create("legal", files=(blob,))), Succeeded)


def test_an_estimate_of_costs_survives_a_proxy_that_lets_no_look_for_blobs_through(
    tmp_path: Path,
) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.method == "HEAD":
            wire.answer(405)
        else:
            routes({"/api/tags": tagged({})})(asked, wire)

    with a_host() as host, ScriptedHost(script) as proxy:
        host.options = RunOptions()
        models = [a_model("legal", a_build(None, "tiny-a.gguf"))]
        [task] = host.tasks(models)
        with host.opened() as run:
            plan = plan_tasks((replace(task, spec=replace(task.spec, url=proxy.url)),), run)
    size = (WEIGHTS / "tiny-a.gguf").stat().st_size
    assert [action.cost.upload_bytes for action in plan.actions if isinstance(action, UploadBlob)] == [size]


@pytest.mark.parametrize("model", ["bot:latest", "qwen3-coder:480b-cloud"])
def test_a_pulled_model_that_nobody_lets_us_open_counts_as_pulled(tmp_path: Path, model: str) -> None:
    """A proxy that forbids show, or a stub of a model that runs on ollama.com."""
    table = {
        "/api/tags": tagged({model: DIGEST}),
        "/api/pull": streaming({"status": "success"}),
        "/api/show": say(403),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        assert isinstance(session.do(pull(model)), Succeeded)
        assert any("show" in path for path in server.paths()) is (model == "bot:latest")


def test_a_host_that_forbids_to_look_inside_is_no_host_with_broken_models(tmp_path: Path) -> None:
    table = {"/api/tags": tagged({"bot:latest": DIGEST}), "/api/show": say(403)}
    with (
        ScriptedHost(routes(table)) as server,
        at(server.url, tmp_path) as session,
        pytest.raises(AccessDenied),
    ):
        observe_all(session.host)


def test_models_in_a_cloud_names_of_others_and_our_asides_are_not_looked_into(tmp_path: Path) -> None:
    listed = {"a:cloud": DIGEST, "b": DIGEST, "b-ollamaops-previous": DIGEST, "not a name": DIGEST}
    listed[previous_of(name("b")).display] = DIGEST
    models = [{"name": model, "digest": digest, "size": 1} for model, digest in listed.items()]
    models.append({"name": "c", "digest": DIGEST, "size": 1, "remote_host": "https://ollama.com:443"})
    table: dict[str, Script] = {
        "/api/tags": lambda asked, wire: wire.json({"models": models}),
        "/api/show": lambda asked, wire: wire.json({"modelfile": "FROM x", "model_info": {}}),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        seen = observe_all(session.host)
    assert {str(model): observed.is_cloud for model, observed in seen.models.items()} == {
        "a:cloud": True,
        "b:latest": False,
        "b-ollamaops-previous:latest": False,
        "c:latest": True,
    }
    assert {str(model) for model in seen.shown} == {"b:latest", "b-ollamaops-previous:latest"}


# memory


class ReadOnly(Ledger):
    """A ledger in a folder that cannot be written."""

    def remember(self, host: str, records: Mapping[str, ModelRecord]) -> None:
        raise StateError("read-only file system")

    def forget(self, host: str, model: str) -> None:
        raise StateError("read-only file system")


def test_a_memory_that_cannot_be_written_costs_a_look_and_no_action(newest: LiveHost, tmp_path: Path) -> None:
    with at(newest.sandbox.url, tmp_path, ledger=ReadOnly(tmp_path)) as session:
        for action in (pull(BASE), copy(BASE, "chat"), create("bot", base=name(BASE)), delete("chat")):
            assert isinstance(session.do(action), Succeeded)
        assert session.warnings == ["done, but not remembered: read-only file system"] * 4


def test_what_was_done_is_remembered_with_what_it_was_made_from(newest: LiveHost, tmp_path: Path) -> None:
    stranger = newest.stranger
    with at(newest.sandbox.url, tmp_path) as session:
        for action in (pull(BASE), create("bot", base=name(BASE), system="x"), copy("bot", "chat")):
            assert isinstance(session.do(action), Succeeded)
        known = session.host.ledger.load(newest.sandbox.url)
        tags = stranger.tags()
        assert {key: (fact.how, fact.digest, fact.base_digest) for key, fact in known.items()} == {
            name(BASE).key: ("pulled", tags[BASE], None),
            name("bot").key: ("created", tags["bot:latest"], tags[BASE]),
            name("chat").key: ("copied", tags["bot:latest"], tags["bot:latest"]),
        }
        weights_of_base = known[name("bot").key].blobs
        assert len(weights_of_base) == 1
        assert weights_of_base[0].removeprefix("sha256:") in stranger.show("bot")["modelfile"]
        assert isinstance(session.do(delete("chat")), Succeeded)
        assert name("chat").key not in session.host.ledger.load(newest.sandbox.url)
        assert session.host.touched == {name(BASE), name("bot"), name("chat")}


@every_version
def test_a_pull_that_was_planned_without_a_registry_asks_none_afterwards(
    host: LiveHost, tmp_path: Path
) -> None:
    def open_registry() -> RegistryClient:
        raise AssertionError("a registry is asked")

    with at(host.sandbox.url, tmp_path) as session:
        session.change_run(registries=RegistryCache(open_registry), options=RunOptions())
        assert isinstance(session.do(pull(BASE)), Succeeded)
