"""Records: no truth value, JSON that keeps NaN and infinities, p-values read from stored intervals."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statecheck.verdict import (
    SEVERITY,
    Absence,
    Bound,
    Measurement,
    Outcome,
    Series,
    Status,
    Where,
    number_to_json,
    worst,
)

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
WITHOUT_A_NUMBER = (Status.FAIL, Status.ERROR, Status.SKIP, Status.INCONCLUSIVE, Status.NOT_APPLICABLE)
PLACES = st.builds(
    Where, component=st.none() | st.text(), layer=st.none() | st.integers(0, 99), state=st.none() | st.text()
)
MEASUREMENTS = st.builds(
    Measurement,
    st.text(),
    NUMBERS,
    st.text(),
    PLACES,
    NUMBERS,
    NUMBERS,
    st.integers(0, 99),
    st.integers(0, 99),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=2).map(tuple),
    st.text(),
)
CURVES = st.lists(NUMBERS, max_size=3).map(tuple)
SERIES = st.builds(Series, st.text(), st.text(), CURVES, CURVES, CURVES, CURVES, st.text(), st.text(), PLACES)
OUTCOMES = st.builds(
    Outcome,
    st.lists(MEASUREMENTS, max_size=2).map(tuple),
    st.lists(st.builds(Absence, st.text(), st.sampled_from(WITHOUT_A_NUMBER), st.text(), PLACES), max_size=2).map(
        tuple
    ),
    st.lists(MEASUREMENTS, max_size=1).map(tuple),
    st.lists(SERIES, max_size=1).map(tuple),
    st.lists(st.text(), max_size=2).map(tuple),
)


@pytest.mark.parametrize("status", Status)
def test_a_status_has_no_truth_value(status: Status) -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(status)


def test_every_status_has_a_severity() -> None:
    assert set(SEVERITY) == set(Status)


@pytest.mark.parametrize(
    ("parts", "row"),
    [
        ([Status.PASS, Status.FAIL, Status.ERROR], Status.FAIL),
        ([Status.PASS, Status.SKIP, Status.INCONCLUSIVE], Status.SKIP),
        ([Status.WARN, Status.INCONCLUSIVE], Status.INCONCLUSIVE),
        ([Status.NOT_APPLICABLE, Status.PASS], Status.PASS),
        ([Status.NOT_APPLICABLE, Status.NOT_APPLICABLE], Status.NOT_APPLICABLE),
    ],
)
def test_a_row_is_as_bad_as_its_worst_part(parts: list[Status], row: Status) -> None:
    assert worst(parts) is row


@settings(max_examples=60, deadline=None)
@given(OUTCOMES)
def test_outcomes_come_back_from_strict_json(outcome: Outcome) -> None:
    text = json.dumps(outcome.to_json(), allow_nan=False)
    assert Outcome.from_json(json.loads(text)).to_json() == outcome.to_json()


def test_nonfinite_numbers_are_strings_that_float_reads_back() -> None:
    assert [number_to_json(v) for v in (math.nan, math.inf, -math.inf)] == ["NaN", "Infinity", "-Infinity"]
    back = Measurement.from_json(Measurement("x", math.nan, low=-math.inf, high=math.inf).to_json())
    assert math.isnan(back.value)
    assert (back.low, back.high) == (-math.inf, math.inf)


def test_p_is_the_smallest_alpha_whose_interval_is_beyond() -> None:
    levels = ((0.95, 12.0, 20.0), (0.99, 11.0, 21.0), (0.999, 9.0, 23.0))
    m = Measurement("x", 15.0, low=12.0, high=20.0, intervals=levels)
    assert m.p_beyond(10, above=True) == pytest.approx(0.01)
    assert m.p_beyond(8, above=True) == pytest.approx(0.001)
    assert m.p_beyond(22, above=False) == pytest.approx(0.01)
    assert m.p_beyond(15, above=True) == 1.0


def test_p_of_an_exact_number_is_zero_or_one() -> None:
    m = Measurement.exact("x", 3)
    assert (m.p_beyond(2, above=True), m.p_beyond(3, above=True), m.p_beyond(4, above=False)) == (0.0, 1.0, 0.0)


def test_without_an_interval_nothing_is_beyond() -> None:
    assert Measurement("x", 100.0).p_beyond(2, above=True) == 1.0


@pytest.mark.parametrize("text", ["2", "<2", "<= 2", "< two", "< nan", "> inf", "", "<", 2, None])
def test_a_bound_is_a_sign_and_a_finite_number(text: str) -> None:
    with pytest.raises(ValueError, match="expected '< NUMBER'"):
        Bound.parse(text)


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_bounds_survive_their_text(threshold: float, above: bool) -> None:
    assert Bound.parse(str(Bound(above, threshold))) == Bound(above, threshold)


def test_a_bound_is_cleared_by_the_whole_interval_only() -> None:
    assert Bound.parse("< 2").clear(1.0, 1.9)
    assert not Bound.parse("< 2").clear(1.0, 2.0)
    assert not Bound.parse("> 2").clear(math.nan, 5.0)


@pytest.mark.parametrize("status", [Status.PASS, Status.WARN, Status.XFAIL, Status.STALE])
def test_what_has_no_number_can_t_pass(status: Status) -> None:
    with pytest.raises(ValueError, match="give a Measurement"):
        Absence("D1.growth", status, "trust me")
