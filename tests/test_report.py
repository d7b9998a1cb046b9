"""The report as a value, as files and on a terminal; names from models never leave their place."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from report_cases import NASTY, bare, item, nasty, part, passing, report_of, rms
from rich.console import Console

from statecheck.errors import StatecheckError
from statecheck.escaping import visible
from statecheck.report.markdown import escape, escape_line, gate_markdown, statefulness_markdown, write_reports
from statecheck.report.prose import answer, remedy
from statecheck.report.record import Report, make_report, to_plain
from statecheck.report.rows import row_of
from statecheck.report.terminal import print_report
from statecheck.verdict import Measurement, Status, Verdict

P, F = Status.PASS, Status.FAIL


def failing(layers: int = 0) -> Report:
    growth = part("D1.growth", F, 12, 10.5, 14)
    finite = part("D1.nonfinite", P, 0, passes="< 0.5", fails="> 0.5")
    return report_of(
        item(growth, finite, title="Divergence", series=rms("state RMS", layers)),
        bare("extended", Status.SKIP, "no training log was given"),
    )


# The value


def test_a_report_answers_by_item_and_by_part() -> None:
    report = failing()
    assert (report.verdict, report.path, report.exit_code) == ("FAIL", "C", 1)
    assert report.failures == ["D1"]
    assert [row.id for row in report] == ["D1", "extended"]
    assert report["D1"].status is F
    assert report["D1.nonfinite"].status is P
    assert report["extended"].reason == "no training log was given"


def test_an_unknown_item_teaches() -> None:
    with pytest.raises(KeyError, match=re.escape("no item 'D1.grow'; did you mean D1.growth?")):
        failing()["D1.grow"]


def test_of_parts_with_one_name_the_worst_speaks() -> None:
    parts = (part("S2.x", P, 1), part("S2.x", F, 11), part("S2.x", Status.WARN, 3))
    assert report_of(item(*parts))["S2.x"].status is F


def test_only_failures_are_failures() -> None:
    others = [bare(f"D{i}", status, "made up") for i, status in enumerate(Status) if status is not F]
    assert report_of(*others, bare("S0", F, "made up")).failures == ["S0"]


def test_json_has_the_documented_keys() -> None:
    data = json.loads(failing().to_text())
    assert data["schema"] == 1
    assert {"verdict", "path", "exit_code", "model", "suite", "environment", "timings", "seed", "inputs"} <= set(data)
    first = data["items"][0]
    assert {"id", "status", "reason", "measurements", "criteria", "parts", "shown", "series", "notes"} <= set(first)
    number = {"name", "value", "unit", "where", "low", "high", "n", "seed"}
    assert number <= set(first["measurements"][0])
    assert first["criteria"][0]["source"] == "phase 3.9"


@pytest.mark.parametrize("report", [failing(), passing(), nasty(), make_report([], model={}, suite={}, inputs="")])
def test_reports_come_back_from_json(report: Report) -> None:
    again = Report.from_json(json.loads(report.to_text()))
    assert again.to_text() == report.to_text()
    assert again.decision == report.decision


def test_json_is_strict_though_numbers_are_not_finite() -> None:
    row = Verdict("D1", F, "x", measurements=(Measurement("D1.growth", math.nan, low=-math.inf, high=math.inf),))
    text = report_of(row).to_text()
    number = json.loads(text, parse_constant=pytest.fail)["items"][0]["measurements"][0]
    assert (number["value"], number["low"], number["high"]) == ("NaN", "-Infinity", "Infinity")


def test_times_stand_only_where_they_may() -> None:
    first, second = (json.loads(report_of(*failing(), seconds=s).to_text()) for s in (1.0, 2.0))
    assert first != second
    for data in (first, second):
        del data["environment"], data["timings"]
    assert first == second


def test_foreign_numbers_and_paths_become_plain() -> None:
    import numpy as np

    data = {"a": np.float32(0.5), "b": np.int64(3), "c": Path("x"), "d": P, "e": (1, {2}), "f": np.float64("nan")}
    assert to_plain(data) == {"a": 0.5, "b": 3, "c": "x", "d": "PASS", "e": [1, [2]], "f": "NaN"}


def changed(**changes: object) -> dict[str, object]:
    return {**failing().to_json(), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a statecheck report"),
        ({}, "expected schema 1, found 'none'"),
        (changed(schema=2), "expected schema 1, found 2"),
        (changed(items=[{"id": "D1"}]), "none of 'status'"),
        (changed(items=[{**failing().to_json()["items"][0], "status": "GOOD"}]), "'GOOD' is not a valid Status"),
        (changed(items=3), "TypeError"),
        (changed(verdict="PASS"), "its items fold to FAIL"),
        (changed(exit_code=0), "its items fold to FAIL"),
    ],
)
def test_what_is_no_report_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(StatecheckError, match=message) as caught:
        Report.from_json(data)
    assert caught.value.exit_code == 3


def test_str_is_a_table_of_all_rows() -> None:
    lines = str(failing()).splitlines()
    assert lines[0].split("  ")[0] == "FAIL"
    assert "12 x [10.5, 14]" in lines[0]
    assert "< 2 (fails > 10)" in lines[0]
    assert "no training log was given" in lines[1]
    assert "VALIDATION_GATE_FAIL: path C" in lines[-2]


def test_a_row_shows_the_part_that_decides() -> None:
    passed, failed = part("D1.a", P, 1), part("D1.b", F, 12)
    row = Verdict("D1", F, f"D1.b: {failed.reason}", parts=(passed, failed))
    assert row_of(row).value == "12 x"


# The files


def test_one_decision_names_the_files(tmp_path: Path) -> None:
    written = write_reports(failing(layers=2), tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in written}
    assert names == {
        "report.json",
        "baseline_metrics.json",
        "statefulness_report.md",
        "VALIDATION_GATE_FAIL.md",
        "images/gate.png",
        "images/state-rms.png",
        "images/state-rms-map.png",
    }
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names
    assert (tmp_path / "VALIDATION_GATE_FAIL.md").read_text().startswith("# VALIDATION_GATE_FAIL\n")


def test_the_gate_of_another_verdict_is_removed(tmp_path: Path) -> None:
    write_reports(failing(), tmp_path)
    write_reports(passing(), tmp_path)
    assert [path.name for path in tmp_path.glob("VALIDATION*")] == ["VALIDATION_GATE_PASS.md"]


def test_a_report_that_could_not_be_finished_leaves_no_gate(tmp_path: Path) -> None:
    write_reports(passing(), tmp_path)
    (tmp_path / "statefulness_report.md").unlink()
    (tmp_path / "statefulness_report.md").mkdir()  # in the way: it can't be replaced by a file
    with pytest.raises(OSError, match="statefulness_report"):
        write_reports(failing(), tmp_path)
    assert list(tmp_path.glob("VALIDATION*")) == []


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_reports(failing(layers=2), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_pictures_that_the_text_shows_are_there(tmp_path: Path) -> None:
    write_reports(nasty(), tmp_path)
    shown = re.findall(r"\]\((images/[^)]*)\)", (tmp_path / "statefulness_report.md").read_text())
    assert len(shown) == 3
    assert all((tmp_path / file).is_file() for file in shown)


# What comes from the model is data


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        yield token
        yield from token.children or ()


def shape(text: str) -> list[tuple[str, str]]:
    """The structure of a Markdown text without its words."""
    kinds = ("text", "text_special", "inline")
    return [(token.type, token.tag) for token in tokens(text) if token.type not in kinds]


def harmless(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ]", "x", name)


@pytest.mark.parametrize("write", [gate_markdown, statefulness_markdown])
def test_nasty_names_are_shown_and_do_nothing(write: object) -> None:
    assert callable(write)
    text = write(nasty())
    assert "<script" not in text
    assert "\x1b" not in text
    types = {token.type for token in tokens(text)}
    assert not types & {"html_inline", "html_block", "code_block", "fence"}
    assert visible(NASTY) in "".join(token.content for token in tokens(text) if token.type.startswith("text"))


@pytest.mark.parametrize("write", [gate_markdown, statefulness_markdown])
def test_nasty_names_leave_the_structure_as_it_is(write: object) -> None:
    assert callable(write)
    expected_from = json.dumps(nasty().to_json()).replace(json.dumps(NASTY)[1:-1], "harmless")
    plain = Report.from_json(json.loads(expected_from))
    assert shape(write(nasty())) == shape(write(plain))


MARKUP = st.text(st.sampled_from(list("ab12 |`<>*_~[]()!#&;:\\$-+=.\n\x1b‮/?")), max_size=14)


@settings(max_examples=300, deadline=None)
@given(MARKUP)
def test_no_text_is_markup(text: str) -> None:
    inline = [token for token in tokens(f"x {escape(text)} x") if token.type != "inline"]
    assert {token.type for token in inline} <= {"paragraph_open", "paragraph_close", "text", "text_special"}
    shown = "".join(token.content for token in inline)
    assert shown == f"x {visible(text)} x"


@settings(max_examples=300, deadline=None)
@given(MARKUP)
def test_no_text_at_the_start_of_a_line_begins_a_block(text: str) -> None:
    opened = [token.type for token in tokens(f"- {escape_line(text)}\n- x")]
    assert opened.count("list_item_open") == 2
    assert not {"heading_open", "blockquote_open", "hr", "code_block", "fence", "html_block", "table_open"} & set(
        opened
    )
    assert opened.count("bullet_list_open") + opened.count("ordered_list_open") == 1


@settings(max_examples=300, deadline=None)
@given(MARKUP)
def test_no_text_leaves_its_table_cell(text: str) -> None:
    table = f"| a | b |\n|---|---|\n| {escape(text)} | end |\n"
    cells = [token for token in tokens(table) if token.type == "td_open"]
    assert len(cells) == 2


@given(st.text(st.characters()))
def test_visible_text_is_one_line_that_can_be_written(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


# The words


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (passing(), "Proceed: 1 check of suite phase39 passed on byte LSTM, and none failed"),
        (failing(), r"Do not scale byte LSTM: 1 check .* failed \(D1, Divergence\).*architecture.*extended could not"),
        (report_of(bare("D4", F, "x")), r"accept the fix only if `statecheck compare` does \(path B\)"),
        (
            report_of(bare("S0", P, ""), bare("D4", Status.SKIP, "x")),
            "nothing failed, but 1 required check could not be",
        ),
        (report_of(bare("S0", P, ""), bare("D4", Status.WARN, "x")), "1 check came out between pass and fail"),
        (report_of(bare("D4", Status.SKIP, "x")), "Nothing was checked"),
        (report_of(Verdict("D4", Status.ERROR, "x", required=False)), "nothing passed either"),
    ],
)
def test_the_answer_says_what_to_do(report: Report, sentence: str) -> None:
    assert re.search(sentence, answer(report))
    assert answer(report) in statefulness_markdown(report)
    assert answer(report) in gate_markdown(report)


@pytest.mark.parametrize(
    ("id", "advice"),
    [("extended", "--training-log"), ("D4", "--data"), ("D3", "components="), ("S0", "get_states"), ("mine", "names")],
)
def test_what_is_skipped_says_what_it_needs(id: str, advice: str) -> None:
    assert advice in remedy(bare(id, Status.SKIP, "x"))


def test_every_row_that_did_not_pass_is_listed_with_its_reason() -> None:
    statuses = [Status.WARN, Status.INCONCLUSIVE, Status.SKIP, Status.ERROR, Status.STALE, F]
    report = report_of(*(bare(f"X{i}", status, f"because {i}") for i, status in enumerate(statuses)))
    listed = statefulness_markdown(report).split("## What falls short")[1].split("\n## ")[0]
    assert [f"because {i}" in listed for i in range(6)] == [True] * 6
    assert listed.index("### FAIL") < listed.index("### ERROR") < listed.index("### WARN")


def test_what_is_not_judged_is_labelled() -> None:
    row = Verdict("D1", P, "fine", shown=(Measurement.exact("D1.constant_stream", 1.5),))
    text = statefulness_markdown(report_of(row))
    assert text.index("Shown, not judged:") < text.index("D1.constant_stream")


# The terminal


def printed(report: Report, *, terminal: bool, width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system="standard")
    print_report(report, console, Path("runs") / "d")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_table_the_banner_and_the_files() -> None:
    text = printed(failing(), terminal=True)
    assert "\x1b[1;31mFAIL" in text
    assert "VALIDATION_GATE_FAIL" in text
    assert "path C: back to architecture" in text
    assert "runs/d/statefulness_report.md" in text
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 100


def test_a_pipe_gets_plain_lines_one_an_item() -> None:
    text = printed(failing(), terminal=False, width=20)
    assert "\x1b" not in text
    assert text.splitlines()[0].startswith("FAIL  D1        12 x [10.5, 14]  < 2 (fails > 10)  D1.growth: 12 at")


@pytest.mark.parametrize("terminal", [True, False])
def test_names_print_no_codes_and_no_markup(terminal: bool) -> None:
    markup = Verdict("D4", F, "[bold]x[/bold] [/] :smile: \x1b]0;title\x07", "x")
    text = printed(report_of(*nasty(), markup, title="[red]t[/red]"), terminal=terminal, width=300)
    codes = set(re.findall(r"\x1b[^m]*m", text))
    assert "\x1b]0;" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold] [/] :smile: \\x1b]0;title\\x07" in text
    assert "[red]t[/red]" in text
    assert codes if terminal else not codes


def test_nothing_heavy_is_loaded_with_the_parent_side() -> None:
    code = (
        "import sys, statecheck.suite, statecheck.gate, statecheck.compare, statecheck.plots;"
        "import statecheck.report.record, statecheck.report.markdown, statecheck.report.terminal;"
        "print([m for m in ('torch','numpy','pandas','matplotlib','scipy','jinja2','rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
