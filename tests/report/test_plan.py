"""Plans as people read them, line by line and as whole reports."""

from __future__ import annotations

import re

import pytest
from golden import Golden
from hypothesis import given
from msgspec.structs import replace
from plan_strategies import PLANS
from report_values import (
    NEW_PROMPT,
    NOW,
    OLD,
    PROMPT,
    a_copy,
    a_create,
    a_delete,
    a_name,
    a_pull,
    a_weights_create,
    an_upload,
    fleet_plan,
    in_sync_plan,
    mixed_plan,
    names,
    refused_plan,
    small_plan,
    why,
)

from ollamaops.names import Digest
from ollamaops.plan.actions import (
    Action,
    Blob,
    Cost,
    Difference,
    HostPlan,
    Kind,
    Note,
    Plan,
    PushModel,
    Recipe,
    UnreachedHost,
    continues_another,
)
from ollamaops.plan.diff import SERVERS_OWN
from ollamaops.report.diff_text import render_diff
from ollamaops.report.differences import diff_lines, field_diff, render_difference, render_reasons
from ollamaops.report.plan_text import count_plan, render_plan

PLANS_BY_NAME = {
    "small": small_plan,
    "in-sync": in_sync_plan,
    "mixed": mixed_plan,
    "refused": refused_plan,
    "fleet": fleet_plan,
}
OURS = re.compile(r"\x1b\[(0|1|2|31|32|33|35|36)m")


def plan_of(*actions: Action, unchanged: int = 0) -> Plan:
    models = names(*(f"m{number}" for number in range(unchanged)))
    return Plan(hosts=(HostPlan(host="gpu-1", actions=actions, unchanged=models),))


def first_line(plan: Plan) -> str:
    return render_plan(plan).splitlines()[0]


def last_line(plan: Plan) -> str:
    return render_plan(plan).splitlines()[-1]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", PLANS_BY_NAME)
def test_a_plan_reads_as_its_golden_file(name: str, width: int, golden: Golden) -> None:
    golden(f"plan-{name}-{width}.txt", render_plan(PLANS_BY_NAME[name](), width=width))


def test_a_verbose_plan_adds_diffs_uploads_and_what_stays(golden: Golden) -> None:
    golden("plan-mixed-verbose.txt", render_plan(mixed_plan(), width=100, verbose=True))


def test_a_colored_plan_says_the_same_with_colors(golden: Golden) -> None:
    colored = render_plan(mixed_plan(), color=True, verbose=True, width=80)
    golden("plan-mixed-color.txt", colored)
    assert OURS.sub("", colored) == render_plan(mixed_plan(), verbose=True, width=80)


@pytest.mark.parametrize(
    "action, line",
    [
        (
            a_pull("qwen3:32b", size=20_200_000_000, present=1_100_000_000),
            "+ qwen3:32b on gpu-1: pull, not there: 20.2 GB (1.1 GB already there)",
        ),
        (a_pull("qwen3:32b", size=None), "+ qwen3:32b on gpu-1: pull, not there: size not known"),
        (
            a_pull("qwen3:32b", size=0, present=10**9),
            "+ qwen3:32b on gpu-1: pull, not there: nothing to download (1.0 GB already there)",
        ),
        (
            a_pull("llama3", kind="content"),
            "~ llama3:latest on gpu-1: pull: content 3f2a3f2a3f2a → 9f2c9f2c9f2c: 2.0 GB",
        ),
        (
            a_pull("llama3", kind="unknown", size=None),
            "? llama3:latest on gpu-1: pull, the server finds out whether it is current: size not known",
        ),
        (a_create(), "+ support-bot:latest on gpu-1: create from qwen3:32b, not there"),
        (
            a_create(because=why("support-bot", "field", "parameters.temperature", "0.2", "0.7")),
            "~ support-bot:latest on gpu-1: create: parameters.temperature 0.7 → 0.2",
        ),
        (
            a_create(because=why("support-bot", "base", desired="qwen3:32b")),
            "~ support-bot:latest on gpu-1: create, its base qwen3:32b changes",
        ),
        (
            replace(a_weights_create(), needs=()),
            "+ legal-7b:v3 on gpu-1: create from legal-7b-f16.gguf as q4_K_M, not there",
        ),
        (a_copy(), "→ chat:latest on gpu-1: copy of qwen3:32b, not there"),
        (
            a_copy(because=why("chat", "alias", "digest", f"qwen3:32b ({NOW[:12]})", OLD[:12])),
            "~ chat:latest on gpu-1: copy of qwen3:32b, is 3f2a3f2a3f2a, not qwen3:32b (9f2c9f2c9f2c)",
        ),
        (a_delete(), "- old:latest on gpu-1: delete, declared absent"),
        (
            an_upload(),
            "→ sha256:9f2c9f2c9f2c on gpu-1: upload of weights/legal-7b-f16.gguf: 4.1 GB",
        ),
        (
            PushModel(
                host="gpu-1",
                model=a_name("me/bot"),
                source=a_name("me/bot"),
                because=why("me/bot", "unpushed"),
            ),
            "→ me/bot:latest on gpu-1: push, not known to be in the registry",
        ),
        (replace(a_delete(), because=()), "- old:latest on gpu-1: delete"),
    ],
)
def test_a_line_says_what_where_why_and_what_it_costs(action: Action, line: str) -> None:
    assert first_line(plan_of(action)) == line


@pytest.mark.parametrize(
    "upload, cost",
    [
        (an_upload(), "upload 4.1 GB"),
        (an_upload(size=3_000_000_000, present=1_100_000_000), "upload 3.0 GB (1.1 GB already there)"),
        (an_upload(size=0, present=4_100_000_000), "nothing to upload (4.1 GB already there)"),
    ],
)
def test_uploads_are_a_cost_of_the_create_that_needs_them(upload: Action, cost: str) -> None:
    lines = render_plan(plan_of(upload, a_weights_create())).splitlines()
    assert lines[0] == f"+ legal-7b:v3 on gpu-1: create from legal-7b-f16.gguf as q4_K_M, not there: {cost}"
    assert len(lines) == 2


def test_a_blob_for_two_models_is_counted_once() -> None:
    other = replace(a_weights_create(), model=a_name("legal-7b:v4"))
    lines = render_plan(plan_of(an_upload(), a_weights_create(), other)).splitlines()
    assert [": upload" in line for line in lines[:2]] == [True, False]
    assert lines[-1] == "0 to pull, 2 to create, 0 to delete, 0 unchanged; 4.1 GB to upload"


@pytest.mark.parametrize(
    "recipe, origin",
    [
        (Recipe(), "create"),
        (Recipe(base=a_name("qwen3")), "create from qwen3:latest"),
        (Recipe(base=a_name("qwen3"), quantize="q8_0"), "create from qwen3:latest as q8_0"),
        (Recipe(files=(Blob("a.gguf", Digest(NOW)),)), "create from a.gguf"),
        (
            Recipe(files=(Blob("a.gguf", Digest(NOW)), Blob("b.gguf", Digest(NOW)))),
            "create from a.gguf and 1 more file",
        ),
        (
            Recipe(files=tuple(Blob(f"{n}.gguf", Digest(NOW)) for n in range(3)), quantize="q8_0"),
            "create from 0.gguf and 2 more files as q8_0",
        ),
    ],
)
def test_a_new_model_says_what_it_is_made_from(recipe: Recipe, origin: str) -> None:
    assert first_line(plan_of(replace(a_create(), recipe=recipe))) == (
        f"+ support-bot:latest on gpu-1: {origin}, not there"
    )


def test_equal_lines_of_many_hosts_are_one_line() -> None:
    hosts = tuple(
        HostPlan(host=f"gpu-{number}", actions=(a_pull("llama3.2:3b", host=f"gpu-{number}"),))
        for number in range(1, 21)
    )
    line = "+ llama3.2:3b on gpu-1, gpu-2 and 18 more: pull, not there: 2.0 GB each"
    assert render_plan(Plan(hosts=hosts)).splitlines()[:-1] == [line]


def test_deletions_come_last() -> None:
    plan = Plan(
        hosts=(
            HostPlan(host="gpu-1", actions=(a_pull("a"), a_delete("b"))),
            HostPlan(host="gpu-2", actions=(a_pull("c", host="gpu-2"),)),
        )
    )
    assert [line[0] for line in render_plan(plan).splitlines()[:-1]] == ["+", "+", "-"]


@pytest.mark.parametrize(
    "plan, counts",
    [
        (
            plan_of(a_pull("a"), unchanged=12),
            "1 to pull, 0 to create, 0 to delete, 12 unchanged; 2.0 GB to download",
        ),
        (plan_of(a_delete()), "0 to pull, 0 to create, 1 to delete, 0 unchanged"),
        (plan_of(a_copy()), "0 to pull, 0 to create, 1 to copy, 0 to delete, 0 unchanged"),
        (
            plan_of(a_pull("a"), a_pull("b", size=None)),
            "2 to pull, 0 to create, 0 to delete, 0 unchanged; 2.0 GB + ? to download",
        ),
        (plan_of(a_pull("b", size=None)), "1 to pull, 0 to create, 0 to delete, 0 unchanged; ? to download"),
        (plan_of(unchanged=12), "nothing to do: 12 models on 1 host are as declared"),
        (plan_of(unchanged=1), "nothing to do: 1 model on 1 host is as declared"),
        (plan_of(), "nothing to do: 0 models on 1 host are as declared"),
        (
            replace(plan_of(unchanged=2), unreached=(UnreachedHost(host="gpu-2", error="no answer"),)),
            "nothing to do as far as is known: 2 models on 1 host as declared; 1 host not reached",
        ),
        (
            Plan(hosts=(HostPlan(host="a", unchanged=names("x"), unmanaged=names("y", "z")),)),
            "nothing to do: 1 model on 1 host is as declared; 2 not declared",
        ),
        (
            Plan(hosts=(HostPlan(host="a", notes=(Note(host="a", message="?", unresolved=True),)),)),
            "nothing to do as far as is known: 0 models on 1 host as declared; 1 unknown",
        ),
        (refused_plan(), "0 to pull, 0 to create, 5 to delete, 7 unchanged; 1 refused"),
    ],
)
def test_the_last_line_counts(plan: Plan, counts: str) -> None:
    assert last_line(plan) == counts


def test_the_counts_of_a_plan_are_there_as_numbers() -> None:
    counts = count_plan(mixed_plan())
    done = {"pull": 4, "create": 3, "copy": 3, "delete": 3, "push": 1}
    assert counts.actions == done | {"verify": 0, "load": 0, "unload": 0}
    assert (counts.download_bytes, counts.download_unknown, counts.upload_bytes) == (
        42_400_000_000,
        True,
        4_100_000_000,
    )
    assert not counts.is_empty


def test_a_host_is_named_once_in_its_own_line() -> None:
    line = render_plan(mixed_plan()).splitlines()[-3]
    assert line == "! gpu-3: not reached: connection refused; its state is unknown, nothing is planned for it"


def test_a_line_too_narrow_for_its_hosts_is_wrapped_and_not_cut() -> None:
    hosts = tuple(
        UnreachedHost(host=f"a-host-with-a-name-{number}", error="no answer") for number in range(2)
    )
    lines = render_plan(Plan(hosts=(), unreached=hosts), width=30, color=True).splitlines()
    assert lines[:2] == ["! a-host-with-a-name-0 and", "    a-host-with-a-name-1: not"]


def a_field(path: str, observed: str, desired: str, kind: Kind = "field") -> Difference:
    (difference,) = why("bot", kind, path, desired, observed)
    return difference


LONG = "You are a helpful assistant of Example Corp and you answer in {} only, briefly."


@pytest.mark.parametrize(
    "difference, phrase",
    [
        (a_field("parameters.temperature", "0.7", "0.2"), "parameters.temperature 0.7 → 0.2"),
        (a_field("parameters.top_k", "", "40"), "parameters.top_k not set → 40"),
        (a_field("parameters.top_k", "40", ""), "parameters.top_k 40 → not set"),
        (a_field("parameters.stop", '["a"]', '["a", "b c"]'), 'parameters.stop ["a"] → ["a", "b c"]'),
        (a_field("system", "Be brief.", "Be kind."), 'system "Be brief." → "Be kind."'),
        (a_field("system", PROMPT, NEW_PROMPT), "system +3 −2 lines"),
        (a_field("system", "", NEW_PROMPT), "system not set → 5 lines"),
        (a_field("system", PROMPT, ""), "system 4 lines → not set"),
        (a_field("template", "{{ .Prompt }}\n\n", SERVERS_OWN), "template is left to the server"),
        (a_field("parameters.stop", "", SERVERS_OWN), "parameters.stop is left to the server"),
        (a_field("system", "Be brief.\n", "Be  brief."), "system differs in white space only"),
        (a_field("system", "One line.", "Two\nlines."), "system +2 −1 lines"),
        (
            a_field("system", LONG.format("French"), LONG.format("German")),
            'system "…nswer in French only, br…" → "…nswer in German only, br…"',
        ),
        (a_field("system", "x" * 50, "y" * 60), f'system {"x" * 50} → "{"y" * 53}…"'),
        (a_field("template", "x " * 40, ""), f'template "{("x " * 27)[:-1]}…" → not set'),
        (a_field("system", "a\n" * 2001, "b\n" * 2002), "system 2001 lines → 2002 lines"),
        (a_field("", OLD, NOW, "content"), "content 3f2a3f2a3f2a → 9f2c9f2c9f2c"),
        (a_field("weights", "not verified", "verified", "weights"), "weights not verified → verified"),
        (a_field("weights", "3f2a3f2a3f2a", "", "weights"), "weights 3f2a3f2a3f2a → not set"),
        (
            a_field("weights", "3f2a3f2a3f2a", "3f2a3f2a3f2a", "weights"),
            "weights declared differently than before",
        ),
        (a_field("quantization", "F16", "Q8_0", "weights"), "quantization F16 → Q8_0"),
        (a_field("projectors", "0", "1", "weights"), "1 projector declared, none there"),
        (a_field("adapters", "1", "2", "weights"), "2 adapters declared, 1 there"),
        (a_field("adapters or drafts", "1", "0", "weights"), "no adapter or draft declared, 1 there"),
        (a_field("adapters and drafts", "0", "2", "weights"), "2 adapters and drafts declared, none there"),
        (a_field("", "", "", "missing"), "not there"),
        (a_field("", "listed, but it cannot be shown", "", "missing"), "listed, but it cannot be shown"),
        (a_field("", "", "", "unwanted"), "declared absent"),
        (a_field("", "", "", "undeclared"), "not declared, and in the scope of prune"),
        (a_field("", "", "qwen3:32b", "base"), "its base qwen3:32b changes"),
        (a_field("", "", "", "base"), "its base changes"),
        (a_field("", "", "qwen3:32b", "alias"), "is another model, not qwen3:32b"),
        (a_field("", "nomic:latest", "embed:latest", "moved"), "its name before"),
        (a_field("", "", "embed:latest", "moved"), "renamed to embed:latest"),
        (a_field("", "", "", "unpushed"), "not known to be in the registry"),
        (a_field("", "nothing", "", "unpushed"), "not in the registry"),
        (a_field("", OLD, "", "unpushed"), "the registry has 3f2a3f2a3f2a instead"),
        (a_field("", "", "latest", "unknown"), "the server finds out whether it is current"),
    ],
)
def test_a_difference_is_one_short_phrase(difference: Difference, phrase: str) -> None:
    assert render_difference(difference) == phrase


def test_many_differences_are_counted_unless_everything_is_wanted() -> None:
    because = [a_field(f"parameters.p{number}", "1", "2") for number in range(6)]
    assert render_reasons(because) == (
        ": parameters.p0 1 → 2; parameters.p1 1 → 2; parameters.p2 1 → 2; and 3 more"
    )
    assert render_reasons(because[:4]).endswith("; parameters.p3 1 → 2")
    assert render_reasons(because, everything=True).endswith("; parameters.p5 1 → 2")


def test_a_reason_is_said_once() -> None:
    assert render_reasons([*why("a", "missing"), *why("a", "missing")]) == ", not there"


def test_a_diff_shows_every_value_in_full(golden: Golden) -> None:
    golden("diff-all.txt", render_diff(mixed_plan()))


@pytest.mark.parametrize("model", ["support-bot", "mario", "legal-7b:v3", "scratch/try-1", "nobody"])
def test_a_diff_of_one_model_is_about_that_model(model: str, golden: Golden) -> None:
    golden(
        f"diff-{model.replace('/', '-').replace(':', '-')}.txt",
        render_diff(mixed_plan(), a_name(model), width=100),
    )


def test_a_pull_under_another_name_belongs_to_the_diff_of_the_model() -> None:
    pull = replace(a_pull("localhost:5000/corp/bot"), because=why("mirror", "missing"))
    assert "localhost:5000/corp/bot:latest on gpu-1: pull" in render_diff(plan_of(pull), a_name("mirror"))


def test_texts_that_differ_only_in_the_last_newline_have_a_diff() -> None:
    assert diff_lines("a\nb\n", "a\nb") == ["@@ -1,3 +1,2 @@", " a", " b", "-"]


def test_a_text_too_long_to_compare_is_not_compared() -> None:
    difference = a_field("system", "a\n" * 2001, "b")
    assert field_diff(difference) == ["@@ texts too long to compare line by line @@"]


def test_a_very_long_diff_is_cut_in_a_plan_and_whole_in_a_diff() -> None:
    change = a_field("system", "a\n", "".join(f"line {number}\n" for number in range(100)))
    plan = plan_of(a_create(because=(change,)))
    assert "@@ and 62 more lines @@" in render_plan(plan, verbose=True)
    assert "+line 99" in render_diff(plan)


@given(PLANS)
def test_no_text_of_a_plan_reaches_the_terminal_raw(plan: Plan) -> None:
    for verbose in (False, True):
        for width in (None, 80):
            shown = OURS.sub("", render_plan(plan, color=True, verbose=verbose, width=width))
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
            assert shown.encode().decode() == shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", render_diff(plan))


@given(PLANS)
def test_colors_change_nothing_but_colors(plan: Plan) -> None:
    colored = render_plan(plan, color=True, verbose=True, width=80)
    assert OURS.sub("", colored) == render_plan(plan, verbose=True, width=80)


@given(PLANS)
def test_the_counts_add_up_to_the_actions(plan: Plan) -> None:
    uploads = sum(type(action).__name__ == "UploadBlob" for action in plan.actions)
    parts = sum(continues_another(action) for action in plan.actions)
    assert sum(count_plan(plan).actions.values()) + uploads == len(plan.actions) - parts


def test_a_cost_of_many_hosts_is_each_hosts_cost() -> None:
    hosts = tuple(
        HostPlan(
            host=host,
            actions=(replace(a_pull("a", host=host), cost=Cost(download_bytes=10**9, present_bytes=10**8)),),
        )
        for host in ("x", "y")
    )
    assert first_line(Plan(hosts=hosts)).endswith(": 1.0 GB each (100 MB already there)")


LASTING = Note(
    host="gpu-1",
    model=a_name("bot"),
    message="the declared template is not in force",
    hint="drop template:",
    lasting=why("bot", "template", "effective_template", "t\n", "{% tools %}\n"),
)


def test_drift_that_no_action_mends_is_not_called_as_declared() -> None:
    plan = Plan(hosts=(HostPlan(host="gpu-1", unchanged=names("chat"), notes=(LASTING,)),))
    assert render_plan(plan).splitlines() == [
        "! bot:latest on gpu-1: the declared template is not in force",
        "    hint: drop template:",
        "nothing that apply can do: 1 model on 1 host as declared; 1 not, which apply cannot mend",
    ]


def test_a_diff_shows_the_template_that_is_used() -> None:
    plan = Plan(hosts=(HostPlan(host="gpu-1", notes=(LASTING,)),))
    assert render_diff(plan, a_name("bot")).splitlines() == [
        "! bot:latest on gpu-1: the declared template is not in force",
        "    effective_template:",
        "    @@ -1 +1 @@",
        "    -{% tools %}",
        "    +t",
        "    hint: drop template:",
    ]
