"""`statecheck run` and `statecheck report`: execute a plan, judge what it brought, write and print the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck.catalogue import items
from statecheck.commands.asking import Asked, make_plan
from statecheck.commands.progress import progress
from statecheck.engine import Ending, Limits, execute
from statecheck.errors import StatecheckError, UsageError
from statecheck.expected import expect
from statecheck.plan import Cell, Plan
from statecheck.store import (
    Result,
    RunFolder,
    default_folder,
    not_written,
    open_run,
    read_expected,
    reopen,
    write_expected,
)
from statecheck.suite import Suite, judge, load_suite, parse_suite
from statecheck.verdict import Absence, Outcome, Status

if TYPE_CHECKING:
    from statecheck.report.record import Report


#: Commands whose run directory holds a report.
REPORTING = ("run", "conform")


@dataclass(frozen=True)
class Told:
    """Who else is told: a file of JUnit XML, and GitHub (by annotations on standard output)."""

    junit: Path | None = None
    github: bool = False

    @staticmethod
    def of(junit: Path | None, github: bool | None) -> Told:
        """As typed: without --github or --no-github, GitHub is told in its own workflows."""
        from statecheck.report.github import wanted

        return Told(junit, wanted() if github is None else github)

    def refuse_unwritable(self) -> None:
        """Raise :class:`UsageError` before anything has run, where the file could not be written."""
        if self.junit is not None and not self.junit.absolute().parent.is_dir():
            raise UsageError(f"--junit {self.junit}: the folder {self.junit.parent} does not exist; make it first")
        if self.junit is not None and self.junit.is_dir():
            raise UsageError(f"--junit {self.junit}: expected a file, found a folder")

    def tell(self, report: Report) -> None:
        """Write the file and print the annotations."""
        from statecheck.report.github import annotation_lines
        from statecheck.report.junit import write_junit

        if self.junit is not None:
            try:
                write_junit(report, self.junit)
            except OSError as error:
                raise not_written(self.junit, error) from None
        for line in annotation_lines(report) if self.github else ():
            print(line)


def run(
    asked: Asked,
    *,
    suite: str,
    only: Sequence[str],
    seed: int,
    out: Path | None,
    fresh: bool,
    limits: Limits,
    told: Told = Told(),
) -> int:
    """Check a model with a suite; the exit code is the verdict's, or says why there is none."""
    whole = load_suite(suite, items=items())
    cells = [Cell(item.id) for item in whole.only(only).items]
    about = {"name": whole.name, "digest": whole.digest, "text": whole.text}
    plan = make_plan("run", asked.request(), cells, seed=seed, suite=about)
    return check(asked.label, plan, out=out, fresh=fresh, limits=limits, told=told)


def check(
    label: str,
    plan: Plan,
    *,
    out: Path | None,
    fresh: bool,
    limits: Limits,
    told: Told,
    expected: Mapping[str, str] | None = None,
) -> int:
    """Execute a plan with a suite and report on it. `expected` failures decide no number: resuming may change them."""
    assert plan.suite is not None
    told.refuse_unwritable()
    with open_run(out or default_folder(label, plan.suite["name"]), plan, fresh=fresh) as folder:
        write_expected(folder.path, expected or {})
        ending = carry_out(folder, limits, {id: entry.title for id, entry in items().items()})
        if ending.at_once:
            return ending.exit_code or 130
        return conclude(folder, ending, told)


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
        if folder.plan.command not in REPORTING:
            raise UsageError(f"{path} is a `statecheck {folder.plan.command}` directory: it has no report")
        return conclude(folder, Ending())


def conclude(folder: RunFolder, ending: Ending, told: Told = Told()) -> int:
    """Write the report, print it, tell others, and say what it means as an exit code."""
    from rich.console import Console

    from statecheck.report.markdown import write_reports
    from statecheck.report.terminal import print_report

    report = make(folder, interrupted=ending.exit_code is not None)
    try:
        folder.note_written(write_reports(report, folder.path))
    except OSError as error:
        raise not_written(folder.path, error) from None
    print_report(report, Console(file=sys.stdout), folder.path)
    told.tell(report)
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
    model = subject["model"] if subject else {"title": (plan.request or {})["spec"], "origin": "not loaded"}
    about = {"name": whole.name, "title": whole.title, "digest": whole.digest}
    return make_report(
        expect(judge(suite, outcomes, items=table), read_expected(folder.path)),
        model={**model, "asked": asked_words(plan.request or {})},
        suite={**about, "effort": effort} if (effort := _effort(plan)) else about,
        inputs=subject["inputs"] if subject else "nothing: the model was not loaded",
        inputs_digest=subject["inputs_digest"] if subject else "",
        environment={"statecheck": plan.versions["statecheck"], **(subject["environment"] if subject else {})},
        timings=_timings(subject, results),
        seed=plan.seed,
        notes=_notes(whole, suite, subject, interrupted=interrupted),
    )


def asked_words(request: Mapping[str, Any]) -> list[str]:
    """MODEL and the options that say how to read it, as they may be typed again.

    >>> asked_words({"spec": "my_models:build", "model": None, "loader": None, "device": "cpu", "dtype": "float64"})
    ['my_models:build', '--dtype', 'float64']
    """
    options = {"model": None, "loader": None, "device": "cpu", "dtype": None}
    said = {name: request.get(name) for name, usual in options.items() if request.get(name) not in (None, usual)}
    return [str(request["spec"]), *(word for name, value in said.items() for word in (f"--{name}", str(value)))]


def _effort(plan: Plan) -> dict[str, Any]:
    """The budget that was asked for, as options name it."""
    return {name: value for cell in plan.cells[:1] for name, value in cell.options.items() if name != "case"}


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
