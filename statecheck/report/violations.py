"""What a broken law says: its parts, the simplest case, the first wrong element, and what plays it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from statecheck.catalogue import LAWS
from statecheck.errors import UsageError
from statecheck.escaping import visible
from statecheck.histories.operations import Claim
from statecheck.report.rows import value_text
from statecheck.verdict import Measurement, Status, Verdict

if TYPE_CHECKING:
    from statecheck.report.record import Report

#: From a law and a case ("" for none) to what plays it again.
Replay = Callable[[str, str], str]
FLOOR = "noise floor"


def is_law(row: Verdict) -> bool:
    """True for a law of statecheck's, and for any other item that found a case."""
    return row.id in LAWS or any(number.broken for number in row.measurements)


def broken_laws(report: Report) -> list[Verdict]:
    """The laws that failed, in the order of the suite."""
    return [row for row in report if row.status is Status.FAIL and is_law(row)]


def replay_of(report: Report) -> Replay:
    """A command where the model was named on the command line, else a call of `check_model`."""
    asked, effort = report.model.get("asked"), report.suite.get("effort") or {}
    return command(asked, report.seed, effort) if asked else call(report.seed, effort)


def command(asked: list[str], seed: int, effort: Mapping[str, object] | None = None) -> Replay:
    """As `statecheck conform` takes it; `effort` are the budget's options, which a case needs none of.

    >>> print(command(["my_models:build"], 7)("STEP", "1x2@0: feed(0:1) feed(1:2) == whole(0:2)"))
    statecheck conform my_models:build --law STEP --case '1x2@0: feed(0:1) feed(1:2) == whole(0:2)' --seed 7
    """

    def words(law: str, case: str) -> str:
        budget = [word for name, value in (effort or {}).items() if not case for word in (f"--{name}", str(value))]
        chosen = ["--case", case] if case else budget
        return shlex.join(["statecheck", "conform", *asked, "--law", law, *chosen, "--seed", str(seed)])

    return words


def call(seed: int, effort: Mapping[str, object] | None = None) -> Replay:
    """As Python takes it.

    >>> call(0)("NUM", "")
    'sc.check_model(model, suite="conformance", only=["NUM"], seed=0)'
    """

    def text(law: str, case: str) -> str:
        budget = "".join(f", {name}={value}" for name, value in (effort or {}).items() if not case)
        chosen = f', case="{case}"' if case else budget
        return f'sc.check_model(model, suite="conformance", only=["{law}"]{chosen}, seed={seed})'

    return text


def replayable(case: str) -> bool:
    """True if a law takes this case back: a claim, not what a law draws for itself alone."""
    try:
        Claim.parse(case)
    except UsageError:
        return False
    return True


def told(number: Measurement) -> str:
    """What the case gave, without the case: '0.5 relative, first at row 0, position 1, ...'."""
    return number.note.removeprefix(f"simplest: {number.broken} gives ")


def replays(row: Verdict, replay: Replay) -> list[str]:
    """What plays the failed parts of a law again, each once."""
    cases = [part.measurements[0].broken for part in failed(row) if part.measurements]
    usable = [case for case in cases if case and replayable(case)]
    return [replay(row.id, case) for case in dict.fromkeys(usable)] or [replay(row.id, "")]


def failed(row: Verdict) -> list[Verdict]:
    """The parts of a row that failed."""
    return [part for part in row.parts if part.status is Status.FAIL]


def lines_of(row: Verdict, replay: Replay) -> list[str]:
    """A failed law as lines of plain text, nothing in them hidden: a part each, then what to do."""
    lines = [f"{row.id} {row.status}: {row.title}"]
    for part in row.parts:
        number = part.measurements[0] if part.measurements else None
        lines.append(f"  {part.id} {part.status}: {value_text(number) if number else part.reason}")
        if part.status is Status.FAIL and number:
            lines += [f"    {line}" for line in _found(number, _floor(row))]
    lines += [f"  replay: {line}" for line in replays(row, replay)]
    advice = dict.fromkeys(part.criteria[0].advice for part in failed(row) if part.criteria)
    return [visible(line) for line in [*lines, *(f"  {text}" for text in advice if text)]]


def _found(number: Measurement, floor: str) -> list[str]:
    if not number.broken:
        return [number.note] if number.note else []
    where = f" ({floor})" if floor else ""
    error, comma, first = told(number).partition(", ")
    return [f"case: {number.broken}", f"found: {error}{where}{comma}{first}"]


def _floor(row: Verdict) -> str:
    values = [number.value for number in row.shown if number.name == FLOOR]
    return f"{FLOOR} {values[0]:.2g}" if values else ""
