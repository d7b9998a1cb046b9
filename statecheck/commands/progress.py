"""How a run goes, on standard error: a progress bar in a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from statecheck.plan import Cell

if TYPE_CHECKING:
    from rich.progress import Progress

    from statecheck.engine import Show


@contextmanager
def progress(cells: int, titles: Mapping[str, str]) -> Iterator[Show]:
    """Who is told of `cells` cells; `titles` says what each id means to a reader."""
    if not sys.stderr.isatty():
        yield PlainLines(cells, titles)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, cells, titles)


class PlainLines:
    """One line for each cell that is done."""

    def __init__(self, cells: int, titles: Mapping[str, str]) -> None:
        self._cells = cells
        self._done = 0
        self._titles = titles

    def loading(self) -> None:
        self.note("loading")

    def started(self, cell: Cell) -> None:
        """Nothing: a line each is enough."""

    def finished(self, cell: Cell, seconds: float, fault: str | None) -> None:
        self._done += 1
        self.note(f"[{self._done}/{self._cells}] {_label(cell, self._titles)}: {fault or f'{seconds:.1f} s'}")

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bar:
    """A bar over the cells, with the title of the one that runs."""

    def __init__(self, bar: Progress, cells: int, titles: Mapping[str, str]) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=cells)
        self._titles = titles

    def loading(self) -> None:
        self._bar.update(self._task, description="loading")

    def started(self, cell: Cell) -> None:
        self._bar.update(self._task, description=_label(cell, self._titles))

    def finished(self, cell: Cell, seconds: float, fault: str | None) -> None:
        if fault:
            self.note(f"{cell.id}: {fault}")
        self._bar.advance(self._task)

    def note(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)


def _label(cell: Cell, titles: Mapping[str, str]) -> str:
    return f"{cell.id} {titles[cell.id]}" if cell.id in titles else cell.id
