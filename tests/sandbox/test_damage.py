"""What the sandbox answers of a damaged store, and as another version over the same store."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from damaged_store import blob_of, cut
from one_address import NEEDS_NGINX, connection_by_connection, request_by_request
from patience import PATIENCE_S
from sandbox_caller import WEIGHTS, Caller, a_caller

from ollamaops.sandbox.behavior import RECORDED
from ollamaops.sandbox.server import Sandbox

VERSIONS = list(RECORDED)
CACHED = {"0.32.15", "0.33.0-rc2"}
LLAMA = "llama3.2:3b"


def bot(caller: Caller) -> None:
    """`bot`, derived from a pulled model."""
    caller.post("pull", model=LLAMA)
    if caller.sandbox.service.behavior.structured_create:
        caller.create("bot", **{"from": LLAMA}, system="be kind")
    else:
        caller.create("bot", modelfile=f"FROM {LLAMA}\nSYSTEM be kind\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_that_are_gone_are_listed_but_not_shown_or_loaded(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        bot(caller)
        caller.show("bot")
        weights = blob_of(caller.sandbox, "bot")
        digest = weights.name.replace("-", ":")
        assert caller.has_blob(digest)
        weights.unlink()
        assert not caller.has_blob(digest)
        assert set(caller.tags()) == {"bot:latest", LLAMA}
        assert caller.post("show", model="bot").status == (200 if version in CACHED else 404)
        assert caller.post("show", model=LLAMA).status == 404  # not shown before, so not in memory
        is_judged = caller.sandbox.service.behavior.show_capabilities
        answers = [caller.post(endpoint, model="bot") for endpoint in ("generate", "chat")]
        assert [answer.status for answer in answers] == [400 if is_judged else 404] * 2
        assert caller.post("copy", source="bot", destination="twin").status == 200
        assert caller.post("pull", model=LLAMA).lines[-1] == {
            "status": "success"
        }  # what is missing is fetched
        assert caller.post("show", model="twin").status == 200
        assert caller.post("generate", model="bot").status == 200


@pytest.mark.parametrize("version", ["0.12.11", "0.23.2", "0.33.0-rc2"])
def test_what_was_damaged_while_the_server_was_down_is_not_in_its_memory(
    version: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        bot(caller)
        caller.sandbox.restart()
        blob_of(caller.sandbox, LLAMA).unlink()
        is_cached = version != "0.12.11"
        assert caller.post("show", model="bot").status == (200 if is_cached else 404)
        caller.sandbox.restart()
        assert caller.post("show", model="bot").status == 404
        assert set(caller.tags()) == {"bot:latest", LLAMA}


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_that_are_cut_off_stay_so_until_every_model_of_theirs_is_deleted(
    version: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.post("pull", model=LLAMA)
        cut(blob_of(caller.sandbox, LLAMA))
        shown = caller.post("show", model=LLAMA)
        assert (shown.status, shown.error) == (500, "unexpected EOF")
        is_judged = caller.sandbox.service.behavior.show_capabilities
        assert caller.post("generate", model=LLAMA).status == (400 if is_judged else 500)
        if caller.sandbox.service.behavior.structured_create:
            created = caller.create("bot", **{"from": LLAMA})
        else:
            created = caller.create("bot", modelfile=f"FROM {LLAMA}\n")
        assert created.error == "unexpected EOF"
        assert caller.post("pull", model=LLAMA).lines[-1] == {"status": "success"}
        assert caller.post("show", model=LLAMA).status == 500
        caller.delete(LLAMA)
        caller.post("pull", model=LLAMA)
        assert caller.post("show", model=LLAMA).status == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_whose_end_is_missing_are_shown_but_not_loaded(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        bot(caller)
        cut(blob_of(caller.sandbox, "bot"), keep=-32)
        assert caller.post("show", model="bot").status == 200
        reply = caller.post("generate", model="bot")
        assert (reply.status, str(reply.error).partition(":")[0]) == (500, "unable to load model")


def test_an_upload_does_not_mend_what_is_stored_under_its_digest(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.33.0-rc2") as caller:
        caller.base()
        weights = blob_of(caller.sandbox, "base")
        cut(weights)
        upload = caller.weights()
        assert caller.create("base", files={"w.gguf": upload}).lines[-1] == {"status": "success"}
        assert weights.stat().st_size == 64  # the server wrote the same bytes again, and kept the old file
        cut(caller.sandbox.store.blob_path(upload))
        assert caller.upload((WEIGHTS / "tiny-a.gguf").read_bytes()) == upload
        assert caller.create("base", files={"w.gguf": upload}).error == "unexpected EOF"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_edit_in_place_shows_only_where_show_reads_the_disk(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        bot(caller)
        before = caller.show("bot"), caller.tags()
        blob_of(caller.sandbox, "bot", "system").write_text("be unkind")
        assert caller.show("bot")["system"] == ("be kind" if version in CACHED else "be unkind")
        assert caller.show("bot", options={"seed": 1})["system"] == "be unkind"  # never from memory
        assert caller.tags() == before[1]


def test_an_older_version_over_the_same_store_does_not_know_newer_fields(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.33.0-rc2") as caller:
        caller.post("pull", model=LLAMA)
        caller.create("bot", **{"from": LLAMA}, renderer="qwen3", parser="qwen3", requires="0.14.0")
        digest = caller.tags()["bot:latest"]["digest"]

        def fields() -> tuple[bool, bool, object]:
            shown = caller.show("bot")
            modelfile = str(shown["modelfile"])
            return "RENDERER" in modelfile, "PARSER" in modelfile, shown.get("requires")

        assert fields() == (True, True, "0.14.0")
        for version, known in {
            "0.12.11": (True, True, None),
            "0.5.7": (False, False, None),
            "0.33.0-rc2": (True, True, "0.14.0"),
        }.items():
            caller.sandbox.restart(as_version=version)
            assert caller.call("GET", "/api/version").document == {"version": version}
            assert fields() == known
            assert caller.tags()["bot:latest"]["digest"] == digest


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize(
    ("parameters", "printed", "error"),
    [
        (
            {"num_ctx": "256"},
            'num_ctx                        "256"',
            'option "num_ctx" must be of type integer',
        ),
        ({"stop": "x"}, 'stop                           "x"', 'option "stop" must be of type array'),
    ],
)
def test_a_parameter_of_the_wrong_type_is_stored_and_printed_but_never_loaded(
    version: str, parameters: dict[str, object], printed: str, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.post("pull", model=LLAMA)
        caller.create("bot", **{"from": LLAMA}, parameters=parameters)
        assert printed in str(caller.show("bot")["parameters"]).splitlines()
        asked = {"generate": {}, "chat": {"messages": [{"role": "user", "content": "hi"}]}}
        for endpoint, body in asked.items():
            reply = caller.post(endpoint, model="bot", stream=False, **body)
            assert (reply.status, reply.error) == (500, error)


@pytest.mark.parametrize("balancer", [pytest.param("nginx", marks=NEEDS_NGINX), "tcp"])
def test_two_servers_behind_one_address_answer_in_turn(balancer: str, tmp_path: Path) -> None:
    with (
        Sandbox(tmp_path / "one", as_version="0.5.7") as one,
        Sandbox(tmp_path / "two", as_version="0.12.11") as two,
        (
            request_by_request(tmp_path / "nginx", one.url, two.url)
            if balancer == "nginx"
            else connection_by_connection(one.url, two.url)
        ) as url,
    ):
        seen = [requests.get(f"{url}/api/version", timeout=PATIENCE_S).json()["version"] for _ in range(4)]
        assert seen == ["0.5.7", "0.12.11"] * 2
