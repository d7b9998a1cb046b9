"""Suite files and judging: what is refused, when an interval passes, fails or neither, and Holm's correction."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from statecheck.catalogue import ITEMS
from statecheck.errors import UsageError
from statecheck.suite import Suite, bundled, judge, load_suite, parse_suite
from statecheck.verdict import Absence, Measurement, Outcome, Status, Verdict, Where


def suite(criterion: str = 'pass = "< 2"\nfail = "> 10"', *, names: tuple[str, ...] = ("D1.growth",)) -> Suite:
    """A suite of the item D1 with the same criterion on each of `names`."""
    entries = "".join(f'[[item.criterion]]\non = "{name}"\nsource = "made up"\n{criterion}\n' for name in names)
    return parse_suite(f'name = "toy"\n[[item]]\nid = "D1"\n{entries}')


def judged(suite: Suite, *measurements: Measurement, absences: tuple[Absence, ...] = ()) -> Verdict:
    return judge(suite, {"D1": Outcome(measurements, absences)})[0]


def between(low: float, high: float, name: str = "D1.growth") -> Measurement:
    return Measurement(name, (low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (1.0, 1.9, Status.PASS),
        (1.0, 2.5, Status.INCONCLUSIVE),
        (2.5, 9.0, Status.WARN),
        (2.0, 10.0, Status.WARN),
        (5.0, 11.0, Status.INCONCLUSIVE),
        (10.5, 12.0, Status.FAIL),
        (1.0, 11.0, Status.INCONCLUSIVE),
        (math.nan, math.nan, Status.FAIL),  # the value is NaN too
    ],
)
def test_an_interval_is_judged_whole(low: float, high: float, status: Status) -> None:
    assert judged(suite(), between(low, high)).status is status


def test_a_number_without_interval_is_not_passed() -> None:
    assert judged(suite(), Measurement("D1.growth", 1.0)).status is Status.INCONCLUSIVE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_never_passes(value: float) -> None:
    exact = Measurement("D1.growth", value, low=value, high=value)
    assert judged(suite(), exact).status is Status.FAIL
    assert judged(suite('pass = "> 2"'), exact).status is Status.FAIL


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.3, 2.0, Status.PASS),
        (0.12, 0.18, Status.WARN),
        (4.0, 9.0, Status.WARN),
        (0.05, 0.08, Status.FAIL),
        (11.0, 12.0, Status.FAIL),
        (0.15, 0.25, Status.INCONCLUSIVE),
        (0.05, 0.15, Status.INCONCLUSIVE),
    ],
)
def test_two_sided_criteria_warn_on_either_side(low: float, high: float, status: Status) -> None:
    both = suite('pass = ["> 0.2", "< 3"]\nfail = ["< 0.1", "> 10"]')
    assert judged(both, between(low, high)).status is status


def test_without_pass_what_does_not_fail_passes() -> None:
    slope = suite('fail = "> 0"')
    assert judged(slope, between(-1.0, 0.5)).status is Status.PASS
    assert judged(slope, between(0.1, 0.5)).status is Status.FAIL


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(0.001, 0.2, Status.PASS), (-0.1, 0.004, Status.WARN), (-0.1, 0.2, Status.INCONCLUSIVE)],
)
def test_warn_bounds_are_for_what_is_clearly_small(low: float, high: float, status: Status) -> None:
    assert judged(suite('pass = "> 0"\nwarn = "< 0.005"'), between(low, high)).status is status


def graded(name: str, p: float) -> Measurement:
    """A number whose interval is beyond 10 down to the level 1 - p, and not at 1 - p/2."""
    levels = ((0.95, 12.0, 20.0), (1 - p, 11.0, 21.0), (1 - p / 2, 9.0, 23.0))
    return Measurement(name, 15.0, low=12.0, high=20.0, intervals=levels)


NAMES = tuple(f"D1.m{i}" for i in range(10))


def test_holm_withdraws_a_failure_at_004_among_ten() -> None:
    row = judged(suite(names=NAMES), graded("D1.m0", 0.04), *(between(1.0, 1.5, name) for name in NAMES[1:]))
    assert row.status is Status.INCONCLUSIVE
    assert row.parts[0].status is Status.INCONCLUSIVE
    assert "Holm's correction for 10 tests" in row.parts[0].reason


def test_holm_keeps_a_failure_at_0001_among_ten() -> None:
    row = judged(suite(names=NAMES), graded("D1.m0", 0.001), *(between(1.0, 1.5, name) for name in NAMES[1:]))
    assert row.status is Status.FAIL
    assert [part.status for part in row.parts[1:]] == [Status.PASS] * 9


def test_holm_steps_down() -> None:
    """Of ten, .004 <= .05/10 and .0054 <= .05/9 survive; .007 > .05/8 does not, nor .0071, though it is <= .05/7."""
    wanted = (0.004, 0.0054, 0.007, 0.0071)
    numbers = [graded(name, p) for name, p in zip(NAMES, wanted, strict=False)]
    row = judged(suite(names=NAMES), *numbers, *(between(1.0, 1.5, name) for name in NAMES[4:]))
    expected = [Status.FAIL, Status.FAIL, Status.INCONCLUSIVE, Status.INCONCLUSIVE]
    assert [part.status for part in row.parts[:4]] == expected


def test_holm_spans_the_items_of_a_suite() -> None:
    text = "".join(
        f'[[item]]\nid = "{id}"\n[[item.criterion]]\non = "{id}.x"\nsource = "made up"\npass = "< 2"\nfail = "> 10"\n'
        for id in list(ITEMS)[:10]
    )
    outcomes = {id: Outcome((between(1.0, 1.5, f"{id}.x"),)) for id in list(ITEMS)[1:10]}
    first = next(iter(ITEMS))
    rows = judge(parse_suite(text), {first: Outcome((graded(f"{first}.x", 0.04),)), **outcomes})
    assert rows[0].status is Status.INCONCLUSIVE


def test_exact_failures_are_neither_corrected_nor_counted() -> None:
    exact = [Measurement.exact(name, 11) for name in NAMES[1:]]
    row = judged(suite(names=NAMES), graded("D1.m0", 0.04), *exact)
    assert [part.status for part in row.parts] == [Status.FAIL] * 10


def test_an_item_that_did_not_run_is_an_error() -> None:
    assert judge(suite(), {})[0].status is Status.ERROR


def test_a_measurement_that_the_probe_did_not_bring_is_an_error() -> None:
    row = judged(suite(names=("D1.growth", "D1.other")), between(1.0, 1.5))
    assert row.status is Status.ERROR
    assert "brought no D1.other" in row.reason


def test_an_absence_speaks_for_its_part_or_for_the_item() -> None:
    part = Absence("D1.growth", Status.SKIP, "no log", Where("lstm"))
    assert judged(suite(), absences=(part,)).reason == "D1.growth: no log (component lstm)"
    whole = Absence("D1", Status.NOT_APPLICABLE, "a KV cache grows")
    row = judged(suite(), absences=(whole,))
    assert (row.status, row.reason) == (Status.NOT_APPLICABLE, "a KV cache grows")


def test_a_failure_without_a_criterion_or_beside_an_absent_item_is_not_dropped() -> None:
    stray = Absence("D1.extra", Status.FAIL, "no criterion speaks of it")
    assert judged(suite(), between(1.0, 1.5), absences=(stray,)).status is Status.FAIL
    whole = Absence("D1", Status.NOT_APPLICABLE, "nothing to compare")
    assert judged(suite(), between(11.0, 12.0), absences=(whole,)).status is Status.FAIL


def test_a_row_gives_the_reason_of_its_worst_part_and_the_closest_of_passing_ones() -> None:
    two = suite(names=("D1.a", "D1.b"))
    assert judged(two, between(1.0, 1.1, "D1.a"), between(10.5, 12.0, "D1.b")).reason.startswith("D1.b: ")
    assert judged(two, between(1.0, 1.1, "D1.a"), between(1.7, 1.8, "D1.b")).reason.startswith("D1.b: ")


def test_advice_is_given_where_it_is_needed() -> None:
    advised = suite('pass = "< 2"\nfail = "> 10"\nadvice = "Bound the retention."')
    assert judged(advised, between(11.0, 12.0)).reason.endswith("Bound the retention.")
    assert "Bound" not in judged(advised, between(1.0, 1.5)).reason


ITEM = '[[item]]\nid = "D1"\n'
CRITERION = ITEM + '[[item.criterion]]\non = "D1.growth"\nsource = "made up"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[item", "not TOML"),
        ("", "nothing would be checked"),
        ("item = 3", "'item' at the top: expected a list, found 3"),
        ('item = ["D1"]', "expected a table in an \\[\\[item\\]\\], found 'D1'"),
        ('nmae = "x"', "unknown key 'nmae' at the top; did you mean name"),
        ('[[item]]\nid = "helth"', "unknown item 'helth'; did you mean health"),
        ("[[item]]\nid = [1]", "'id' in an"),
        (ITEM, "could not fail"),
        (ITEM + "options = 3", "expected a table"),
        (ITEM + 'required = "no"', "'required' in an .* expected true or false, found 'no'"),
        (ITEM + "criterion = 3", "expected a list"),
        (ITEM + '[[item.criterion]]\non = "D1.growth"\npass = "< 2"', "needs 'on' .* and 'source'"),
        (CRITERION, "neither 'pass' nor 'fail'"),
        (CRITERION + "pass = 2", "'pass' in a criterion of D1: expected a text or a list, found 2"),
        (CRITERION + "pass = [2]", "expected '< NUMBER' or '> NUMBER', found 2"),
        (CRITERION + 'pass = "<2"', "expected '< NUMBER'"),
        (CRITERION + 'pass = "< nan"', "expected '< NUMBER'"),
        (CRITERION + 'pass = "< inf"', "expected '< NUMBER'"),
        (CRITERION + 'pass = "< 2"\nfial = "> 10"', "unknown key 'fial'"),
        (CRITERION + 'pass = ["> 3", "< 3"]', "can't be met"),
        (CRITERION + 'pass = ["> 4", "< 3"]', "can't be met"),
        (CRITERION + 'fail = ["> 3", "< 5"]', "can't be met"),
        (CRITERION + 'pass = "< 2"\nfail = "> 1"', "'> 1' fails values that 'pass' accepts"),
        (CRITERION + 'pass = "> 2"\nfail = "< 3"', "fails values that 'pass' accepts"),
        (CRITERION + 'pass = "< 2"\n' + CRITERION + 'pass = "< 2"', "names an item twice: D1"),
    ],
)
def test_bad_suites_are_refused_with_a_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_suite(text)
    assert caught.value.exit_code == 2


def test_files_that_hold_no_suite_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"expected a UTF-8 TOML file"):
        load_suite(tmp_path / "binary.toml")
    for missing in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(UsageError, match="not a file"):
            load_suite(missing)


def test_a_suite_file_of_the_user_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CRITERION + 'pass = "< 2"')
    found = load_suite(tmp_path / "mine.toml")
    assert [item.id for item in found.items] == ["D1"]
    assert found.digest != load_suite("smoke").digest


@pytest.mark.parametrize("name", bundled())
def test_bundled_suites_have_a_source_for_every_threshold(name: str) -> None:
    for item in load_suite(name).items:
        for criterion in item.criteria:
            assert criterion.source
            assert criterion.measurement.startswith(f"{item.id}.")


def test_smoke_has_the_thresholds_of_phase39() -> None:
    full = {c.measurement: c for item in load_suite("phase39").items for c in item.criteria}
    for item in load_suite("smoke").items:
        for criterion in item.criteria:
            same = full[criterion.measurement]
            assert (criterion.passes, criterion.fails, criterion.warns) == (same.passes, same.fails, same.warns)


def test_only_keeps_the_order_and_refuses_strangers() -> None:
    full = load_suite("phase39")
    assert [item.id for item in full.only(["D1", "S0"]).items] == ["S0", "D1"]
    assert full.only([]) == full
    with pytest.raises(UsageError, match="--only D9"):
        full.only(["D9"])
