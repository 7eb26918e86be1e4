"""Whatever goes wrong on the way, the engine ends in convergence or in a named failure, and nothing is lost.

The tables in cases/faults/ say, per endpoint, what each fault of the script language ends in: when it happens once,
and when it happens at every call; on versions that differ, per version. After each the same host without faults has
to converge in one more run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from breadth import by_pairs, in_turn
from fault_world import BASE, BYSTANDERS, HASTY, PATIENT, Run, Shelf, World
from hypothesis import example, given
from hypothesis import strategies as st
from properties import fewer_examples
from registry_fixture import RunningRegistry, run_registry

from ollamaops.cli.main import run as run_command
from ollamaops.events import Succeeded
from ollamaops.manifest.document import parse_document, to_plain
from ollamaops.names import ModelName
from ollamaops.sandbox.fault_script import parse_faults

VERSIONS = ("0.5.7", "0.12.11", "0.33.0-rc2")
CONVERGES = "converges"
ABSENT = "old-bot:latest"
BOT = '- {name: bot, from: "llama3.2:1b", system: the new words, parameters: {temperature: 0.2}}'
EVERYTHING = f"""\
{BOT}
- qwen3:0.6b
- {{name: child, from: "qwen3:0.6b", system: small}}
- {{name: weights, files: [tiny-f16.gguf], template: "{{{{ .Prompt }}}}"}}
- {{name: alias, copy: "llama3.2:1b"}}
- {{name: old-bot, ensure: absent}}
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


# --- what has to hold after every run -------------------------------------------------------------------------------


def assert_nothing_is_lost(world: World, before: Mapping[str, str], run: Run) -> None:
    """What nobody wanted changed is as it was; what was changed is as declared; nothing is half done."""
    run.assert_every_action_has_one_outcome()
    world.assert_the_store_is_whole()
    after = world.digests()
    assert {name: after.get(name) for name in BYSTANDERS} == {name: before[name] for name in BYSTANDERS}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    done = {
        result.action.model.display
        for result in (run.report.results if run.report else ())
        if isinstance(result.outcome, Succeeded)
    }
    as_declared = {name.display for host in world.plan(remembers=False).hosts for name in host.unchanged}
    gone = {ABSENT} - after.keys()
    asides = {name for name in after if ModelName.parse(name).is_aside}
    assert changed <= done | as_declared | gone | asides


def assert_one_more_run_converges(world: World) -> None:
    """Without faults, by memory and by looking into everything; no name of ours is left over."""
    run = world.apply()
    assert (run.exit_code, run.said) == (0, [])
    for plan in (world.plan(), world.plan(remembers=False)):
        assert (plan.actions, plan.unreached) == ((), ())
    assert [name for name in world.digests() if "ollamaops" in name] == []
    world.assert_the_store_is_whole()


def carry_out(world: World, faults: str) -> Run:
    """One run with faults, one without, and what has to hold after each."""
    before = world.digests()
    world.arm(faults)
    run = world.apply()
    world.calm()
    world.limits = PATIENT
    assert_nothing_is_lost(world, before, run)
    kept = {name: world.digests()[name] for name in BYSTANDERS}
    assert_one_more_run_converges(world)
    assert {name: world.digests()[name] for name in BYSTANDERS} == kept
    return run


# --- the tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One cell: `ends` are the ways that this may end, mostly one."""

    table: str
    fault: str
    when: str
    version: str
    models: str
    faults: str
    ends: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.table}-{self.fault}-{self.when}-{self.version}"

    @property
    def kind(self) -> str:
        """The fault without its details: `status`, `cut` …"""
        return self.fault.partition("-")[0]

    @property
    def stalls(self) -> bool:
        """Whether the server stops until the client gives up."""
        return '"stall": true' in self.faults or "with_progress" in self.faults


def read_table(path: Path) -> dict[str, Any]:
    """As our own users' files are read: to PyYAML the key `on` is True."""
    document = parse_document(path.read_bytes(), str(path))
    assert document.root is not None
    assert not document.problems
    table = to_plain(document.root)
    assert isinstance(table, dict)
    return table


def read_cases() -> Iterator[Case]:
    """Every row of every table, once and at every call: on all versions where they differ, else on some in turn."""
    for path in sorted((Path(__file__).parents[1] / "cases" / "faults").glob("*.yaml")):
        table = read_table(path)
        for number, row in enumerate(table["cases"]):
            for turn, (when, call) in enumerate((("once", {"call": 1}), ("always", {})), number):
                ends: Any = row.get(when, [])
                versions = table.get("versions", VERSIONS) if ends else ()
                for version in versions if isinstance(ends, dict) else versions[turn % 3 :: 3]:
                    said: Any = ends.get(version, ends["other"]) if isinstance(ends, dict) else ends
                    yield Case(
                        table=path.stem,
                        fault="-".join(f"{key}-{value}" for key, value in row["do"].items()),
                        when=when,
                        version=version,
                        models=table["models"],
                        faults=json.dumps([{"on": table["on"], "do": row["do"], **call}]),
                        ends=(said,) if isinstance(said, str) else tuple(said),
                    )


CASES = tuple(read_cases())


def is_one_of(run: Run, ends: tuple[str, ...]) -> bool:
    """Whether the run ended as said: converged, or with exactly the failures, one per line, in these words."""
    if run.exit_code == 0:
        return CONVERGES in ends and not run.said
    return run.exit_code == 3 and any(_says(run.said, end.splitlines()) for end in ends)


def _says(said: list[str], lines: list[str]) -> bool:
    return len(said) == len(lines) and all(map(fnmatchcase, said, lines))


@pytest.mark.parametrize(
    "case",
    by_pairs(
        CASES,
        lambda case: (case.table, case.kind, case.when, case.version),
        each=lambda case: (case.fault, case.when),
    ),
)
def test_a_fault_ends_in_convergence_or_in_a_named_failure_and_nothing_is_lost(
    case: Case, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    models = case.models
    if "{registry}" in models:
        registry: RunningRegistry = request.getfixturevalue("registry")
        models = models.replace("{registry}", registry.host).replace("{case}", f"bot{CASES.index(case)}")
    with shelf.a_world(case.version, models, limits=HASTY if case.stalls else PATIENT) as world:
        run = carry_out(world, case.faults)
    assert is_one_of(run, case.ends), (run.exit_code, run.said)


def test_the_tables_hold_every_fault_of_the_script_language() -> None:
    schema = json.loads(
        (Path(parse_faults.__code__.co_filename).parent / "fault_script.schema.json").read_text()
    )
    deeds = set(schema["$defs"]["do"]["properties"]) - {"body", "change_model"}  # has tests of its own below
    used = {key for case in CASES for rule in json.loads(case.faults) for key in rule["do"]}
    assert used >= deeds


# --- somebody else --------------------------------------------------------------------------------------------------


@in_turn("version")
@pytest.mark.parametrize("version", ["0.3.4", *VERSIONS])
@pytest.mark.parametrize(
    ("models", "change", "what"),
    [
        (BOT, "{model: bot, system: mine now}", "bot:latest"),
        (BOT, "{model: bot, delete: true}", "bot:latest"),
        (BOT, "{model: bot, copy_from: theirs}", "bot:latest"),
        ('- {name: alias, copy: "llama3.2:1b"}', "{model: alias, copy_from: bot}", "alias:latest"),
        ("- {name: old-bot, ensure: absent}", "{model: old-bot, copy_from: bot}", "old-bot:latest"),
        ("- qwen3:0.6b", "{model: 'qwen3:0.6b', copy_from: bot}", "qwen3:0.6b"),
    ],
)
def test_a_model_that_somebody_changed_since_the_plan_is_left_alone(
    version: str, models: str, change: str, what: str, shelf: Shelf
) -> None:
    with shelf.a_world(version, models) as world:
        before = world.digests()
        world.arm(f"- {{on: {{endpoint: tags}}, call: 1, do: {{change_model: {change}}}}}")
        run = world.apply()
        world.calm()
        after = world.digests()
        assert run.exit_code == 3
        assert len(run.said) == 1
        assert run.said[0].startswith(f"'{what}' changed since the plan was made: it was ")
        assert after.get(what) != before.get(what)
        assert {name: after[name] for name in BYSTANDERS} == {name: before[name] for name in BYSTANDERS}
        world.assert_the_store_is_whole()
        assert_one_more_run_converges(world)


@in_turn("version")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("moment", range(1, 7))
def test_a_base_that_vanishes_at_any_moment_never_costs_the_model_made_from_it(
    version: str, moment: int, shelf: Shelf
) -> None:
    with shelf.a_world(version, BOT) as world:
        before = world.digests()["bot:latest"]
        deletion = f"{{model: '{BASE}', delete: true}}"
        world.arm(f"- {{on: {{endpoint: tags}}, call: {moment}, do: {{change_model: {deletion}}}}}")
        run = world.apply()
        world.calm()
        world.assert_the_store_is_whole()
        succeeded = run.outcomes.get("create/bot:latest") == "Succeeded"
        assert succeeded or world.digests()["bot:latest"] == before
        assert run.said or run.exit_code == 0
        assert_one_more_run_converges(world)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_restarts_between_any_two_calls_and_prunes_costs_nothing(
    version: str, shelf: Shelf
) -> None:
    with shelf.a_world(version, EVERYTHING) as world:
        run = carry_out(world, "- {on: {method: POST}, share: 0.5, seed: 1, do: {restart: {prune: true}}}")
    assert run.report is not None


# --- neighbours -----------------------------------------------------------------------------------------------------


@in_turn("version")
@pytest.mark.parametrize("version", ["0.3.4", *VERSIONS])
@pytest.mark.parametrize(
    ("on", "not_done"),
    [
        ("{endpoint: pull}", {"pull/qwen3:0.6b": "Failed", "create/child:latest": "Skipped"}),
        ("{endpoint: create, model: bot}", {"create/bot:latest": "Failed"}),
        (
            "{endpoint: blobs, method: POST}",
            {"upload/sha256:3f0699c1f0db": "Failed", "create/weights:latest": "Skipped"},
        ),
        (
            "{endpoint: blobs, method: HEAD}",
            {"upload/sha256:3f0699c1f0db": "Failed", "create/weights:latest": "Skipped"},
        ),
        ("{endpoint: copy}", {"copy/alias:latest": "Failed"}),
        ("{endpoint: delete}", {"delete/old-bot:latest": "Failed"}),
    ],
)
def test_one_failure_skips_what_needs_it_and_nothing_else(
    version: str, on: str, not_done: dict[str, str], shelf: Shelf
) -> None:
    with shelf.a_world(version, EVERYTHING) as world:
        run = carry_out(world, f"- {{on: {on}, do: {{status: 403}}}}")
    wanted = {
        "create/bot:latest": "Succeeded",
        "pull/qwen3:0.6b": "Succeeded",
        "create/child:latest": "Succeeded",
        "upload/sha256:3f0699c1f0db": "Succeeded",
        "create/weights:latest": "Succeeded",
        "copy/alias:latest": "Succeeded",
        "delete/old-bot:latest": "Succeeded",
    }
    assert run.outcomes == wanted | not_done
    assert run.exit_code == 3


# --- a model that is there and is pulled again ----------------------------------------------------------------------


@in_turn("version")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "do",
    [
        "{cut: 1}",
        "{cut: looks-complete}",
        "{reset: during}",
        "{status: 500}",
        "{disk_full: true}",
        "{error_then_success: broken}",
    ],
)
def test_a_model_that_cannot_be_updated_stays_as_it_is(version: str, do: str, shelf: Shelf) -> None:
    update = "- {name: theirs, update: latest, pull: 'qwen3:0.6b'}"
    with shelf.a_world(version, update, asks_registry=False) as world:
        before = world.digests()["theirs:latest"]
        world.arm(f"- {{on: {{endpoint: pull}}, do: {do}}}")
        run = world.apply()
        world.calm()
        world.assert_the_store_is_whole()
        assert run.exit_code == 3
        assert world.digests()["theirs:latest"] == before


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_can_show_nothing_loses_no_model_to_a_repair(version: str, shelf: Shelf) -> None:
    update = "- {name: 'llama3.2:3b', update: latest}"
    with shelf.a_world(version, update, asks_registry=False) as world:
        assert world.apply().exit_code == 0
        before = world.digests()
        world.arm(
            "- {on: {endpoint: show}, do: {status: 500}}\n"
            "- {on: {endpoint: pull}, call: 2.., do: {status: 503}}"
        )
        run = world.apply()
        world.calm()
        assert run.exit_code == 3
        assert world.digests() == before


# --- waiting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint", ["version", "tags", "show", "pull", "create", "copy", "delete, model: old-bot"]
)
def test_a_server_that_asks_for_time_is_given_it(endpoint: str, shelf: Shelf) -> None:
    with shelf.a_world("0.33.0-rc2", EVERYTHING) as world:
        run = carry_out(
            world, f"- {{on: {{endpoint: {endpoint}}}, call: 1, do: {{status: 429, retry_after: 4}}}}"
        )
    assert run.exit_code == 0
    assert max(run.waits) >= 4


def test_an_action_is_tried_as_often_as_the_manifest_says_and_each_retry_is_told(shelf: Shelf) -> None:
    with shelf.a_world("0.33.0-rc2", "- {name: 'qwen3:0.6b', retries: 4}") as world:
        run = carry_out(world, "- {on: {endpoint: pull}, do: {status: 503}}")
    assert run.retries == ["gpu-1: pull qwen3:0.6b: service unavailable"] * 4


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "exit_code", "words"),
    [
        ("[]", 0, ""),
        ("- {on: {endpoint: pull}, do: {status: 401, html: true}}", 3, "pull qwen3:0.6b: 401 Unauthorized"),
        ("- {on: {endpoint: create}, do: {disk_full: true}}", 3, "no space left on device"),
        (
            "- {on: {endpoint: tags}, do: {status: 404, html: true}}",
            3,
            "there is no Ollama API at this address",
        ),
        (
            "- {on: {endpoint: tags}, call: 1, do: {change_model: {model: bot, system: x}}}",
            3,
            "changed since the plan was made",
        ),
    ],
)
def test_apply_ends_with_the_documented_exit_code(
    faults: str, exit_code: int, words: str, shelf: Shelf, capfd: pytest.CaptureFixture[str]
) -> None:
    with shelf.a_world("0.33.0-rc2", EVERYTHING) as world:
        manifest = world.folder / "ollamaops.yaml"
        manifest.write_text(manifest.read_text().replace("http://127.0.0.1:1}", f"'{world.sandbox.url}'}}"))
        common = ["-f", str(manifest), "--state-dir", str(world.folder / "state"), "--no-registry"]
        world.arm(faults)
        assert run_command(["apply", "-y", *common]) == exit_code
        said = capfd.readouterr()
        assert words in " ".join((said.out + said.err).split())
        world.calm()
        assert run_command(["apply", "-y", *common]) == 0
        assert run_command(["plan", "--detailed-exitcode", *common]) == 0


# --- any script -----------------------------------------------------------------------------------------------------

ENDPOINTS = ("any", "version", "tags", "show", "blobs", "create", "copy", "delete", "pull")
DEEDS: tuple[Mapping[str, object], ...] = (
    {"status": 503, "retry_after": 2},
    {"status": 500},
    {"status": 429},
    {"status": 404},
    {"status": 400, "body": '{"error":"no"}'},
    {"status": 403, "html": True},
    {"status": 502, "html": True},
    {"status": 200, "html": True},
    {"latency": "5ms"},
    {"bandwidth": "1MB/s"},
    {"refuse": "10ms"},
    {"reset": "before"},
    {"reset": "during"},
    {"reset": "after"},
    {"cut": "looks-complete"},
    {"cut": "mid-line"},
    {"cut": 0},
    {"cut": 2},
    {"stall": True},
    {"stall": {"with_progress": True}},
    {"stall": {"for": "20ms", "after": 1}},
    {"error_then_success": "broken"},
    {"truncate_json": True},
    {"disk_full": True},
    {"vanish_blob": True},
    {"change_model": {"model": "bot", "system": "theirs now"}},
    {"change_model": {"model": "alias", "copy_from": "bot"}},
    {"restart": {"prune": True}},
    {"restart": {"prune": True, "when": "before"}},
)
WHEN = st.one_of(
    st.builds(lambda call: {"call": call}, st.integers(1, 5)),
    st.builds(lambda call: {"call": f"{call}.."}, st.integers(1, 5)),
    st.builds(
        lambda share, seed, times: {"share": share, "seed": seed, "times": times},
        st.sampled_from([0.2, 0.5, 0.8]),
        st.integers(0, 99),
        st.integers(1, 6),
    ),
)
RULES = st.builds(
    lambda endpoint, do, when: {"on": {"endpoint": endpoint}, "do": do, **when},
    st.sampled_from(ENDPOINTS),
    st.sampled_from(DEEDS),
    WHEN,
)


def assert_any_script_is_survived(rules: list[dict[str, object]], version: str, shelf: Shelf) -> None:
    """Bystanders are never touched; what others changed on purpose is not compared."""
    with shelf.a_world(version, EVERYTHING, limits=HASTY) as world:
        before = world.digests()
        world.arm(json.dumps(rules))
        run = world.apply()
        world.calm()
        world.limits = PATIENT
        run.assert_every_action_has_one_outcome()
        assert run.exit_code == (3 if run.said or run.remaining else 0)
        after = world.digests()
        assert {name: after.get(name) for name in BYSTANDERS} == {name: before[name] for name in BYSTANDERS}
        assert {"bot:latest", "alias:latest"} <= after.keys()
        world.assert_the_store_is_whole()
        assert_one_more_run_converges(world)
        assert {name: world.digests()[name] for name in BYSTANDERS} == {
            name: before[name] for name in BYSTANDERS
        }


@in_turn("version")
@pytest.mark.parametrize("version", VERSIONS)
@fewer_examples(by=10)
@given(rules=st.lists(RULES, min_size=1, max_size=4))
@example(rules=[{"on": {"endpoint": "any"}, "do": {"status": 500}, "share": 0.3, "seed": 1, "times": 9}])
def test_any_script_of_faults_ends_and_the_next_run_converges(
    version: str, shelf: Shelf, rules: list[dict[str, object]]
) -> None:
    assert_any_script_is_survived(rules, version, shelf)
