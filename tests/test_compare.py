"""The rule by which a fix is accepted, one pair of runs for each clause; all changes derived by hand.

There is no equivalence test (TOST) here or in the rule: "no regression" means that none was seen.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_cases import FACTS, NASTY, bare, item, nasty, part, report_of

from statecheck.compare import Comparison, Metric, baseline_metrics, compare
from statecheck.errors import StatecheckError, UsageError
from statecheck.report.markdown import write_reports
from statecheck.report.record import make_report
from statecheck.verdict import Status, Verdict, Where

P, W, F, I = Status.PASS, Status.WARN, Status.FAIL, Status.INCONCLUSIVE  # noqa: E741


def judge(before: list[Verdict], after: list[Verdict]) -> Comparison:
    return compare(*(report_of(*(item(one) for one in side)).to_json() for side in (before, after)))


def growth(status: Status, value: float, low: float = math.nan, high: float = math.nan, **more: Any) -> Verdict:
    return part("D1.growth", status, value, low, high, **more)


def effect(before: Verdict, after: Verdict) -> tuple[str, float]:
    (row,) = judge([before], [after]).rows
    return row.effect, row.gain


# What is accepted


def test_a_real_improvement_of_what_failed_is_accepted() -> None:
    """12 -> 9 is 25 % better, and [8.5, 9.5] lies under [11, 13]."""
    found = judge([growth(F, 12, 11, 13)], [growth(W, 9, 8.5, 9.5)])
    assert (found.accept, found.exit_code) == (True, 0)
    assert found.reasons == ("D1.growth: 25.0% better; nothing regressed",)


@pytest.mark.parametrize("before", [F, W, I])
def test_whatever_had_not_passed_may_improve(before: Status) -> None:
    assert judge([growth(before, 12, 11, 13)], [growth(P, 1, 0.9, 1.1)]).accept


def test_higher_is_better_where_the_criterion_says_so() -> None:
    """0.4 -> 0.6 is 50 % better."""
    score = {"passes": "> 0.7", "fails": "< 0.5"}
    assert effect(growth(F, 0.4, 0.38, 0.42, **score), growth(W, 0.6, 0.58, 0.62, **score)) == (
        "improved",
        pytest.approx(0.5),
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.1, 0.15, ("improved", 0.5)),  # .1 outside -> .05 outside, of .1
        (6.0, 4.5, ("improved", 0.25)),  # 3 outside -> 1.5 outside, of 6
        (4.0, 5.0, ("regressed", -0.25)),  # 1 outside -> 2 outside, of 4
        (1.0, 2.5, ("unchanged", 0.0)),  # both between the bounds
        (0.1, 5.0, ("regressed", -19.0)),  # .1 outside -> 2 outside, of .1
    ],
)
def test_between_two_bounds_the_distance_outside_counts(
    before: float, after: float, expected: tuple[str, float]
) -> None:
    both = {"passes": "> 0.2 and < 3", "fails": ""}
    found = effect(growth(W, before, **both), growth(W, after, **both))
    assert found == (expected[0], pytest.approx(expected[1]))


def test_a_failure_by_name_that_is_now_measured_is_an_improvement() -> None:
    silent = Verdict("D1.growth", F, "the state is exactly zero")
    assert judge([silent], [growth(P, 1, 0.9, 1.1)]).accept


def test_a_number_that_became_finite_is_an_improvement() -> None:
    assert judge([growth(F, math.inf)], [growth(W, 3, 2.5, 3.5)]).accept


# What is not enough


def test_five_per_cent_exactly_is_not_more_than_five_per_cent() -> None:
    """2.0 -> 1.9; in binary the quotient is a little above 0.05."""
    exact = judge([growth(W, 2.0)], [growth(W, 1.9)])
    assert (exact.accept, exact.exit_code) == (False, 1)
    assert judge([growth(W, 2.0)], [growth(W, 1.89)]).accept


def test_overlapping_intervals_are_no_improvement() -> None:
    """12 -> 9 again, but [8, 11.5] reaches into [11, 13], though it excludes the bare value 12."""
    found = judge([growth(F, 12, 11, 13)], [growth(W, 9, 8, 11.5)])
    assert not found.accept
    assert found.rows[0].effect == "unclear"
    assert "D1.growth may have, but the intervals overlap" in found.reasons[0]


def test_without_an_interval_nothing_is_clear() -> None:
    unknown = {"low": "NaN", "high": "NaN"}
    before, after = (baseline_metrics(report_of(item(growth(W, value)))) for value in (12, 3))
    after["metrics"][0] |= unknown
    assert compare(before, after).rows[0].effect == "unclear"


def test_an_improvement_of_what_had_passed_is_no_fix() -> None:
    found = judge([growth(P, 1.8)], [growth(P, 1.0)])
    assert found.rows[0].effect == "improved"
    assert not found.accept
    assert found.reasons == ("every number passed before: there was nothing to fix",)


def test_the_same_run_is_no_fix() -> None:
    found = judge([growth(F, 12, 11, 13)], [growth(F, 12, 11, 13)])
    assert found.reasons == ("no number that had not passed improved by more than 5%",)


def test_evidence_that_is_now_there_is_no_fix() -> None:
    skipped = Verdict("extended.final", Status.SKIP, "no log")
    measured = part("extended.final", P, 1.0, passes="< 1.05", fails="> 1.05")
    found = judge([growth(F, 12, 11, 13), skipped], [growth(F, 12, 11, 13), measured])
    assert not found.accept
    assert {row.effect for row in found.rows} == {"unchanged"}


# Regressions


def other(status: Status, value: float, low: float = math.nan, high: float = math.nan) -> Verdict:
    return part("D4.perplexity", status, value, low, high, passes="< 2", fails="> 5")


FIX = (growth(F, 12, 11, 13), growth(P, 1, 0.9, 1.1))


def beside_a_fix(before: Verdict, after: Verdict) -> Comparison:
    return judge([FIX[0], before], [FIX[1], after])


def test_a_number_that_is_clearly_worse_refuses_the_fix() -> None:
    """1.0 -> 1.1 is 10 % worse, and [1.08, 1.12] lies above [0.98, 1.02]."""
    found = beside_a_fix(other(P, 1.0, 0.98, 1.02), other(P, 1.1, 1.08, 1.12))
    assert (found.accept, found.exit_code) == (False, 1)
    assert found.reasons == ("D4.perplexity: 10.0% worse",)


def test_a_number_that_is_slightly_or_perhaps_worse_does_not() -> None:
    assert beside_a_fix(other(P, 1.0, 0.99, 1.01), other(P, 1.04, 1.03, 1.05)).accept
    unclear = beside_a_fix(other(P, 1.0, 0.9, 1.1), other(P, 1.2, 1.05, 1.4))
    assert unclear.accept
    assert unclear.rows[1].effect == "unclear"


@pytest.mark.parametrize("after", [W, I, Status.SKIP, Status.STALE, Status.ERROR, F])
def test_a_status_that_got_worse_refuses_the_fix(after: Status) -> None:
    found = beside_a_fix(other(P, 1.0, 0.9, 1.1), other(after, 1.0, 0.9, 1.1))
    assert found.reasons == (f"D4.perplexity: was PASS, is {after} now",)


@pytest.mark.parametrize("after", [Status.NOT_APPLICABLE, Status.XFAIL])
def test_what_passed_and_what_cannot_exist_are_equally_good(after: Status) -> None:
    before, now = Verdict("D3.ratio", Status.NOT_APPLICABLE, "x"), Verdict("D3.ratio", after, "x")
    assert beside_a_fix(before, now).accept


def test_what_is_no_longer_measured_refuses_the_fix() -> None:
    gone = Verdict("D4.perplexity", Status.NOT_APPLICABLE, "x")
    assert not beside_a_fix(other(F, 9.0, 8.0, 10.0), gone).accept
    found = judge([FIX[0], other(P, 1.0)], [FIX[1]])
    assert found.reasons == ("D4.perplexity: was judged before, is not there now",)


def test_a_new_failure_refuses_the_fix() -> None:
    assert not judge([FIX[0]], [FIX[1], other(F, 9.0, 8.0, 10.0)]).accept
    assert judge([FIX[0]], [FIX[1], other(P, 1.0)]).accept


def test_a_number_that_is_no_longer_finite_refuses_the_fix() -> None:
    assert not beside_a_fix(other(F, 9.0), other(F, math.inf)).accept


@pytest.mark.parametrize(
    ("before", "after", "asked", "expected"),
    [
        (1e-7, 3e-7, ("< 1e-5", "> 1e-5"), "unchanged"),  # 33 times under the bound
        (1e-7, 6e-7, ("< 1e-5", "> 1e-5"), "regressed"),  # 17 times
        (0.3, 0.2, ("> 1e-4", "< 1e-4"), "unchanged"),  # 2,000 times over it
        (0.3, 0.001, ("> 1e-4", "< 1e-4"), "regressed"),  # 10 times
        (0.3, 0.2, ("> 0", "< 0"), "regressed"),  # a bound of zero has no ratio
    ],
)
def test_what_is_far_clear_of_its_bound_is_not_compared_further(
    before: float, after: float, asked: tuple[str, str], expected: str
) -> None:
    more = {"passes": asked[0], "fails": asked[1]}
    assert effect(growth(P, before, **more), growth(P, after, **more))[0] == expected


def test_from_zero_any_change_is_larger_than_five_per_cent() -> None:
    count = {"passes": "< 0.5", "fails": "> 0.5"}
    assert effect(growth(F, 0.0, **count), growth(F, 3.0, **count)) == ("regressed", -math.inf)
    assert effect(growth(F, 0.0, **count), growth(F, 0.0, **count)) == ("unchanged", 0.0)


# Which numbers belong together


def test_the_worst_place_may_move() -> None:
    found = judge([growth(F, 12, 11, 13, where=Where("lstm", 0))], [growth(P, 1, 0.9, 1.1, where=Where("lstm", 1))])
    assert found.accept
    assert found.rows[0].where == "component lstm, layer 1"


def test_numbers_of_one_name_are_matched_by_place() -> None:
    places = [Where("lstm", layer) for layer in range(3)]
    before = [growth(F, 12, 11, 13, where=places[0]), growth(P, 1, 0.9, 1.1, where=places[1])]
    after = [growth(P, 1, 0.9, 1.1, where=places[1]), growth(P, 1.5, 1.4, 1.6, where=places[2])]
    found = judge(before, [*after, growth(P, 1, 0.9, 1.1, where=places[0])])
    assert [(row.where[-1], row.effect) for row in found.rows] == [
        ("0", "improved"),
        ("1", "unchanged"),
        ("2", "unchanged"),
    ]
    assert found.accept


# What can't be compared: exit 3


def changed(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": {"title": "toy", "digest": "1", "facts": FACTS},
        "suite": {"name": "phase39", "digest": "cd"},
        "inputs": "a novel",
        "environment": {"statecheck": "0.1.0"},
    }
    for key, value in changes.items():
        base[key] = value if isinstance(value, str) else {**base[key], **value}
    return make_report([item(growth(W, 3))], **base).to_json()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"suite": {"digest": "other"}}, "suite"),
        ({"inputs": "another novel"}, "text or inputs"),
        ({"inputs_digest": "12"}, "text or inputs"),
        ({"environment": {"statecheck": "0.2.0"}}, "version of statecheck 0.1.0 before, 0.2.0 after"),
        ({"model": {"facts": {**FACTS, "dtype": "bfloat16"}}}, "dtype float32 before, bfloat16 after"),
        ({"model": {"facts": {**FACTS, "vocabulary": 61}}}, "vocabulary"),
        ({"model": {"facts": {**FACTS, "inputs": "vectors", "width": 8}}}, "kind of inputs.*width of the inputs"),
        ({"model": {"facts": {**FACTS, "training_length": 512}}}, "training length 256 before, 512 after"),
        ({"model": {"facts": {**FACTS, "components": {"rwkv": {}, "mamba": {}}}}}, "components of the model"),
    ],
)
def test_runs_on_other_terms_are_not_compared(changes: dict[str, Any], named: str) -> None:
    after = changed() | changes if "inputs_digest" in changes else changed(**changes)
    with pytest.raises(StatecheckError, match=f"can't be compared.*{named}") as caught:
        compare(changed(), after)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "changes", [{"model": {"digest": "2"}}, {"model": {"title": "fixed"}}, {"suite": {"name": "x"}}]
)
def test_other_weights_and_names_are_what_a_fix_changes(changes: dict[str, Any]) -> None:
    assert compare(changed(), changed(**changes)).exit_code == 1


def test_a_report_and_its_baseline_say_the_same(tmp_path: Path) -> None:
    for name, one in (("before", FIX[0]), ("after", FIX[1])):
        write_reports(report_of(item(one)), tmp_path / name)
    forms = ("", "report.json", "baseline_metrics.json")
    found = [compare(tmp_path / "before" / a, tmp_path / "after" / b) for a in forms for b in forms]
    assert all(one.accept for one in found)
    assert len({json.dumps(one.to_json()) for one in found}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected whole JSON"),
        (b'{"schema": 1, "items": [', "half-written or damaged"),
        (b"\xff\xfe", "expected whole JSON"),
        (b"[]", r"expected a statecheck report \(a JSON object\), found list"),
        (b"{}", "expected schema 1, found 'none'"),
        (b'{"schema": 2}', "expected schema 1, found 2"),
        (b'{"schema": 1}', "expected a baseline, found KeyError"),
        (b'{"schema": 1, "items": []}', "expected a statecheck report, found none of"),
        (b'{"schema": 1, "basis": 3, "metrics": []}', "expected a baseline, found TypeError"),
        (b'{"schema": 1, "value": NaN}', "the bare constant NaN"),
        (b"[" * 100_000, "expected whole JSON"),
    ],
)
def test_a_file_that_is_no_baseline_is_exit_3(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "b.json"
    file.write_bytes(content)
    with pytest.raises(StatecheckError, match=message) as caught:
        compare(file, file)
    assert caught.value.exit_code == 3
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("broken", [{"status": "GOOD"}, {"value": "x"}, {"asked": ["2"]}, {"value": None}, {"n": "x"}])
def test_a_baseline_with_a_wrong_number_is_exit_3(broken: dict[str, Any]) -> None:
    data = baseline_metrics(report_of(item(growth(W, 3))))
    data["metrics"][0] |= broken
    with pytest.raises(StatecheckError, match="expected a baseline") as caught:
        compare(data, data)
    assert caught.value.exit_code == 3


def test_a_baseline_without_numbers_is_exit_3() -> None:
    data = baseline_metrics(report_of())
    with pytest.raises(StatecheckError, match="no number to compare"):
        compare(data, data)


def test_a_missing_file_is_a_wrong_option(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(UsageError, match="no such file") as caught:
            compare(path, path)
        assert caught.value.exit_code == 2


# The plain forms


def test_a_baseline_holds_what_it_rests_on() -> None:
    data = baseline_metrics(report_of(item(growth(W, 3, 2.5, 3.5)), bare("D4", Status.SKIP, "x")))
    number, skipped = data["metrics"]
    assert number == {
        "name": "D1.growth",
        "where": "component lstm, layer 1",
        "status": "WARN",
        "value": 3.0,
        "low": 2.5,
        "high": 3.5,
        "unit": "x",
        "n": 16,
        "better": "lower",
        "asked": ["< 2"],
    }
    assert "value" not in skipped
    assert data["model"] == {"title": "byte LSTM", "digest": "ab" * 32}
    assert data["basis"]["dtype"] == "float32"
    assert data["basis"]["inputs"] == "ef" * 32
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("metric", [Metric("x", "", Status.SKIP), Metric("y", "z", F, math.inf, -math.inf, math.nan)])
def test_numbers_come_back_from_json(metric: Metric) -> None:
    assert Metric.from_json(json.loads(json.dumps(metric.to_json(), allow_nan=False))).to_json() == metric.to_json()


def test_a_comparison_is_printed_on_plain_lines() -> None:
    found = compare(nasty().to_json(), nasty().to_json())
    text = str(found)
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(found.rows) + 3
    assert "REFUSED: no number" in text
    assert NASTY not in text
    json.dumps(found.to_json(), allow_nan=False)
