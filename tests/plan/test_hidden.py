"""What came from the environment is not in what is shown, and comes back from there."""

from __future__ import annotations

import json

from ollamaops.names import Digest, ModelName
from ollamaops.plan.actions import Blob, Difference, Recipe
from ollamaops.plan.hidden import NOT_SHOWN, Hidden

SECRET = 'hunter2 "x"\n'
HIDDEN = Hidden({SECRET: "${env:TOKEN}", "hunter2": "${env:SHORT}", "cafe": "${env:CAFE}"})


def a_difference(desired: str, observed: str) -> Difference:
    name = ModelName.parse("bot")
    return Difference(
        host="cafe", model=name, kind="field", path="system", desired=desired, observed=observed
    )


def test_texts_are_hidden_wherever_they_stand_and_the_longest_first() -> None:
    document = {"host": "cafe", "a": [f"x {SECRET}y", 3, None], "b": ("hunter2", json.dumps([SECRET]))}
    assert HIDDEN.hide(document) == {
        "host": "cafe",
        "a": ["x ${env:TOKEN}y", 3, None],
        "b": ("${env:SHORT}", '["${env:TOKEN}"]'),
    }


def test_digests_stay_what_they_are() -> None:
    digest = Digest("cafe" * 16)
    recipe = Recipe(files=(Blob("cafe.gguf", digest),), system="cafe")
    assert HIDDEN.hide(recipe) == Recipe(files=(Blob("${env:CAFE}.gguf", digest),), system="${env:CAFE}")
    assert HIDDEN.hide("sha256:" + "cafe" * 16) == "sha256:" + "cafe" * 16


def test_what_a_server_has_in_the_place_of_a_secret_is_not_shown_either() -> None:
    hidden = HIDDEN.hide(a_difference("Be kind.\nhunter2", "Be kind.\nhunter1"))
    assert (hidden.desired, hidden.observed) == ("Be kind.\n${env:SHORT}", f"Be kind.\n{NOT_SHOWN}")
    assert HIDDEN.hide(a_difference("hunter2", "")).observed == ""
    assert HIDDEN.hide(a_difference("Be kind.", "hunter1")).observed == "hunter1"


def test_what_was_hidden_comes_back() -> None:
    document = {"host": "${env:SHORT}", "a": [f"x {SECRET}y", 3], "b": "hunter2"}
    assert HIDDEN.restore(HIDDEN.hide(document)) == document


def test_where_there_is_nothing_to_hide_values_stay_the_same() -> None:
    document = {"a": ["x"]}
    assert Hidden({}).hide(document) is document
    assert Hidden({}).restore(document) == document
