"""Is a fix a fix? The judged numbers of a run as a baseline, and the rule by which a later run is accepted.

A fix is accepted only if at least one number that did not pass before is better by more than 5 %, and nothing is
worse: no number by more than 5 %, and no status. A change is real only where the two 95 % intervals do not overlap.
That is the cautious choice: the interval of one run against the other's bare value would take that value for the
truth. It is made in both directions, so noise is neither accepted as a fix nor counted as a regression. Changes of
more than 5 % with overlapping intervals are listed as unclear.

No equivalence is claimed: this is no two one-sided tests (TOST), and "no regression" means that none was seen. Numbers
that passed before and after and are at least 20 times clear of their threshold are not compared any further: a
relative difference of 3e-7 in place of 1e-7 where 1e-5 is allowed is not a regression.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statecheck.errors import StatecheckError, UsageError
from statecheck.escaping import visible
from statecheck.report.record import SCHEMA, Report, check_schema, to_plain
from statecheck.verdict import SEVERITY, Bound, Status, Verdict

#: The change, relative to the value before, that counts: "> 5 % improvement with no regression" (phase 3.9).
LEAST_CHANGE = 0.05
#: Numbers this many times clear of their threshold are as good as any.
FAR_CLEAR = 20.0
#: What both runs must share for their numbers to mean the same, and how a reader calls it.
BASIS = {
    "suite": "suite (its digest)",
    "statecheck": "version of statecheck",
    "inputs": "text or inputs",
    "dtype": "dtype",
    "input_kind": "kind of inputs",
    "vocabulary": "vocabulary",
    "width": "width of the inputs",
    "training_length": "training length",
    "components": "components of the model",
}


@dataclass(frozen=True)
class Metric:
    """One judged number of a baseline; `value` is None for a part that brought a status and no number."""

    name: str
    where: str
    status: Status
    value: float | None = None
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    n: int = 0
    bounds: tuple[Bound, ...] = ()

    @property
    def better(self) -> str:
        """ "lower", "higher" or "between", from the side on which the criterion passes."""
        sides = {bound.above for bound in self.bounds}
        return "between" if len(sides) != 1 else "higher" if sides == {True} else "lower"

    @property
    def far_clear(self) -> bool:
        """True if the number passed and is at least :data:`FAR_CLEAR` times clear of each bound."""
        if self.value is None or self.status is not Status.PASS or not self.bounds:
            return False
        return all(_far_clear(self.value, bound) for bound in self.bounds)

    def outside(self, value: float) -> float:
        """How far `value` is beyond its bounds; for one bound negative on the safe side."""
        worst = max((b.threshold - value if b.above else value - b.threshold) for b in self.bounds)
        return worst if self.better != "between" else max(worst, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a part without a number has no `value`, `low`, `high`."""
        numbers = {} if self.value is None else {"value": self.value, "low": self.low, "high": self.high}
        return to_plain(
            {
                "name": self.name,
                "where": self.where,
                "status": str(self.status),
                "unit": self.unit,
                "n": self.n,
                "better": self.better,
                "asked": [str(bound) for bound in self.bounds],
                **numbers,
            }
        )

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Metric:
        """The inverse of :meth:`to_json`."""
        return Metric(
            str(data["name"]),
            str(data["where"]),
            Status(data["status"]),
            float(data["value"]) if "value" in data else None,
            float(data.get("low", math.nan)),
            float(data.get("high", math.nan)),
            str(data["unit"]),
            int(data["n"]),
            tuple(map(Bound.parse, data["asked"])),
        )

    def __str__(self) -> str:
        if self.value is None:
            return str(self.status)
        interval = "" if self.low == self.high else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval} {self.unit}".strip() + f" {self.status}"


def _far_clear(value: float, bound: Bound) -> bool:
    clear = value >= FAR_CLEAR * bound.threshold if bound.above else FAR_CLEAR * abs(value) <= bound.threshold
    return bound.threshold > 0 and clear


@dataclass(frozen=True)
class Change:
    """One number before and after. `effect` is "improved", "regressed", "unclear", "unchanged"; `gain` is relative."""

    name: str
    where: str
    before: Metric | None
    after: Metric | None
    effect: str
    gain: float
    reason: str

    @property
    def counts(self) -> bool:
        """True for an improvement of what had not passed."""
        return self.effect == "improved" and self.before is not None and self.before.status is not Status.PASS

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        both = {side: metric and metric.to_json() for side, metric in (("before", self.before), ("after", self.after))}
        plain = {"name": self.name, "where": self.where, "effect": self.effect, "gain": self.gain}
        return to_plain({**plain, "reason": self.reason, **both})


@dataclass(frozen=True)
class Comparison:
    """Whether the later run is accepted, why, and every number before and after."""

    accept: bool
    reasons: tuple[str, ...]
    rows: tuple[Change, ...]

    @property
    def exit_code(self) -> int:
        """0 accepted, 1 refused. What can't be compared raises :class:`StatecheckError` (exit 3) instead."""
        return 0 if self.accept else 1

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "accept": self.accept,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "rows": [row.to_json() for row in self.rows],
        }

    def __str__(self) -> str:
        cells = [[row.effect, row.name, str(row.before or "-"), str(row.after or "-"), row.reason] for row in self.rows]
        shown = [[visible(cell) for cell in row] for row in [["", "number", "before", "after", ""], *cells]]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
        answer = "ACCEPTED" if self.accept else "REFUSED"
        return "\n".join([*lines, "", *(f"{answer}: {visible(reason)}" for reason in self.reasons)])


def baseline_metrics(report: Report) -> dict[str, Any]:
    """The plain form of `baseline_metrics.json`: each judged number, which way is better, and what it rests on."""
    declared = report.model.get("facts")
    facts = declared if isinstance(declared, Mapping) else {}
    basis = {
        "suite": report.suite.get("digest", ""),
        "statecheck": report.environment.get("statecheck", "unknown"),
        "inputs": report.inputs_digest or report.inputs,
        "dtype": facts.get("dtype"),
        "input_kind": facts.get("inputs"),
        "vocabulary": facts.get("vocabulary"),
        "width": facts.get("width"),
        "training_length": facts.get("training_length"),
        "components": sorted(facts.get("components") or ()),
    }
    return to_plain(
        {
            "schema": SCHEMA,
            "kind": "baseline",
            "verdict": report.verdict,
            "model": {"title": report.model.get("title", ""), "digest": report.model.get("digest", "")},
            "suite": {"name": report.suite.get("name", ""), "digest": report.suite.get("digest", "")},
            "inputs": report.inputs,
            "seed": report.seed,
            "basis": basis,
            "metrics": [_metric(part).to_json() for row in report for part in row.parts or (row,)],
        }
    )


def compare(
    before: str | os.PathLike[str] | Mapping[str, Any], after: str | os.PathLike[str] | Mapping[str, Any]
) -> Comparison:
    """Judge the later run against the earlier. Each is a `report.json`, a `baseline_metrics.json`, the folder of a
    run, or the plain data of one.

    Raises :class:`UsageError` (exit 2) for a path that holds no readable file, and :class:`StatecheckError` (exit 3)
    for a file that is half-written or no baseline, and for runs that differ in what their numbers mean (:data:`BASIS`).
    """
    (old_basis, old), (new_basis, new) = _load(before), _load(after)
    different = [
        f"{name} {_brief(old_basis[key])} before, {_brief(new_basis[key])} after"
        for key, name in BASIS.items()
        if old_basis[key] != new_basis[key]
    ]
    if different:
        raise StatecheckError(f"the two runs can't be compared ({'; '.join(different)}): run both on the same terms")
    rows = tuple(_change(a, b) for a, b in _pairs(old, new))
    regressed = [row for row in rows if row.effect == "regressed"]
    improved = [row for row in rows if row.counts]
    if regressed:
        return Comparison(False, tuple(f"{row.name}: {row.reason}" for row in regressed), rows)
    if improved:
        return Comparison(True, tuple(f"{row.name}: {row.reason}; nothing regressed" for row in improved), rows)
    return Comparison(False, (_no_improvement(rows),), rows)


def _no_improvement(rows: Sequence[Change]) -> str:
    if all(row.before is None or row.before.status in _GOOD for row in rows):
        return "every number passed before: there was nothing to fix"
    unclear = [row.name for row in rows if row.effect == "unclear" and row.gain > 0]
    maybe = f"; {', '.join(unclear)} may have, but the intervals overlap: run on more documents" if unclear else ""
    return f"no number that had not passed improved by more than {LEAST_CHANGE:.0%}{maybe}"


def _metric(part: Verdict) -> Metric:
    number = part.measurements[0] if part.measurements and part.criteria else None
    if number is None:
        return Metric(part.id, "", part.status)
    criterion = part.criteria[0]
    bounds = criterion.passes or tuple(Bound(not b.above, b.threshold) for b in criterion.fails)
    where = str(number.where)
    return Metric(part.id, where, part.status, number.value, number.low, number.high, number.unit, number.n, bounds)


_GOOD = (Status.PASS, Status.XFAIL, Status.NOT_APPLICABLE)


def _rank(status: Status) -> int:
    """Place from worst to best; what passes, fails as expected, or can't exist is equally good."""
    return SEVERITY.index(Status.PASS if status in _GOOD else status)


def _pairs(before: Sequence[Metric], after: Sequence[Metric]) -> Iterator[tuple[Metric | None, Metric | None]]:
    """Numbers of one name belong together; where a name stands several times, those of one place."""
    names = list(dict.fromkeys(metric.name for metric in (*before, *after)))
    for name in names:
        old, new = ([metric for metric in side if metric.name == name] for side in (before, after))
        if len(old) == len(new) == 1:
            yield old[0], new[0]
            continue
        for metric in old:
            same = next((other for other in new if other.where == metric.where), None)
            new = [other for other in new if other is not same]
            yield metric, same
        yield from ((None, other) for other in new)


def _change(before: Metric | None, after: Metric | None) -> Change:
    known = before or after
    assert known is not None
    effect, gain, reason = _effect(before, after)
    where = known.where if after is None else after.where
    return Change(known.name, where, before, after, effect, gain, reason)


def _effect(before: Metric | None, after: Metric | None) -> tuple[str, float, str]:
    """(effect, relative gain, sentence) of one number."""
    if before is None or after is None:
        return _unpaired(before, after)
    if before.value is not None and after.value is None:
        return "regressed", -math.inf, f"was measured before, is {after.status} now"
    if _rank(after.status) < _rank(before.status):
        return "regressed", -math.inf, f"was {before.status}, is {after.status} now"
    if before.value is None or after.value is None:
        mended = before.status is Status.FAIL and after.status in (Status.PASS, Status.WARN)
        effect = ("improved", math.inf) if mended else ("unchanged", 0.0)
        return *effect, f"was {before.status} without a number, is {after.status} now"
    if not (math.isfinite(before.value) and math.isfinite(after.value)):
        return _nonfinite(before, after)
    if before.far_clear and after.far_clear:
        return "unchanged", 0.0, f"at least {FAR_CLEAR:g} times clear of its threshold, before and after"
    return _shift(before, after)


def _unpaired(before: Metric | None, after: Metric | None) -> tuple[str, float, str]:
    if after is not None:
        failed = after.status is Status.FAIL
        return "regressed" if failed else "unchanged", 0.0, f"not there before, is {after.status} now"
    judged = before is not None and before.status not in (Status.SKIP, Status.NOT_APPLICABLE)
    return "regressed" if judged else "unchanged", 0.0, "was judged before, is not there now" if judged else "gone"


def _nonfinite(before: Metric, after: Metric) -> tuple[str, float, str]:
    assert before.value is not None
    assert after.value is not None
    if math.isfinite(before.value):
        return "regressed", -math.inf, "is no longer finite"
    if math.isfinite(after.value) and _rank(after.status) > _rank(before.status):
        return "improved", math.inf, f"was not finite, is {after.value:.4g} now"
    return "unchanged", 0.0, "was not finite before"


def _shift(before: Metric, after: Metric) -> tuple[str, float, str]:
    assert before.value is not None
    assert after.value is not None
    nearer = after.outside(before.value) - after.outside(after.value) if after.bounds else 0.0
    gain = nearer / abs(before.value) if before.value else math.copysign(math.inf, nearer) if nearer else 0.0
    word = f"{abs(gain):.1%} {'better' if gain > 0 else 'worse'}"
    if abs(gain) <= LEAST_CHANGE * (1 + 1e-9):
        return "unchanged", gain, word if gain else ""
    apart = before.high < after.low or after.high < before.low
    if not apart:
        return "unclear", gain, f"{word}, but the intervals overlap"
    return "improved" if gain > 0 else "regressed", gain, word


def _load(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], list[Metric]]:
    if isinstance(source, Mapping):
        return _read(source)
    path = Path(source)
    path = path / "report.json" if path.is_dir() else path
    try:
        return _read(_json(path))
    except StatecheckError as error:
        raise error.within(str(path)) from None


def _json(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("no such file: expected a report.json, a baseline_metrics.json or the folder of a run")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UsageError(f"can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StatecheckError(f"expected whole JSON, found {error}: half-written or damaged; make it again") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the bare constant {name}")


def _read(data: Any) -> tuple[dict[str, Any], list[Metric]]:
    check_schema(data)
    try:
        if "items" in data:
            data = baseline_metrics(Report.from_json(data))
        basis = {key: data["basis"][key] for key in BASIS}
        metrics = [Metric.from_json(row) for row in data["metrics"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StatecheckError(f"expected a baseline, found {type(error).__name__}: {error}; make it again") from None
    if not metrics:
        raise StatecheckError("holds no number to compare: run the suite again")
    return basis, metrics


def _brief(value: Any) -> str:
    text = visible(value)
    return text if len(text) <= 60 else f"{text[:40]}..."
