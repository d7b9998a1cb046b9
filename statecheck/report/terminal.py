"""The report on a terminal: a table with colours; plain lines where the output is a pipe, a file or a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from statecheck.escaping import visible
from statecheck.report.prose import answer
from statecheck.report.record import Report
from statecheck.report.rows import counts, plain_lines, remark, row_of
from statecheck.report.violations import broken_laws, lines_of, replay_of
from statecheck.verdict import Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = {
    Status.PASS: "green",
    Status.XFAIL: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.ERROR: "magenta",
    Status.NOT_APPLICABLE: "dim",
}
UNDECIDED = "cyan"
VIOLATIONS = "violations"  # where a run keeps a script for each law that was broken
BANNERS = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


def print_report(report: Report, console: Console, folder: str | Path | None = None) -> None:
    """Print the table, the banner, what it means, and where the files lie (`folder`).

    Names that come from the model are printed as they are: neither markup nor terminal codes in them take effect.
    """
    from rich.text import Text

    if not console.is_terminal:
        for line in [*plain_lines(report), answer(report, visible), *_files(report, folder)]:
            console.print(Text(line), soft_wrap=True)
        return
    console.print(_table(report))
    for row in broken_laws(report):
        console.print(Text("\n".join([*lines_of(row, replay_of(report)), ""])), soft_wrap=True)
    console.print(Text(report.decision.banner, BANNERS[report.verdict]))
    console.print(Text(f"{report.decision.meaning}. {counts(report)}."))
    console.print(Text(answer(report, visible)))
    for line in _files(report, folder):
        console.print(Text(line), soft_wrap=True)


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = visible(f"{report.model.get('title') or 'model'}, suite {report.suite.get('name') or 'unnamed'}")
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False)
    for name in ("Status", "Item", "Value", "Asked"):
        table.add_column(name, overflow="fold")
    table.add_column("Where, or why not", overflow="fold", ratio=1)
    for row in map(row_of, report):
        status = Text(str(row.status), COLOURS.get(row.status, UNDECIDED))
        table.add_row(status, *(Text(visible(cell)) for cell in (row.id, row.estimate, row.asked)), Text(remark(row)))
    return table


def _files(report: Report, folder: str | Path | None) -> list[str]:
    if folder is None:
        return []
    names = (report.decision.file_name, "statefulness_report.md", "report.json")
    scripts = sorted((Path(folder) / VIOLATIONS).glob("*/*.py"))
    return [visible(f"report: {Path(folder) / name}") for name in names] + [visible(f"script: {p}") for p in scripts]
