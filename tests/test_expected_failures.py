"""Expected failures through the three doors: XFAIL does not fail, STALE blocks, and a key must mean something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import statecheck
from lawless_models import restarts, sound
from report_cases import bare, item, part

import statecheck as sc
from statecheck.errors import UsageError
from statecheck.expected import expect
from statecheck.gate import decide
from statecheck.verdict import Status, Verdict

P, F, W, X, STALE = Status.PASS, Status.FAIL, Status.WARN, Status.XFAIL, Status.STALE
SKIP, NA, ERROR = Status.SKIP, Status.NOT_APPLICABLE, Status.ERROR
WHY = "issue 48256 <open> & known"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def row(native: Status, functional: Status, *, required: bool = True) -> Verdict:
    """A law of two routes."""
    parts = [
        part(f"PADR.{name}", status, 12.0) if status in (P, F, W) else Verdict(f"PADR.{name}", status, "made up")
        for name, status in (("native", native), ("functional", functional))
    ]
    made = item(*parts, title="Padding")
    return Verdict(**{**vars(made), "status": sc.verdict.worst((native, functional)), "required": required})


@pytest.mark.parametrize(
    ("native", "functional", "key", "parts", "whole"),
    [
        (F, P, "PADR.native", (X, P), X),
        (F, F, "PADR", (X, X), X),
        (F, P, "PADR", (X, P), X),
        (F, F, "PADR.native", (X, F), F),  # the other route is not excused
        (F, ERROR, "PADR", (X, ERROR), ERROR),
        (P, P, "PADR.native", (STALE, P), STALE),
        (P, F, "PADR.native", (STALE, F), F),
        (P, P, "PADR", (STALE, STALE), STALE),
        (W, P, "PADR", (STALE, STALE), STALE),
        (P, NA, "PADR", (STALE, NA), STALE),
        (P, SKIP, "PADR", (P, SKIP), SKIP),  # what could not be judged may still fail
        (SKIP, P, "PADR.native", (SKIP, P), SKIP),
        (NA, P, "PADR.native", (NA, P), P),
        (F, P, "STEP", (F, P), F),
    ],
)
def test_what_becomes_of_each_part_and_of_the_row(
    native: Status, functional: Status, key: str, parts: tuple[Status, ...], whole: Status
) -> None:
    (done,) = expect([row(native, functional)], {key: WHY})
    assert tuple(one.status for one in done.parts) == parts
    assert done.status is whole
    for one in done.parts:
        assert (WHY in one.reason) == (one.status in (X, STALE))


def test_a_part_that_is_named_is_not_the_affair_of_its_law() -> None:
    """The law's own mark is stale, as the other route passes; the part's is not."""
    (done,) = expect([row(F, P)], {"PADR": "a", "PADR.native": "b"})
    assert [(one.status, one.reason.split(")")[0]) for one in done.parts] == [
        (X, "expected to fail (b"),
        (STALE, "was expected to fail (a"),
    ]


def test_a_whole_item_without_a_number_keeps_what_it_said() -> None:
    raised = bare("PADR", F, "the model raised IndexError: 3")
    (done,) = expect([raised], {"PADR": WHY})
    assert done.status is X
    assert done.reason == f"expected to fail ({WHY}): the model raised IndexError: 3"


def test_the_gate_lets_xfail_through_and_stale_not() -> None:
    others = [Verdict("STEP", P, "made up")]
    for required in (True, False):
        failing, passing = row(F, F, required=required), row(P, P, required=required)
        assert decide([*others, *expect([failing], {"PADR": WHY})]).exit_code == 0
        assert decide([*others, *expect([passing], {"PADR": WHY})]).exit_code == 3
        assert decide([*others, *expect([failing], {})]).exit_code == 1


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"CHNK": "x"}, "did you mean CHUNK"),
        ({"CHUNK.natve": "x"}, "did you mean CHUNK.native"),
        ({"D1": "x"}, "not an item or part of suite 'conformance'"),
        ({"CHUNK": " "}, "give a reason"),
    ],
)
def test_a_key_that_means_nothing_is_refused(expected: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sc.check_model(sound(), suite="conformance", only=["SIZE"], expected_failures=expected)
    with pytest.raises(UsageError, match=said):
        sc.parametrize_with_checks([sound()], suite="conformance", expected_failures=expected)


def test_check_model_excuses_a_law_and_one_of_its_routes() -> None:
    expected = {"CHUNK.native": WHY}
    report = sc.check_model(restarts(), suite="conformance", only=["CHUNK", "SIZE"], expected_failures=expected)
    assert (report["CHUNK.native"].status, report["CHUNK.functional"].status, report.exit_code) == (X, F, 1)
    report = sc.check_model(restarts(), suite="conformance", only=["CHUNK", "SIZE"], expected_failures={"CHUNK": WHY})
    assert (report["CHUNK"].status, report.failures, report.verdict, report.exit_code) == (X, [], "PASS", 0)
    assert report["CHUNK.native"].measurements[0].broken  # the finding itself is kept
    report = sc.check_model(sound(), suite="conformance", only=["CHUNK", "SIZE"], expected_failures={"CHUNK": WHY})
    assert (report["CHUNK"].status, report.verdict, report.exit_code) == (STALE, "INCONCLUSIVE", 3)


def test_the_command_excuses_and_forgets_again_without_running(tmp_path: Path) -> None:
    laws = ("--law", "CHUNK", "--law", "SIZE", "--out", tmp_path / "run")
    done = statecheck("conform", "lawless_models:restarts", *laws, "--expect-failure", f"CHUNK={WHY}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CHUNK.native: expected to fail ({WHY})" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [one["status"] for one in report["items"]] == ["XFAIL", "PASS"]
    assert statecheck("report", tmp_path / "run").returncode == 0
    again = statecheck("conform", "lawless_models:restarts", *laws)
    assert again.returncode == 1
    assert "loading" not in again.stderr


checked = sc.parametrize_with_checks(
    [restarts()], suite="conformance", only=["CHUNK", "SIZE"], expected_failures={"CHUNK": WHY, "SIZE": "made up"}
)


@checked
def test_the_decorator_excuses_and_names_what_is_stale(
    model: object, check: object, request: pytest.FixtureRequest
) -> None:
    assert callable(check)
    if "CHUNK" in request.node.name:
        with pytest.raises(pytest.xfail.Exception, match="expected to fail"):
            check(model)
    else:
        with pytest.raises(AssertionError, match=r"SIZE STALE: .*was expected to fail .made up. and did not"):
            check(model)


unexcused = sc.parametrize_with_checks([restarts()], suite="conformance", only=["CHUNK"], examples=10, seconds=5)


@unexcused
def test_a_failure_under_pytest_has_the_case_and_its_replay(model: object, check: object) -> None:
    assert callable(check)
    with pytest.raises(AssertionError) as caught:
        check(model)
    said = str(caught.value)
    assert "case: 1x3@0: feed(0:1) feed(1:3) == feed(0:3)" in said
    assert 'replay: sc.check_model(model, suite="conformance", only=["CHUNK"], case="1x3@0: ' in said
