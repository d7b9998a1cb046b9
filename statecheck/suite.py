"""Suites: which items are run, and the only home of thresholds. Reading a suite file, and judging by it.

A suite file is TOML:

    name = "phase39"
    title = "..."
    [[item]]
    id = "D1"
    required = true                 # default
    options = { baseline = 1.0 }    # keyword arguments of the item's function
    [[item.criterion]]
    on = "D1.growth"                # a measurement that the item makes
    pass = "< 2"                    # the whole interval must clear this ...
    fail = "> 10"                   # ... fails when it is wholly beyond this; between the two: WARN
    warn = "< 0.005"                # optional: warns where it neither passes nor fails
    source = "..."                  # where the numbers come from
    advice = "..."                  # what to do when it fails

Without `pass` a measurement passes unless it fails. An interval that straddles a threshold is INCONCLUSIVE. All items
must pass, so PASS needs no correction for multiplicity; every FAIL that rests on an interval is corrected (Holm).
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from statecheck.catalogue import CASELESS, ITEMS, LAWS, ItemEntry, suggest
from statecheck.errors import UsageError
from statecheck.histories.operations import Claim
from statecheck.verdict import Absence, Bound, Criterion, Measurement, Outcome, Status, Verdict, worst

ALPHA = 0.05


@dataclass(frozen=True)
class SuiteItem:
    """One item of a suite: its options and criteria."""

    id: str
    required: bool
    options: Mapping[str, Any]
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True)
class Suite:
    """A suite as read. `digest` is the SHA-256 of its text; `text` is what a plan keeps."""

    name: str
    title: str
    items: tuple[SuiteItem, ...]
    digest: str
    text: str

    def only(self, wanted: Sequence[str], *, option: str = "--only") -> Suite:
        """The suite cut down to some items; UsageError for an id that it does not hold."""
        known = [item.id for item in self.items]
        for id in wanted:
            if id not in known:
                raise UsageError(f"{option} {id}: not an item of suite {self.name!r}{suggest(id, known)}")
        return replace(self, items=tuple(item for item in self.items if item.id in wanted)) if wanted else self


def refuse_case(case: str, laws: Sequence[str]) -> None:
    """Raise :class:`UsageError` for a case that can't be read, and for one that is not asked of a single law.

    >>> refuse_case("1x2@0: feed(0:1) feed(1:2) == whole(0:2)", ["STEP"])
    """
    Claim.parse(case)
    if len(laws) != 1:
        raise UsageError(f"a case is one of a single law: name exactly one (--law, or only=), found {len(laws)}")
    if laws[0] not in LAWS or laws[0] in CASELESS:
        raise UsageError(f"{laws[0]} takes no case, as it draws no histories; the same seed draws the same again")


def bundled() -> list[str]:
    """Names of the suites that come with statecheck.

    >>> bundled()
    ['conformance', 'phase39', 'smoke']
    """
    return sorted(
        path.name.removesuffix(".toml") for path in files("statecheck.suites").iterdir() if path.name.endswith(".toml")
    )


def load_suite(name: str | Path, *, items: Mapping[str, ItemEntry] = ITEMS) -> Suite:
    """A bundled suite by name, or a suite file. Raises :class:`UsageError` for anything that is off in it.

    >>> [item.id for item in load_suite("smoke").items]
    ['S0', 'S1', 'S2', 'S3']
    """
    if str(name) in bundled():
        text = files("statecheck.suites").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = _read(Path(name))
    else:
        raise UsageError(f"no suite {str(name)!r}: not a file{suggest(str(name), bundled())}")
    try:
        return parse_suite(text, items=items)
    except UsageError as error:
        raise error.within(f"suite {str(name)!r}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"suite {str(path)!r}: expected a UTF-8 TOML file that can be read, found {error}") from None


def parse_suite(text: str, *, items: Mapping[str, ItemEntry] = ITEMS) -> Suite:
    """A suite from the text of its file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}") from None
    _shape(data, {"name": (str,), "title": (str,), "item": (list,)}, "at the top")
    rows = tuple(_item(row, items) for row in data.get("item", []))
    if not rows:
        raise UsageError("holds no [[item]]: nothing would be checked")
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        raise UsageError(f"names an item twice: {', '.join(sorted({i for i in ids if ids.count(i) > 1}))}")
    return Suite(
        str(data.get("name", "unnamed")),
        str(data.get("title", "")),
        rows,
        hashlib.sha256(text.encode()).hexdigest(),
        text,
    )


def _item(row: Mapping[str, Any], items: Mapping[str, ItemEntry]) -> SuiteItem:
    _shape(row, {"id": (str,), "required": (bool,), "options": (dict,), "criterion": (list,)}, "in an [[item]]")
    id = row.get("id", "")
    if id not in items:
        raise UsageError(f"unknown item {id!r}{suggest(str(id), items)}")
    criteria = tuple(_criterion(entry, id) for entry in row.get("criterion", []))
    if not criteria:
        raise UsageError(f"item {id!r} has no [[item.criterion]]: it could not fail")
    return SuiteItem(id, bool(row.get("required", True)), dict(row.get("options", {})), criteria)


_BOUNDS: tuple[type, ...] = (str, list)
_TEXT: tuple[type, ...] = (str,)
_CRITERION = {"on": _TEXT, "pass": _BOUNDS, "fail": _BOUNDS, "warn": _BOUNDS, "source": _TEXT, "advice": _TEXT}


def _criterion(row: Mapping[str, Any], id: str) -> Criterion:
    _shape(row, _CRITERION, f"in a criterion of {id}")
    on, source = row.get("on"), row.get("source")
    if not on or not source:
        raise UsageError(f"a criterion of {id} needs 'on' (a measurement) and 'source' (where its numbers come from)")
    sides = {side: _bounds(row.get(side, []), on) for side in ("pass", "fail", "warn")}
    if not sides["fail"] and not sides["pass"]:
        raise UsageError(f"the criterion on {on} has neither 'pass' nor 'fail'")
    _satisfiable(sides["pass"], sides["fail"], on)
    return Criterion(on, sides["pass"], sides["fail"], source, row.get("advice", ""), sides["warn"])


def _bounds(value: str | list[str], on: str) -> tuple[Bound, ...]:
    try:
        return tuple(Bound.parse(text) for text in ([value] if isinstance(value, str) else value))
    except ValueError as error:
        raise UsageError(f"criterion on {on}: {error}") from None


def _satisfiable(passes: Sequence[Bound], fails: Sequence[Bound], on: str) -> None:
    # Without `pass`, what does not fail passes: the other side of each failing bound is what is asked for.
    asked = passes or [Bound(not b.above, b.threshold) for b in fails]
    low = max((b.threshold for b in asked if b.above), default=-math.inf)
    high = min((b.threshold for b in asked if not b.above), default=math.inf)
    if low >= high:
        raise UsageError(f"criterion on {on} can't be met: it asks for > {low:g} and < {high:g}")
    for bound in fails if passes else ():
        inside = bound.threshold < high if bound.above else bound.threshold > low
        if inside:
            raise UsageError(f"criterion on {on}: '{bound}' fails values that 'pass' accepts")


def _shape(row: Any, kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Refuse what is not a table, an unknown key, and a value of the wrong type."""
    if not isinstance(row, dict):
        raise UsageError(f"expected a table {where}, found {row!r}")
    for key, value in row.items():
        if key not in kinds:
            raise UsageError(f"unknown key {key!r} {where}{suggest(key, kinds)}")
        if not isinstance(value, kinds[key]):
            names = " or ".join(_TOML_NAMES[kind] for kind in kinds[key])
            raise UsageError(f"{key!r} {where}: expected {names}, found {value!r}")


_TOML_NAMES = {str: "a text", bool: "true or false", dict: "a table", list: "a list"}


def judge(suite: Suite, outcomes: Mapping[str, Outcome], *, items: Mapping[str, ItemEntry] = ITEMS) -> list[Verdict]:
    """One verdict an item, in the order of the suite. An item without an outcome is ERROR, never passed."""
    judged = [(item, part) for item in suite.items for part in _judge_parts(item, outcomes.get(item.id))]
    corrected = _holm([part for _, part in judged])
    rows = []
    for item in suite.items:
        own = tuple(part for (owner, _), part in zip(judged, corrected, strict=True) if owner is item)
        rows.append(_fold(item, own, outcomes.get(item.id, Outcome()), items[item.id].title))
    return rows


def folded(row: Verdict, parts: tuple[Verdict, ...]) -> Verdict:
    """`row` with these parts: as bad as the worst of them, with that part's reason."""
    status = worst(part.status for part in parts)
    deciding = [part for part in parts if part.status is status]
    if status is Status.PASS:
        deciding = sorted(deciding, key=_margin)[:1]
    reason = "; ".join(f"{part.id}: {part.reason}" if part.id != row.id else part.reason for part in deciding)
    return replace(row, status=status, reason=reason, parts=parts)


def _judge_parts(item: SuiteItem, outcome: Outcome | None) -> list[Verdict]:
    """Every measurement with a criterion, and every absence; a criterion with neither is ERROR."""
    if outcome is None:
        return [Verdict(item.id, Status.ERROR, "no result: the item did not run to its end")]
    parts = [_absent(absence) for absence in outcome.absences]
    whole = any(absence.name == item.id for absence in outcome.absences)
    for criterion in item.criteria:
        named = [m for m in outcome.measurements if m.name == criterion.measurement]
        parts += [_judge_one(m, criterion) for m in named]
        if not whole and not named and all(absence.name != criterion.measurement for absence in outcome.absences):
            missing = f"the probe of {item.id} brought no {criterion.measurement}"
            parts.append(Verdict(criterion.measurement, Status.ERROR, missing))
    return parts


def _absent(absence: Absence) -> Verdict:
    place = f" ({absence.where})" if absence.where.to_json() else ""
    return Verdict(absence.name, absence.status, absence.reason + place, unfinished=absence.unfinished)


def _judge_one(m: Measurement, criterion: Criterion) -> Verdict:
    status = _status(m, criterion)
    p_value = min((m.p_beyond(b.threshold, above=b.above) for b in criterion.fails), default=1.0)
    return Verdict(m.name, status, _reason(m, criterion, status), "", (m,), (criterion,), p_value=p_value)


def _status(m: Measurement, criterion: Criterion) -> Status:
    if not math.isfinite(m.value):
        return Status.FAIL
    if any(bound.clear(m.low, m.high) for bound in criterion.fails):
        return Status.FAIL
    if math.isnan(m.low) or math.isnan(m.high):
        return Status.INCONCLUSIVE
    if all(bound.clear(m.low, m.high) for bound in criterion.passes):
        return Status.PASS
    if criterion.warns:
        return Status.WARN if all(b.clear(m.low, m.high) for b in criterion.warns) else Status.INCONCLUSIVE
    return Status.WARN if _between(m, criterion) else Status.INCONCLUSIVE


def _between(m: Measurement, criterion: Criterion) -> bool:
    """The whole interval lies on the wrong side of a `pass` bound and on the right side of every `fail` bound."""
    beyond_pass = any(m.low >= b.threshold if not b.above else m.high <= b.threshold for b in criterion.passes)
    short_of_fail = all(m.high <= b.threshold if b.above else m.low >= b.threshold for b in criterion.fails)
    return beyond_pass and short_of_fail


def _reason(m: Measurement, criterion: Criterion, status: Status) -> str:
    value = f"{m.value:.4g}" + (f" {m.unit}" if m.unit else "")
    interval = "" if m.low == m.high else f" [{m.low:.4g}, {m.high:.4g}]"
    asked = " and ".join(map(str, criterion.passes)) or "no failure"
    sentence = f"{value}{interval} at {m.where}; asked {asked}"
    if criterion.fails:
        sentence += f", fails {' or '.join(map(str, criterion.fails))}"
    if m.note:
        sentence += f"; {m.note}"
    if status in (Status.FAIL, Status.WARN) and criterion.advice:
        sentence += f". {criterion.advice}"
    return sentence


def _holm(parts: Sequence[Verdict]) -> list[Verdict]:
    """Holm's correction over all parts that could fail on an interval; a FAIL that does not survive is INCONCLUSIVE."""
    from statecheck.statistics import holm  # scipy: only where something is judged

    family = [i for i, part in enumerate(parts) if part.measurements and part.criteria[0].fails and _spread(part)]
    corrected = list(parts)
    for index, p_value in zip(family, holm([parts[i].p_value for i in family]), strict=True):
        if p_value > ALPHA * (1 + 1e-9):
            corrected[index] = _withdrawn(parts[index], len(family))
    return corrected


def _spread(part: Verdict) -> bool:
    m = part.measurements[0]
    return m.low != m.high and math.isfinite(m.value)


def _withdrawn(part: Verdict, tests: int) -> Verdict:
    if part.status is not Status.FAIL:
        return part
    reason = f"{part.reason}; beyond the threshold at 95 % but not after Holm's correction for {tests} tests"
    return replace(part, status=Status.INCONCLUSIVE, reason=reason)


def _fold(item: SuiteItem, parts: tuple[Verdict, ...], outcome: Outcome, title: str) -> Verdict:
    """The row of an item."""
    row = Verdict(
        id=item.id,
        status=Status.ERROR,
        reason="",
        title=title,
        measurements=outcome.measurements,
        criteria=item.criteria,
        shown=outcome.shown,
        series=outcome.series,
        notes=outcome.notes,
        required=item.required,
        unfinished=any(part.unfinished for part in parts),
    )
    return folded(row, parts)


def _margin(part: Verdict) -> float:
    """How far a passing part is from its threshold, relative to the threshold: the closest speaks for the row."""
    m, bounds = part.measurements[0], part.criteria[0].passes
    return min((abs(m.value - b.threshold) / (abs(b.threshold) or 1.0) for b in bounds), default=math.inf)
