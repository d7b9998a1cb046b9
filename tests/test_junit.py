"""JUnit XML: counts, elements and properties as CI systems read them, and names that try to break out of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import statecheck
from hypothesis import given
from hypothesis import strategies as st
from report_cases import NASTY, bare, item, nasty, part, passing, report_of

from statecheck.escaping import visible
from statecheck.report.junit import junit, write_junit
from statecheck.report.record import Report, make_report
from statecheck.verdict import Bound, Criterion, Measurement, Status, Verdict

CASE = "1x3@0: feed(0:1) feed(1:3) == feed(0:3)"


def broken(case: str = CASE, asked: tuple[str, ...] = ("my models:build", "--dtype", "float64")) -> Report:
    """CHUNK broken by a case on one route."""
    note = f"simplest: {case} gives 0.5 relative, first at row 0, position 1, feature 1: expected 2, found 3"
    criterion = Criterion("CHUNK.native", (Bound.parse("< 30"),), (Bound.parse("> 30"),), "test", "Look at the cache.")
    number = Measurement("CHUNK.native", 400.0, "floors", low=400.0, high=400.0, note=note, broken=case)
    native = Verdict("CHUNK.native", Status.FAIL, f"400 floors; {note}", "", (number,), (criterion,))
    row = Verdict(
        *("CHUNK", Status.FAIL, native.reason, "Several elements", (number,), (criterion,)),
        parts=(native, Verdict("CHUNK.functional", Status.SKIP, "no set_states")),
        shown=(Measurement("noise floor", 1.25e-3, "relative"),),
    )
    return make_report(
        [row, Verdict("STEP", Status.PASS, "fine")],
        model={"title": "toy", "asked": list(asked)},
        suite={"name": "conformance", "digest": "ab" * 32},
        inputs="",
        timings={"items": {"CHUNK": 1.25, "STEP": 0.5}},
        seed=7,
    )


def read(report: Report) -> ElementTree.Element:
    """The one testsuite, parsed back."""
    root = ElementTree.fromstring(junit(report))
    assert root.tag == "testsuites"
    (suite,) = root
    return suite


def test_a_suite_has_its_counts_its_time_and_its_properties() -> None:
    suite = read(broken())
    assert (suite.tag, suite.get("name"), suite.get("time")) == ("testsuite", "statecheck conformance", "1.750")
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    properties = {one.get("name"): one.get("value") for one in suite.iterfind("properties/property")}
    assert properties.keys() >= {"model", "verdict", "seed", "suite_digest", "exit_code", "statecheck"}
    assert (properties["seed"], properties["suite_digest"], properties["verdict"]) == ("7", "ab" * 32, "FAIL")


def test_each_part_is_a_testcase_and_an_item_without_parts_is_one() -> None:
    cases = [(case.get("classname"), case.get("name")) for case in read(broken()).iterfind("testcase")]
    law = "statecheck conformance.CHUNK"
    assert cases == [(law, "CHUNK.native"), (law, "CHUNK.functional"), ("statecheck conformance.STEP", "STEP")]


def test_the_text_of_a_broken_law_has_the_case_and_the_command_that_plays_it() -> None:
    text = read(broken()).findtext("testcase/failure") or ""
    lines = [line.strip() for line in text.splitlines()]
    assert f"case: {CASE}" in lines
    first = "first at row 0, position 1, feature 1: expected 2, found 3"
    assert f"found: 0.5 relative (noise floor 0.0013), {first}" in lines
    assert "Look at the cache." in lines
    (replay,) = [line.removeprefix("replay: ") for line in lines if line.startswith("replay: ")]
    model = ["my models:build", "--dtype", "float64"]
    assert shlex.split(replay) == ["statecheck", "conform", *model, "--law", "CHUNK", "--case", CASE, "--seed", "7"]


def test_a_case_that_no_option_takes_is_replayed_as_a_search() -> None:
    text = read(broken(case="(1, 5, 2, 33)")).findtext("testcase/failure") or ""
    assert "--law CHUNK --seed 7" in text
    assert "--case" not in text


@pytest.mark.parametrize(
    ("status", "required", "element"),
    [
        (Status.PASS, True, None),
        (Status.WARN, True, "system-out"),
        (Status.FAIL, False, "failure"),
        (Status.STALE, True, "failure"),
        (Status.ERROR, False, "error"),
        (Status.INCONCLUSIVE, True, "error"),
        (Status.INCONCLUSIVE, False, "skipped"),
        (Status.SKIP, True, "skipped"),
        (Status.NOT_APPLICABLE, True, "skipped"),
        (Status.XFAIL, True, "skipped"),
    ],
)
def test_the_element_of_each_status(status: Status, required: bool, element: str | None) -> None:
    suite = read(report_of(Verdict("D1", status, "made up", required=required)))
    (case,) = suite.iterfind("testcase")
    assert [child.tag for child in case] == ([element] if element else [])
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert [name for name, kind in kinds.items() if suite.get(name) == "1"] == [
        n for n, k in kinds.items() if k == element
    ]
    if element:
        assert "made up" in (case[0].get("message") or case[0].text or "")


def test_what_a_budget_ended_is_an_error() -> None:
    ended = Verdict("STEP.native", Status.SKIP, "not run to its end", unfinished=True)
    suite = read(report_of(Verdict("STEP", Status.SKIP, "not run to its end", parts=(ended,), unfinished=True)))
    assert (suite.get("errors"), suite.get("skipped")) == ("1", "0")


def test_parts_of_one_name_are_told_apart_by_their_place() -> None:
    row = item(part("D1.growth", Status.PASS, 1), part("D1.growth", Status.FAIL, 12))
    assert [case.get("name") for case in read(report_of(row)).iterfind("testcase")] == [
        "D1.growth (component lstm, layer 1)"
    ] * 2


def test_hostile_names_stay_data() -> None:
    """Markup, escape codes, nulls and what XML can't hold at all come back as visible text."""
    suite = read(nasty())
    names = {case.get("name") for case in suite.iterfind("testcase")}
    assert visible(NASTY) in names
    worse = "\x00\ufffe\ud800]]>\"'&<a/>\r\n"
    suite = read(report_of(bare(worse, Status.FAIL, worse), title=worse))
    (case,) = suite.iterfind("testcase")
    assert case.get("name") == visible(worse)
    assert [child.tag for child in case] == ["failure"]


@given(st.text(), st.text())
def test_any_text_can_be_parsed_back(name: str, reason: str) -> None:
    (case,) = read(report_of(bare(name, Status.ERROR, reason))).iterfind("testcase")
    assert (case.get("name"), case[0].text or "") == (visible(name), visible(reason))


def test_the_file_is_utf_8(tmp_path: Path) -> None:
    write_junit(report_of(bare("ß", Status.FAIL, "größer"), title="ü"), tmp_path / "x.xml")
    root = ElementTree.parse(tmp_path / "x.xml").getroot()
    assert [failure.text for failure in root.iter("failure")] == ["größer"]
    assert 'encoding="utf-8"' in (tmp_path / "x.xml").read_text("utf-8").splitlines()[0]


def test_nothing_at_all_is_a_suite_of_none() -> None:
    assert read(make_report([], model={}, suite={}, inputs="")).get("tests") == "0"
    assert read(passing()).get("failures") == "0"


def test_the_commands_write_it(tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "laws.xml"
    done = statecheck("conform", "lawless_models:restarts", "--law", "CHUNK", "--out", out, "--junit", file)
    assert done.returncode == 1, done.stderr
    assert "statecheck conform lawless_models:restarts --law CHUNK" in file.read_text()
    done = statecheck("run", "lawless_models:sound", "--suite", "smoke", "--out", tmp_path / "b", "--junit", file)
    assert done.returncode == 0, done.stderr
    assert ElementTree.parse(file).getroot()[0].get("failures") == "0"
