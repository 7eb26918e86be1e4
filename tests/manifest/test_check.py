"""What is wrong with a manifest, in whole messages: the cases of tests/cases/manifest/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
import yaml
from manifest_folder import Case, load_text, problems_of

from ollamaops.errors import did_you_mean
from ollamaops.manifest.check import QUANTIZATIONS, check_hosts
from ollamaops.manifest.crosscheck import Written, check_models
from ollamaops.manifest.hosts import parse_selector
from ollamaops.manifest.types import Copy, HostSpec, ModelSpec, Place, Pull
from ollamaops.names import ModelName

FOLDER = Path(__file__).parents[1] / "cases" / "manifest"
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['name']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for case in cast("list[Case]", yaml.safe_load(path.read_text()))
]


@pytest.mark.parametrize("case", CASES)
def test_everything_that_is_wrong_with_a_manifest_is_reported(case: Case, tmp_path: Path) -> None:
    assert problems_of(case, tmp_path) == case["says"]


@pytest.mark.parametrize("case", CASES)
def test_a_message_is_what_and_why_without_a_full_stop_and_without_secrets(
    case: Case, tmp_path: Path
) -> None:
    said = problems_of(case, tmp_path)
    assert "hunter2" not in said
    for line in said.splitlines():
        assert not line.endswith((".", " "))
        assert re.match(r"    \S|\S+: \S", line)


def test_every_case_has_a_name_of_its_own_and_finds_something() -> None:
    cases = [cast("Case", param.values[0]) for param in CASES]
    assert len({case["name"] for case in cases}) == len(cases)
    assert all(case["says"] for case in cases)


def a_model(name: str, *, copy: str = "", where: str = "") -> ModelSpec:
    parsed = ModelName.parse(name)
    source = Copy(source=ModelName.parse(copy)) if copy else Pull(ref=parsed)
    return ModelSpec(name=parsed, source=source, where=parse_selector(where), place=Place("m", 1, 1))


def test_a_problem_of_many_hosts_is_said_once() -> None:
    hosts = [HostSpec(name=f"h{n}", url=f"http://h{n}:1", labels={"n": str(n)}) for n in range(50)]
    models = [
        a_model("a", where="n>3"),
        a_model("A:latest", where="n>5"),
        a_model("b", copy="c", where="n<9"),
    ]
    problems = check_models(models, (), hosts, Written())
    assert [problem.message for problem in problems] == [
        "'A:latest' is declared twice for host h6: the first one is at m:1:1"
    ]


def test_hosts_whose_url_could_not_be_read_are_not_compared() -> None:
    hosts = [HostSpec(name=name, url="", place=Place("m", line, 1)) for line, name in enumerate("ab", 1)]
    assert list(check_hosts(hosts)) == []


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("sytem", ["system", "template"], ": did you mean 'system'?"),
        ("SYSTEM", ["system"], ": did you mean 'system'?"),
        ("q4_k_m", QUANTIZATIONS, ": did you mean 'Q4_K_M'?"),
        ("zzz", ["system"], ""),
        ("x", [], ""),
    ],
)
def test_a_near_word_is_proposed(word: str, known: list[str], said: str) -> None:
    assert did_you_mean(word, known) == said


LEGAL_BUT_ODD = """
hosts:
  a: {url: "http://a", labels: {vram: lots, site: lyon}}
  b: {url: "http://b", labels: {vram: 48GiB, site: 2}}
  c: {url: "http://c"}
models:
  - {name: big, where: vram>=24GiB}
  - {name: here, where: "site=lyon,host>a", expect: [{capabilities: [completion, tool]}, {capabilities: [fly]}]}
  - {name: silent, expect: {max_load: 90s}}
"""


def test_values_that_no_host_can_have_get_a_warning(tmp_path: Path) -> None:
    said = [warning.message for warning in load_text(tmp_path, LEGAL_BUT_ODD).warnings]
    assert sorted(said) == [
        "'here:latest' matches no host: none has the labels that its where: asks for",
        "expect: no Ollama up to 0.33 lists the capability 'fly'",
        "expect: no Ollama up to 0.33 lists the capability 'tool': did you mean 'tools'?",
        "label 'vram' of host 'a' is not a number or a size, but where: compares it with one",
    ]
