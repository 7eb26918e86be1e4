"""Parameters that somebody stored with the wrong JSON type: seen on every server that takes them, and mended."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from breadth import in_turn
from live_host import (
    BASE,
    MODELFILE_VERSIONS,
    VERSIONS,
    LiveHost,
    a_build,
    a_copy,
    a_model,
    assert_converged,
    reasons,
)
from patience import PATIENCE_S

from ollamaops.settings import ParameterValue

pytestmark = in_turn("version")
every_version = pytest.mark.parametrize(
    "version", [each for each in VERSIONS if each not in MODELFILE_VERSIONS]
)


def generate(host: LiveHost, model: str) -> int:
    body = {"model": model, "prompt": "hi", "stream": False}
    return requests.post(f"{host.sandbox.url}/api/generate", json=body, timeout=PATIENCE_S).status_code


DECLARED: dict[str, ParameterValue] = {"num_ctx": 256, "use_mmap": True, "stop": ("x",), "temperature": 0.7}


@every_version
@pytest.mark.parametrize(
    "changed, paths",
    [
        ({"num_ctx": "256"}, ["parameters.num_ctx"]),
        ({"temperature": "0.7", "use_mmap": "true"}, ["parameters.temperature", "parameters.use_mmap"]),
        ({"stop": "x"}, ["parameters.stop"]),
        ({"stop": [5]}, ["parameters.stop"]),
    ],
)
def test_text_where_the_api_needs_something_else_is_drift_with_and_without_memory(
    host: LiveHost, changed: dict[str, Any], paths: list[str]
) -> None:
    bot = a_model("bot", a_build(BASE, parameters=DECLARED))
    alias = a_model("alias", a_copy("bot"))  # it keeps the right blob on the server
    assert_converged(host, host.apply([bot, alias]))

    for forget in (False, True):
        host.stranger.create("bot", BASE, parameters={**DECLARED, **changed})
        assert generate(host, "bot") == 500
        if forget:
            host.forget()

        plan = host.plan([bot])
        assert sorted(reasons(plan)["create/bot:latest"]) == sorted(paths)
        assert plan.unchanged == ()

        assert_converged(host, host.apply([bot]))
        assert generate(host, "bot") == 200
        assert host.plan([bot]).actions == ()
        host.forget()
        assert host.plan([bot]).actions == ()


@every_version
def test_what_a_base_has_as_text_is_not_held_against_what_is_made_from_it(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.stranger.create("base", BASE, parameters={"num_ctx": "256", "stop": "x"})
    child = a_model("child", a_build("base", system="s", parameters={"top_k": 4}))
    assert_converged(host, host.apply([child]))
    host.forget()
    assert host.plan([child]).actions == ()
