"""The ledger on a host as text: it comes back as it was, and what is not ours is refused in words."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins

from ollamaops.errors import StateError
from ollamaops.manifest.modelfile import Command, Modelfile, parse_modelfile, render_for_wire
from ollamaops.state.ledger_document import (
    LEDGER_NAME,
    MOST_ANCESTORS,
    MOST_BYTES,
    LedgerDocument,
    parse_document,
    render_document,
)
from ollamaops.state.locks import LockOwner
from ollamaops.state.records import STATUSES, WAYS, Fingerprint, ModelRecord

TEXTS = st.text(max_size=12)
RECORDS = st.builds(
    ModelRecord,
    how=st.sampled_from(sorted(WAYS)),
    status=st.sampled_from(sorted(STATUSES)),
    fingerprint=st.builds(Fingerprint, TEXTS, TEXTS),
    entry=TEXTS,
    digest=TEXTS,
    at=TEXTS,
    base_digest=st.none() | TEXTS,
    blobs=st.lists(TEXTS, max_size=2).map(tuple),
    weights_verified=st.booleans(),
)
DOCUMENTS = st.builds(
    LedgerDocument,
    revision=TEXTS,
    ancestors=st.lists(TEXTS, max_size=3).map(tuple),
    models=st.dictionaries(TEXTS, RECORDS, max_size=3),
    pushes=st.dictionaries(st.tuples(TEXTS, TEXTS), st.lists(TEXTS, max_size=2).map(tuple), max_size=3),
    lock_owner=st.none()
    | st.builds(LockOwner, token=TEXTS, who=TEXTS, process=st.integers(), since=TEXTS, expires_at=TEXTS),
)
DELETE_HINT = (
    "delete 'ollamaops-ledger:state' on the host: models are recognized again by their contents, "
    "but those that were rolled back are rolled forward"
)


def packed(body: object) -> str:
    return "ollamaops ledger 2: " + base64.b64encode(zlib.compress(json.dumps(body).encode())).decode()


def body_of(document: LedgerDocument) -> dict[str, object]:
    text = render_document(document).rpartition(" ")[2]
    body: dict[str, object] = json.loads(zlib.decompress(base64.b64decode(text)))
    return body


STOLEN = {"how": "stolen", "status": "applied", "entry": "", "digest": "", "at": ""}
RECORD = ModelRecord(how="pulled", fingerprint=Fingerprint("words", "weights"), digest="d")
FULL = body_of(LedgerDocument().with_models({"m": RECORD}))


@given(DOCUMENTS)
def test_a_document_survives_its_text(document: LedgerDocument) -> None:
    assert parse_document(render_document(document)) == document


@given(DOCUMENTS)
def test_the_text_survives_a_modelfile_and_is_one_line_of_plain_letters(document: LedgerDocument) -> None:
    text = render_document(document)
    assert (text.isascii(), text.isprintable()) == (True, True)
    rendered = render_for_wire(Modelfile((Command("model", "a"), Command("system", text))))
    assert [command.args for command in parse_modelfile(rendered).commands] == ["a", text]


def test_a_server_that_adds_a_line_end_does_no_harm() -> None:
    document = LedgerDocument(revision="r").with_models({"m": RECORD})
    assert parse_document(render_document(document) + "\n") == document


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "it holds something else"),
        ("You are a helpful assistant.", "it holds something else"),
        ("ollamaops ledger 1: ???", "it holds something else"),
        ("ollamaops ledger 1: abc", "it is damaged: "),
        ("ollamaops ledger 1: abcd", "it is damaged: "),
        (render_document(LedgerDocument())[:-8] + "AAAA", "it is damaged: "),
        (packed([]), "it is damaged: a mapping is missing"),
        (packed({}), "it is damaged: a mapping is missing"),
        (packed({**body_of(LedgerDocument()), "pushes": {}}), "it is damaged: a list is missing"),
        (packed({**body_of(LedgerDocument()), "pushes": [["a"]]}), "it is damaged: "),
        (packed({**body_of(LedgerDocument()), "revision": 3}), "it is damaged: a text is missing"),
        (
            packed({**body_of(LedgerDocument()), "models": {"m": STOLEN}}),
            "it is damaged: a model cannot be 'stolen' and 'applied'",
        ),
        (
            packed({**FULL, "models": {"m": {**to_builtins(RECORD), "weights_verified": 1}}}),
            "it is damaged: a truth value is missing",
        ),
    ],
)  # fmt: skip
def test_what_is_not_ours_is_refused_and_the_way_out_is_told(text: str, why: str) -> None:
    with pytest.raises(StateError) as caught:
        parse_document(text)
    assert str(caught.value).startswith(f"'ollamaops-ledger:state' is not a usable ledger: {why}")
    assert caught.value.hint == DELETE_HINT


def test_a_document_that_unfolds_to_more_than_fits_is_refused() -> None:
    bomb = base64.b64encode(zlib.compress(b" " * (MOST_BYTES + 1))).decode()
    with pytest.raises(StateError, match="it is cut short or too large"):
        parse_document(f"ollamaops ledger 1: {bomb}")


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(StateError) as caught:
        parse_document("ollamaops ledger 3: abcd")
    assert str(caught.value) == (
        "the ledger in 'ollamaops-ledger:state' was written by a newer ollamaops: version 3, this one knows 2"
    )
    assert caught.value.hint == "upgrade ollamaops"


def test_a_write_knows_those_before_it_up_to_a_limit() -> None:
    document = LedgerDocument()
    assert document.has_seen("r0") is False
    for number in range(MOST_ANCESTORS + 2):
        document = document.succeeded_by(f"r{number}")
    assert document.has_seen(f"r{MOST_ANCESTORS + 1}")
    assert document.has_seen("r1")
    assert not document.has_seen("r0")


def test_a_model_is_kept_until_it_is_forgotten() -> None:
    document = LedgerDocument().with_models({"m": RECORD})
    assert document.models == {"m": RECORD}
    assert document.without_model("m") == document.without_model("n").without_model("m") == LedgerDocument()


def test_the_name_of_the_ledger_means_the_same_on_every_server() -> None:
    assert (LEDGER_NAME.is_ledger, LEDGER_NAME.source_suffix, LEDGER_NAME.display) == (
        True,
        "none",
        "ollamaops-ledger:state",
    )
