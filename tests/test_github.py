"""Annotations for GitHub: which rows have one, and that no text becomes a command of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import statecheck
from hypothesis import given
from hypothesis import strategies as st
from report_cases import bare, nasty, passing, report_of
from test_junit import CASE, broken

from statecheck.report.github import annotation_lines, wanted, workflow_command
from statecheck.verdict import Status, Verdict

EXAMPLES = ("--law", "CHUNK", "--examples", "5")


def parsed(line: str) -> tuple[str, str, str]:
    """Level, title and message as GitHub's runner reads them: it splits at the first '::' behind the command's."""
    assert line.startswith("::")
    head, _, message = line[2:].partition("::")
    level, _, properties = head.partition(" ")
    name, _, title = properties.partition("=")
    assert name == "title"
    assert not set(title) & set(":,")
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        title = title.replace(code, character)
        message = message if code in ("%3A", "%2C") else message.replace(code, character)
    return level, title, message


@given(st.text(), st.text())
def test_what_goes_in_comes_out_on_one_line(title: str, message: str) -> None:
    line = workflow_command("error", message, title=title)
    assert not set(line) & set("\r\n")
    assert parsed(line) == ("error", title, message)


def test_percent_signs_are_escaped_first() -> None:
    assert workflow_command("warning", "50%0A, a: b", title="%3A") == "::warning title=%253A::50%250A, a: b"


def test_a_broken_law_has_its_case_and_replay() -> None:
    (line,) = annotation_lines(broken())
    level, title, message = parsed(line)
    assert (level, title) == ("error", "CHUNK FAIL on toy")
    assert f"    case: {CASE}" in message.splitlines()
    assert any(one.startswith("  replay: statecheck conform 'my models:build' ") for one in message.splitlines())


@pytest.mark.parametrize(
    ("status", "required", "level"),
    [
        (Status.FAIL, False, "error"),
        (Status.ERROR, True, "error"),
        (Status.STALE, True, "error"),
        (Status.WARN, True, "warning"),
        (Status.SKIP, True, "warning"),
        (Status.INCONCLUSIVE, True, "warning"),
        (Status.SKIP, False, None),
        (Status.NOT_APPLICABLE, True, None),
        (Status.XFAIL, True, None),
        (Status.PASS, True, None),
    ],
)
def test_what_shuts_the_gate_is_told(status: Status, required: bool, level: str | None) -> None:
    lines = annotation_lines(report_of(Verdict("D1", status, "made up", required=required)))
    expected = [(level, f"D1 {status} on byte LSTM", "made up")] if level else []
    assert [parsed(line) for line in lines] == expected


def test_hostile_names_start_no_command() -> None:
    text = "x\n::set-env name=PATH::/evil\r\n::error::"
    for line in [*annotation_lines(report_of(bare(text, Status.FAIL, text), title=text)), *annotation_lines(nasty())]:
        assert len(line.splitlines()) == 1
        assert parsed(line)[0] in ("error", "warning")
    assert annotation_lines(passing()) == []


@pytest.mark.parametrize(("value", "true"), [("true", True), ("false", False), ("1", False), (None, False)])
def test_the_environment_decides(value: str | None, true: bool) -> None:
    assert wanted({} if value is None else {"GITHUB_ACTIONS": value}) is true


@pytest.mark.parametrize(
    ("options", "setting", "told"), [((), "true", True), (("--no-github",), "true", False), (("--github",), "", True)]
)
def test_the_command_tells_github_where_it_runs(
    options: tuple[str, ...], setting: str, told: bool, tmp_path: Path
) -> None:
    arguments = ("conform", "lawless_models:restarts", *EXAMPLES, *options, "--out", tmp_path / "run")
    done = statecheck(*arguments, GITHUB_ACTIONS=setting)
    assert done.returncode == 1, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [parsed(line)[:2] for line in found] == ([("error", "CHUNK FAIL on Restarts")] if told else [])
