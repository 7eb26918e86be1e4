"""Plans and runs as Markdown, HTML, JSON and JUnit: whole, valid, and safe against what they quote."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from golden import Golden
from hypothesis import given
from plan_strategies import PLANS
from report_values import (
    a_clean_run,
    a_create,
    a_run,
    in_sync_plan,
    mixed_plan,
    refused_plan,
    small_plan,
    why,
)

from ollamaops.plan.actions import HostPlan, Plan
from ollamaops.plan.codec import fingerprint, plan_from_json
from ollamaops.report.json_output import fields_to_json, plan_report_to_json, render_json, run_to_json
from ollamaops.report.junit import drift_to_junit
from ollamaops.report.lines import Line
from ollamaops.report.markdown_html import (
    render_html,
    render_markdown,
    render_plan_html,
    render_plan_markdown,
    render_run_html,
    render_run_markdown,
)
from ollamaops.report.status_text import build_status

NASTY = '```\n</details><script>alert(1)</script>\n@octocat #1 <b>&amp; "quoted" \x1b[31m | `tick`\n````'


def a_nasty_plan() -> Plan:
    change = why("support-bot", "field", "system", NASTY, "kind\nwords")
    return Plan(hosts=(HostPlan(host="<gpu>", actions=(a_create(host="<gpu>", because=change),)),))


class Page(HTMLParser):
    """The tags of a page, and what is open at its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_plan_as_markdown_reads_as_its_golden_file(golden: Golden) -> None:
    golden("plan-mixed.md", render_plan_markdown(mixed_plan()))
    golden("plan-small.md", render_plan_markdown(small_plan()))


def test_a_run_as_markdown_reads_as_its_golden_file(golden: Golden) -> None:
    golden("run-mixed.md", render_run_markdown(a_run()))
    golden("run-clean.md", render_run_markdown(a_clean_run()))


def test_a_plan_and_a_run_as_html_read_as_their_golden_files(golden: Golden) -> None:
    golden("plan-mixed.html", render_plan_html(mixed_plan()))
    golden("run-mixed.html", render_run_html(a_run()))


def test_markdown_quotes_foreign_text_in_a_fence_that_it_cannot_close(golden: Golden) -> None:
    text = render_plan_markdown(a_nasty_plan())
    golden("plan-nasty.md", text)
    fence = re.findall(r"^(`{3,})(?:diff)?$", text, flags=re.MULTILINE)
    assert fence == ["`````", "`````"]


def test_markdown_outside_the_fence_is_escaped() -> None:
    text = render_markdown("a *b* <c>", [], "@user #1 [x](y)")
    assert text == "### a \\*b\\* \\<c\\>\n\n**\\@user \\#1 \\[x\\](y)**\n"


def test_a_long_markdown_report_is_folded_and_cut_to_what_a_comment_holds() -> None:
    lines = [Line(mark="new", subject=f"model-{number}", text="pull " * 20) for number in range(1000)]
    text = render_markdown("plan", lines, "1000 to pull")
    assert "<details><summary>details</summary>" in text
    assert len(text) < 65_536
    assert re.search(r"^… and \d+ more lines$", text, flags=re.MULTILINE)


def test_html_shows_foreign_text_and_runs_none_of_it() -> None:
    page = Page(render_plan_html(a_nasty_plan()))
    assert "script" not in page.tags
    assert page.open == []


@given(PLANS)
def test_html_has_the_same_tags_whatever_it_quotes(plan: Plan) -> None:
    page = Page(render_plan_html(plan))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "p", "table", "tr", "td", "pre", "div"}
    assert set(page.tags) <= allowed
    assert page.open == []


def test_an_empty_page_has_its_summary() -> None:
    text = render_html("ollamaops plan", [], "nothing to do")
    assert '<p class="summary">nothing to do</p>' in text


def test_the_json_of_a_plan_can_be_saved_and_applied() -> None:
    document = json.loads(render_json(plan_report_to_json(mixed_plan())))
    assert plan_from_json(document) == mixed_plan()
    assert document["summary"]["actions"]["pull"] == 4
    assert document["fingerprint"] == fingerprint(mixed_plan())


def test_json_is_written_in_ascii() -> None:
    assert render_json(plan_report_to_json(a_nasty_plan())).isascii()
    assert render_json("\x9b\u202e") == '"\\u009b\\u202e"\n'


def test_the_json_of_a_run_reads_as_its_golden_file(golden: Golden) -> None:
    golden("run-mixed.json", render_json(run_to_json(a_run())))


@pytest.mark.parametrize("value", [1, "x", ("a",)])
def test_only_dataclasses_have_fields(value: object) -> None:
    with pytest.raises(TypeError, match="has no fields"):
        fields_to_json(value)


def test_drift_as_junit_reads_as_its_golden_file(golden: Golden) -> None:
    golden("drift-mixed.xml", drift_to_junit(mixed_plan()))


@pytest.mark.parametrize("plan", [mixed_plan(), in_sync_plan(), refused_plan(), a_nasty_plan()])
def test_junit_counts_what_it_lists(plan: Plan) -> None:
    root = ET.fromstring(drift_to_junit(plan))
    for suite in root:
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(suite.attrib["errors"]) == len(suite.findall("testcase/error"))
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))


@given(PLANS)
def test_junit_is_valid_xml_whatever_it_quotes(plan: Plan) -> None:
    cases = ET.fromstring(drift_to_junit(plan)).findall("testsuite/testcase")
    table = build_status(plan)
    hosts = {host.host for host in plan.hosts}
    assert len(cases) >= sum(len(set(row) & hosts) for row in table.values())
