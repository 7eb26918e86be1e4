"""A model that the server cannot show: only its own words of a broken file are a reason to remove anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_host import name
from scripted_host import Asked, Script, ScriptedHost, Wire, routes, streaming
from session_actions import DIGEST, OTHER, at, create, pull, tagged

from ollamaops.errors import InvalidRequest, ServerFault
from ollamaops.observe.contents import read_contents
from ollamaops.ollama.answer_errors import build_answer_error
from ollamaops.ollama.contents import Unreadable
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.wire import ShownModel

FEATURES = features_of(ServerVersion.parse("0.33.0"))
BLOB = f"/root/.ollama/models/blobs/sha256-{DIGEST}"
NOT_DEFINED = 'template: :3: function "currentDate" not defined'  # ollama/ollama#11706
DAMAGED = [
    (404, "model 'bot:latest' not found"),
    (500, "invalid file magic"),
    (500, "EOF"),
    (500, "unexpected EOF"),
    (500, f"open {BLOB}: no such file or directory"),
    (500, f"read {BLOB}: unexpected EOF"),
    (500, rf"open C:\Users\o\models\blobs\sha256-{DIGEST}: The system cannot find the file specified."),
    (500, "invalid character '\\x00' looking for beginning of value"),
    (500, "unexpected end of JSON input"),
]
UNKNOWN = [
    (500, NOT_DEFINED),
    (500, "template: :1: unexpected EOF"),
    (500, "template: :1:2: executing at <.X>: EOF"),
    (500, f"open {BLOB}: too many open files"),
    (500, f"open {BLOB}: permission denied"),
    (500, f"read {BLOB}: input/output error"),
    (500, 'Post "http://127.0.0.1:4711/info": EOF'),
    (500, "fork/exec /usr/lib/ollama/runner: no such file or directory"),
    (500, "unsupported version: 4"),
    (500, "something nobody has seen before"),
    (500, ""),
    (400, "invalid model name"),
]


def refused(status: int, text: str) -> Unreadable:
    def show() -> ShownModel:
        body = json.dumps({"error": text}) if text else ""
        raise build_answer_error("gpu-1", "show bot:latest", status, body, {})

    found = read_contents(show, DIGEST, FEATURES)
    assert isinstance(found, Unreadable)
    return found


@pytest.mark.parametrize(("status", "text"), DAMAGED)
def test_the_words_of_a_broken_file_are_damage(status: int, text: str) -> None:
    assert refused(status, text).is_damaged


@pytest.mark.parametrize(("status", "text"), UNKNOWN)
def test_any_other_words_are_none(status: int, text: str) -> None:
    found = refused(status, text)
    assert not found.is_damaged
    assert found.words == (text or f"HTTP {status}")


def test_what_our_own_client_refuses_to_ask_is_no_damage_either() -> None:
    def show() -> ShownModel:
        raise InvalidRequest("gpu-1: show x:local: servers take it for 'x'", host="gpu-1")

    found = read_contents(show, DIGEST, FEATURES)
    assert found == Unreadable("gpu-1: show x:local: servers take it for 'x'", is_damaged=False)


def test_a_proxy_says_nothing_about_a_model() -> None:
    def show() -> ShownModel:
        raise build_answer_error("gpu-1", "show bot:latest", 502, "EOF", {})

    with pytest.raises(ServerFault):
        read_contents(show, DIGEST, FEATURES)


# pulls and builds


def refusing(text: str, fine: str = "other:latest") -> Script:
    """A show that works for one model only."""

    def show(asked: Asked, wire: Wire) -> None:
        if asked.json["model"] == fine:
            wire.json({"modelfile": "FROM x", "model_info": {}})
        else:
            wire.json({"error": text}, 500)

    return show


def test_a_pulled_model_whose_template_the_server_cannot_read_is_kept_and_said_so(tmp_path: Path) -> None:
    table: dict[str, Script] = {
        "/api/tags": tagged({"bot:latest": DIGEST, "other:latest": OTHER}),
        "/api/pull": streaming({"status": "success"}),
        "/api/show": refusing(NOT_DEFINED),
    }
    with ScriptedHost(routes(table, "0.11.0")) as server, at(server.url, tmp_path) as session:
        outcome = session.fail(pull("bot"))
        assert outcome.error == f"gpu-1: 'bot:latest' cannot be opened: {NOT_DEFINED}"
        assert (
            outcome.hint == "it is kept as it is; it may need a newer Ollama than 0.11.0: upgrade this host"
        )
        [known] = session.host.ledger.load(server.url).values()
        assert (known.status, known.fingerprint) == ("unusable", pull("bot").fingerprint)
        assert server.paths().count("POST /api/pull") == 1
        assert not any(path.startswith("DELETE") for path in server.paths())


def test_a_model_that_was_made_and_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    table: dict[str, Script] = {
        "/api/tags": tagged({"bot:latest": DIGEST, "base:latest": OTHER}),
        "/api/create": streaming({"status": "success"}),
        "/api/show": refusing(NOT_DEFINED, fine="base:latest"),
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        outcome = session.fail(create("bot", base=name("base")))
        assert outcome.error == f"gpu-1: 'bot:latest' cannot be opened: {NOT_DEFINED}"


def test_a_repaired_model_that_is_then_not_understood_is_not_called_damaged(tmp_path: Path) -> None:
    texts = ["invalid file magic"]

    def show(asked: Asked, wire: Wire) -> None:
        refusing(texts[-1])(asked, wire)

    def delete(asked: Asked, wire: Wire) -> None:
        texts.append(NOT_DEFINED)
        wire.answer(200)

    table: dict[str, Script] = {
        "/api/tags": tagged({"bot:latest": DIGEST}),
        "/api/pull": streaming({"status": "success"}),
        "/api/show": show,
        "/api/delete": delete,
    }
    with ScriptedHost(routes(table)) as server, at(server.url, tmp_path) as session:
        assert NOT_DEFINED in session.fail(pull("bot")).error
        assert server.paths().count("POST /api/pull") == 2
