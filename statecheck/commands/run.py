"""`statecheck run` and `statecheck report`: execute a plan, judge what it brought, write and print the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck.catalogue import items
from statecheck.commands.asking import Asked, make_plan
from statecheck.commands.progress import progress
from statecheck.engine import Ending, Limits, execute
from statecheck.errors import StatecheckError, UsageError
from statecheck.plan import Cell
from statecheck.store import Result, RunFolder, default_folder, not_written, open_run, reopen
from statecheck.suite import Suite, judge, load_suite, parse_suite
from statecheck.verdict import Absence, Outcome, Status

if TYPE_CHECKING:
    from statecheck.report.record import Report


def run(
    asked: Asked,
    *,
    suite: str,
    only: Sequence[str],
    seed: int,
    out: Path | None,
    fresh: bool,
    limits: Limits,
) -> int:
    """Check a model with a suite; the exit code is the verdict's, or says why there is none."""
    table = items()
    whole = load_suite(suite, items=table)
    cells = [Cell(item.id) for item in whole.only(only).items]
    about = {"name": whole.name, "digest": whole.digest, "text": whole.text}
    plan = make_plan("run", asked.request(), cells, seed=seed, suite=about)
    with open_run(out or default_folder(asked.label, whole.name), plan, fresh=fresh) as folder:
        ending = carry_out(folder, limits, {id: entry.title for id, entry in table.items()})
        if ending.at_once:
            return ending.exit_code or 130
        return conclude(folder, ending)


def carry_out(folder: RunFolder, limits: Limits, titles: Mapping[str, str]) -> Ending:
    """Run what is unfinished. A run that is refused before anything was done leaves nothing behind."""
    try:
        with progress(len(folder.unfinished()), titles) as show:
            return execute(folder, limits, show)
    except StatecheckError as error:
        if error.exit_code in (2, 4) and not folder.results():
            folder.discard()
        raise


def render(path: Path) -> int:
    """`statecheck report DIR`: judge and write again what a run directory holds."""
    with reopen(path) as folder:
        if folder.plan.command != "run":
            raise UsageError(f"{path} is a `statecheck {folder.plan.command}` directory: it has no report")
        return conclude(folder, Ending())


def conclude(folder: RunFolder, ending: Ending) -> int:
    """Write the report, print it, and say what it means as an exit code."""
    from rich.console import Console

    from statecheck.report.markdown import write_reports
    from statecheck.report.terminal import print_report

    report = make(folder, interrupted=ending.exit_code is not None)
    try:
        folder.note_written(write_reports(report, folder.path))
    except OSError as error:
        raise not_written(folder.path, error) from None
    print_report(report, Console(file=sys.stdout), folder.path)
    return ending.exit_code or report.exit_code


def make(folder: RunFolder, *, interrupted: bool = False) -> Report:
    """The report on what a run directory holds."""
    from statecheck.report.record import make_report

    plan, results, subject = folder.plan, folder.results(), folder.subject()
    assert plan.suite is not None
    table = items()
    whole = parse_suite(plan.suite["text"], items=table)
    suite = whole.only([cell.id for cell in plan.cells])
    outcomes = {id: outcome_of(result) for id, result in results.items()}
    return make_report(
        judge(suite, outcomes, items=table),
        model=subject["model"] if subject else {"title": (plan.request or {})["spec"], "origin": "not loaded"},
        suite={"name": whole.name, "title": whole.title, "digest": whole.digest},
        inputs=subject["inputs"] if subject else "nothing: the model was not loaded",
        inputs_digest=subject["inputs_digest"] if subject else "",
        environment={"statecheck": plan.versions["statecheck"], **(subject["environment"] if subject else {})},
        timings=_timings(subject, results),
        seed=plan.seed,
        notes=_notes(whole, suite, subject, interrupted=interrupted),
    )


def outcome_of(result: Result) -> Outcome:
    """What a cell brought; a fault is an ERROR of the whole item."""
    if result.payload is None:
        return Outcome(absences=(Absence(result.cell, Status.ERROR, result.fault or "no result"),))
    return Outcome.from_json(result.payload)


def _timings(subject: Mapping[str, Any] | None, results: Mapping[str, Result]) -> dict[str, Any]:
    seconds = {id: result.seconds for id, result in results.items()}
    loading = subject["seconds"] if subject else 0.0
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "loading": loading,
        "items": seconds,
        "total": round(loading + sum(seconds.values()), 3),
    }


def _notes(whole: Suite, suite: Suite, subject: Mapping[str, Any] | None, *, interrupted: bool) -> list[str]:
    notes = list(subject["notes"]) if subject else []
    if len(suite.items) < len(whole.items):
        asked = ", ".join(item.id for item in suite.items)
        notes.append(f"only {asked} of the {len(whole.items)} items of {whole.name} were asked for")
    if interrupted:
        notes.append("the run was interrupted; the same command resumes it")
    return notes
