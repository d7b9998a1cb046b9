"""The rows of every table of a report, as text: one for an item, one for a part. Nothing here is escaped yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statecheck.escaping import visible
from statecheck.gate import count_line
from statecheck.verdict import Criterion, Measurement, Status, Verdict

if TYPE_CHECKING:
    from statecheck.report.record import Report

NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """What a table shows of one verdict. `value` to `where` are "-" where there is no number."""

    id: str
    title: str
    status: Status
    value: str
    interval: str
    asked: str
    where: str
    reason: str
    broken: bool = False  # a law that was broken by a case, which has lines of its own

    @property
    def estimate(self) -> str:
        """The value with its interval: '1.04 [1.01, 1.1]'."""
        return self.value if self.interval == NOTHING else f"{self.value} {self.interval}"


def row_of(verdict: Verdict) -> Row:
    """The row of an item or a part; an item shows the number of the part that decides it."""
    part = deciding(verdict)
    number = part.measurements[0] if part.measurements else None
    return Row(
        verdict.id,
        verdict.title,
        verdict.status,
        value_text(number) if number else NOTHING,
        interval_text(number) if number else NOTHING,
        asked_text(part.criteria[0]) if number and part.criteria else NOTHING,
        str(number.where) if number else NOTHING,
        verdict.reason,
        verdict.status is Status.FAIL and any(number.broken for number in verdict.measurements),
    )


def deciding(verdict: Verdict) -> Verdict:
    """The part that gives an item its status: the one whose reason the item repeats, or the verdict itself."""
    same = [part for part in verdict.parts if part.status is verdict.status]
    spoken = [part for part in same if part.reason in verdict.reason]
    return (spoken or same or [verdict])[0]


def value_text(number: Measurement) -> str:
    """
    >>> value_text(Measurement("benefit", 0.12345, "nats"))
    '0.1235 nats'
    """
    return f"{number.value:.4g} {number.unit}".strip()


def interval_text(number: Measurement) -> str:
    """'[low, high]'; '-' for an exact number, 'unknown' where no interval could be had.

    >>> interval_text(Measurement("x", 1, low=0.5, high=2))
    '[0.5, 2]'
    """
    if math.isnan(number.low) or math.isnan(number.high):
        return "[unknown]"
    return NOTHING if number.low == number.high else f"[{number.low:.4g}, {number.high:.4g}]"


def asked_text(criterion: Criterion) -> str:
    """What passes and, where something lies between, what fails.

    >>> from statecheck.verdict import Bound
    >>> asked_text(Criterion("D1.growth", (Bound.parse("< 2"),), (Bound.parse("> 10"),), "phase 3.9"))
    '< 2 (fails > 10)'
    >>> asked_text(Criterion("S3.difference", (Bound.parse("< 1"),), (Bound.parse("> 1"),), "phase 3.9"))
    '< 1'
    """
    passes, _, fails = sides(criterion)
    if not criterion.passes:
        return f"not {fails}"
    return f"{passes} (fails {fails})" if _between(criterion) else passes


def sides(criterion: Criterion) -> tuple[str, str, str]:
    """What passes, warns and fails, as a table shows it."""
    warns = " and ".join(map(str, criterion.warns)) or ("between" if _between(criterion) else NOTHING)
    passes = " and ".join(map(str, criterion.passes)) or "what does not fail"
    return passes, warns, " or ".join(map(str, criterion.fails)) or NOTHING


def _between(criterion: Criterion) -> bool:
    """True if there are values that neither pass nor fail."""
    edges = {bound.threshold for bound in criterion.passes}
    return bool(criterion.passes) and any(bound.threshold not in edges for bound in criterion.fails)


def counts(report: Report) -> str:
    """'1 FAIL, 9 PASS of 15 items'."""
    return f"{count_line(report.verdicts) or 'none'} of {len(report.verdicts)} items"


def plain_lines(report: Report) -> list[str]:
    """The report as lines of plain text for a pipe, a log or `str(report)`: one line an item, then the decision.

    A row that did not pass is followed by its reason on the same line; a law that was broken has a block below.
    """
    from statecheck.report.violations import broken_laws, lines_of, replay_of

    rows = [row_of(verdict) for verdict in report]
    widths = [max((len(text) for text in column), default=0) for column in zip(*map(_cells, rows), strict=True)]
    lines = ["  ".join([*map(str.ljust, _cells(row), widths), remark(row)]).rstrip() for row in rows]
    blocks = [line for row in broken_laws(report) for line in ("", *lines_of(row, replay_of(report)))]
    return [*lines, *blocks, "", f"{report.decision.banner}: {report.decision.meaning}", counts(report)]


def _cells(row: Row) -> list[str]:
    return [str(row.status), visible(row.id), visible(row.estimate), visible(row.asked)]


def part_remark(part: Verdict) -> str:
    """The note of a part that passed, the reason of one that did not or that has no number."""
    if part.status is not Status.PASS or not part.measurements:
        return part.reason
    return part.measurements[0].note or NOTHING


def remark(row: Row) -> str:
    """Where the number was found, for a row that passed; else the reason, or that it stands below."""
    if row.broken:
        return "broken, see below"
    passed = row.status is Status.PASS and row.where != NOTHING
    return visible(f"at {row.where}" if passed else row.reason)
