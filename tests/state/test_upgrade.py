"""What 0.1.0 remembered is understood: its ledger, and the one it kept on a server, lead to the same decisions.

The files in `version-0.1.0/` were written by ollamaops 0.1.0 (commit 02ed9fd): its ledger as SQL, with a record in
every state, the text that it keeps on a server for the same host, and what it planned with that ledger.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from live_host import BASE, LiveHost, a_build, a_copy, a_host, a_model, name
from msgspec.structs import replace

from ollamaops.changes import apply_tasks
from ollamaops.engine import plan_rollbacks, plan_tasks
from ollamaops.files.digest import FileStamp
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import HostPlan, id_of
from ollamaops.plan.desired import build_model
from ollamaops.state.ledger import FILE_NAME, Ledger
from ollamaops.state.ledger_document import VERSION, parse_document, render_document
from ollamaops.state.locks import LockOwner, owner_to_json
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint
from ollamaops.state.upgrade import upgrade_record

WRITTEN = Path(__file__).parent / "version-0.1.0"
# 0.1.0 called verifying a probe
DECISIONS_TEXT = (
    (WRITTEN / "decisions.json").read_text().replace("/probe/", "/verify/").replace("unproven", "unverified")
)
DECIDED: dict[str, Any] = json.loads(DECISIONS_TEXT)
OFFLINE = RunOptions(costs=False, ask_registry=False)
BOT = (NamePattern.parse("bot"),)
UNVERIFIED, UNUSABLE = "qwen2.5:0.5b", "all-minilm"


def models(color: str) -> list[ModelSpec]:
    return [
        a_model(BASE),
        a_model("bot", a_build(BASE, system=f"Say {color}."), keep_previous=2),
        a_model("small", a_build(None, "tiny-f16.gguf", quantize="Q8_0", system="s")),
        a_model("chat", a_copy(BASE), push=name("localhost:5000/me/chat")),
        a_model("found", a_build(BASE, system="kind")),
        a_model("odd", a_build(BASE, system="odd")),
    ]


def everything(color: str) -> list[ModelSpec]:
    return [*models(color), a_model(UNVERIFIED, expect=({"prompt": "hi"},)), a_model(UNUSABLE)]


def write_old_ledger(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / FILE_NAME).unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        connection.executescript((WRITTEN / "ledger.sql").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Ledger:
    write_old_ledger(tmp_path)
    return Ledger(tmp_path)


@pytest.fixture(scope="module")
def host() -> Iterator[LiveHost]:
    """The host as it was when 0.1.0 looked at it last."""
    with a_host(options=OFFLINE) as host:
        host.stranger.pull(BASE)
        host.stranger.create("found", BASE, system="kind")
        for color in ("red", "blue"):
            assert host.apply([replace(model, push=None) for model in models(color)]).verified
        host.targets = BOT
        tasks = host.tasks(models("blue"))
        with host.opened() as run:
            apply_tasks(plan_rollbacks(tasks, run, 1), tasks, run)
        host.stranger.pull(UNVERIFIED)
        host.stranger.pull(UNUSABLE)
        assert host.stranger.tags() == DECIDED["tags"]
        yield host


def decide(host: LiveHost, options: RunOptions, color: str, *, rollback: bool = False) -> dict[str, Any]:
    host.options, host.targets = options, BOT if rollback else ()
    tasks = host.tasks(everything(color))
    with host.opened() as run:
        plan = plan_rollbacks(tasks, run, 1) if rollback else plan_tasks(tasks, run)
    return summary(plan.hosts[0])


def summary(plan: HostPlan) -> dict[str, Any]:
    return {
        "actions": {
            id_of(action): [[why.kind, why.path, why.desired, why.observed] for why in action.because]
            for action in plan.actions
        },
        "unchanged": sorted(map(str, plan.unchanged)),
        "rolled_back": sorted(map(str, plan.rolled_back)),
        "unmanaged": sorted(map(str, plan.unmanaged)),
        "leftovers": sorted(map(str, plan.leftovers)),
        "noted": sorted(str(note.model) for note in plan.notes),
    }


DECISIONS: dict[str, Callable[[LiveHost], dict[str, Any]]] = {
    "plan": lambda host: decide(host, OFFLINE, "blue"),
    "changed": lambda host: decide(host, OFFLINE, "green"),
    "release": lambda host: decide(host, replace(OFFLINE, release=True), "blue"),
    "rollback": lambda host: decide(host, OFFLINE, "blue", rollback=True),
}


def decided_by_0_1_0(what: str) -> dict[str, Any]:
    """It did not remember which versions it kept, and rolled back to whatever was there without a word."""
    return {**DECIDED[what], **({"noted": ["bot:latest"]} if what == "rollback" else {})}


@pytest.mark.parametrize("what", DECISIONS)
def test_the_ledger_of_0_1_0_leads_to_the_decisions_of_0_1_0(host: LiveHost, what: str) -> None:
    write_old_ledger(host.state)
    assert DECISIONS[what](host) == decided_by_0_1_0(what)


@pytest.mark.parametrize("what", DECISIONS)
def test_what_0_1_0_kept_on_a_server_leads_to_the_same_decisions(host: LiveHost, what: str) -> None:
    (host.state / FILE_NAME).unlink(missing_ok=True)
    document = parse_document((WRITTEN / "document.txt").read_text())
    host.ledger.remember("gpu-1", document.models)
    for (model, ref), digests in document.pushes.items():
        host.ledger.remember_push("gpu-1", model, ref, digests)
    assert DECISIONS[what](host) == decided_by_0_1_0(what)


def test_a_lost_ledger_costs_what_its_docstring_says(host: LiveHost) -> None:
    (host.state / FILE_NAME).unlink(missing_ok=True)
    decided = decide(host, OFFLINE, "blue")
    assert decided["actions"].pop(f"gpu-1/verify/{UNVERIFIED}") == [["unverified", "", "", ""]]
    decided["unchanged"] = sorted([*decided["unchanged"], UNVERIFIED])  # which 0.1.0 took for verified
    assert decided == DECIDED["without a ledger"]
    assert "gpu-1/create/bot:latest" in decided["actions"]  # the version that was rolled back comes again
    assert not any("/delete/" in action for action in decided["actions"])


def test_every_record_of_0_1_0_has_its_status_and_the_rest_unchanged(old: Ledger) -> None:
    known = {str(ModelName.parse(key)): record for key, record in old.load("gpu-1").items()}
    assert {model: (record.how, record.status) for model, record in known.items()} == {
        "llama3.2:3b": ("adopted", "applied"),
        "bot:latest": ("copied", "rolled_back"),
        "small:latest": ("created", "applied"),
        "chat:latest": ("copied", "applied"),
        "found:latest": ("adopted", "applied"),
        "odd:latest": ("created", "doubted"),
        "qwen2.5:0.5b": ("pulled", "unverified"),
        "all-minilm:latest": ("pulled", "unusable"),
    }
    assert {model: record.digest for model, record in known.items()} == {
        model: digest for model, digest in DECIDED["tags"].items() if "previous" not in model
    }
    declared = {str(model.name): build_model(model, {}).fingerprint for model in everything("blue")[3:]}
    for model in ("chat:latest", "found:latest", "qwen2.5:0.5b", "all-minilm:latest"):
        assert known[model].fingerprint == declared[model]
    assert known["odd:latest"].fingerprint == Fingerprint("", declared["odd:latest"].weights)
    assert (known["bot:latest"].fingerprint, len(known["bot:latest"].entry)) == (NO_FINGERPRINT, 64)
    assert len(known["small:latest"].blobs) == 1
    assert known["found:latest"].base_digest == DECIDED["tags"]["llama3.2:3b"]


def test_pushes_evictions_runs_and_digests_of_files_come_along(old: Ledger) -> None:
    pushes = {(name("chat").key, "localhost:5000/me/chat:latest"): (DECIDED["tags"]["chat:latest"], "e" * 64)}
    assert old.load_pushes("gpu-1") == pushes
    evictions = old.load_evictions("gpu-1").items()
    assert {str(gone): sorted(map(str, beside)) for gone, beside in evictions} == DECIDED["evicted"]
    killed, run = old.runs()
    assert (killed.run_id, killed.is_finished, run.run_id, run.exit_code) == ("killed", False, "run", 3)
    assert json.loads(run.plan)["format"] == "ollamaops-plan"
    assert old.get(FileStamp("/weights/a.gguf", 7, 1, 2, 3, 4)) == Digest.of(b"weights")


def test_a_ledger_that_was_migrated_is_what_a_new_one_would_be(old: Ledger, tmp_path: Path) -> None:
    def shape(ledger: Ledger) -> list[object]:
        with closing(sqlite3.connect(ledger.path)) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    old.runs()
    new = Ledger(tmp_path / "new")
    new.remember("h", {})
    assert shape(old) == shape(new)


def test_history_that_nobody_wrote_does_not_stop_the_migration(tmp_path: Path) -> None:
    write_old_ledger(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        for hosts in (
            "{",
            "[]",
            '{"gpu-1": 1}',
            '{"gpu-1": {"evicted": {"": []}}}',
            '{"gpu-1": {"evicted": 1}}',
        ):
            connection.execute(
                "INSERT INTO run (run_id, at, command, hosts, manifest_digest, exit_code)"
                " VALUES (?, '', '', ?, '', 0)",
                (hosts, hosts),
            )
        connection.execute("UPDATE applied SET how = 'stolen' WHERE model LIKE '%/bot:%'")
        connection.commit()
    ledger = Ledger(tmp_path)
    assert list(ledger.load_evictions("gpu-1")) == [name(BASE)]
    assert name("bot").key not in ledger.load("gpu-1")
    assert len(ledger.load("gpu-1")) == 7


def test_the_ledger_on_a_server_is_the_same_as_the_one_in_the_state_folder(old: Ledger) -> None:
    document = parse_document((WRITTEN / "document.txt").read_text())
    assert document.models == old.load("gpu-1")
    assert document.pushes == old.load_pushes("gpu-1")
    assert parse_document(render_document(document)) == document


def test_the_lock_of_a_run_of_0_1_0_is_respected() -> None:
    owner = LockOwner(token="r1", who="alice@build-7", process=7, since="10:00", expires_at="11:00")
    body = {"revision": "r", "ancestors": [], "facts": {}, "pushes": [], "holder": owner_to_json(owner)}
    packed = base64.b64encode(zlib.compress(json.dumps(body).encode())).decode()
    assert parse_document(f"ollamaops ledger 1: {packed}").lock_owner == owner


def test_0_1_0_refuses_a_document_of_this_version_and_does_not_overwrite_it() -> None:
    text = render_document(parse_document((WRITTEN / "document.txt").read_text()))
    assert text.startswith(f"ollamaops ledger {VERSION}: ")
    assert VERSION > 1  # 0.1.0 refuses whatever is above 1, and writes nothing then


@pytest.mark.parametrize(
    ("how", "fingerprint", "expected"),
    [
        ("copied", "", ("copied", "doubted", NO_FINGERPRINT, "")),  # released after a rollback
        ("held", ":w", ("copied", "doubted", Fingerprint("", "w"), "")),
        ("created", "a:w", ("created", "applied", Fingerprint("a", "w"), "")),
    ],
)
def test_marks_become_a_status(how: str, fingerprint: str, expected: tuple[object, ...]) -> None:
    record = upgrade_record(how, fingerprint, "d", base_digest=None, blobs=(), weights_verified=True, at="t")
    assert (record.how, record.status, record.fingerprint, record.entry) == expected
