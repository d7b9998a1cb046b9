"""Commands that are one cell, or a table of cells, in a worker: `doctor`, `trace` and `calibrate`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statecheck.commands.asking import Asked, make_plan
from statecheck.commands.run import carry_out
from statecheck.engine import Limits
from statecheck.errors import StatecheckError
from statecheck.plan import Cell, versions
from statecheck.store import RunFolder, default_folder, open_run
from statecheck.supervisor import available_memory, cores, size
from statecheck.wording import one_line

Row = Sequence[str]


def doctor(asked: Asked, *, given: bool, seed: int, limits: Limits) -> int:
    """Print what is there and what is missing; without MODEL (`given` is false), of the machine alone."""
    plan = make_plan("doctor", asked.request() if given else None, [Cell("doctor", "doctor")], seed=seed, suite=None)
    with tempfile.TemporaryDirectory(prefix="statecheck-") as scratch:
        path = Path(scratch, "doctor")
        try:
            with open_run(path, plan) as folder:
                rows = _payload(folder, limits, "doctor")["rows"]
        except StatecheckError as error:
            _print_rows([*_here(), ("model", "no", one_line(error))])
            raise
    _print_rows([*_here(), *rows])
    return 0


def _here() -> list[Row]:
    """What the parent knows without torch."""
    memory = available_memory()
    return [
        ("statecheck", "ok", f"{versions()['statecheck']} on Python {versions()['python']}, {sys.platform}"),
        ("cores", "ok", str(cores())),
        ("memory", "ok", "unknown" if memory is None else f"{size(memory)} available"),
    ]


def _print_rows(rows: Sequence[Row]) -> None:
    width = max(len(row[0]) for row in rows)
    for name, state, text in rows:
        print(f"{state:<4}  {one_line(name):<{width}}  {one_line(text)}")


def _payload(folder: RunFolder, limits: Limits, id: str) -> Mapping[str, Any]:
    """What the one cell brought. Raises :class:`StatecheckError` (exit 3) for a crash, time-out or interruption."""
    ending = carry_out(folder, limits, {})
    result = folder.results().get(id)
    if result is None or result.payload is None:
        error = StatecheckError(result.fault if result and result.fault else "no result")
        error.exit_code = ending.exit_code or 3
        raise error
    return result.payload


def trace(asked: Asked, options: Mapping[str, Any], *, seed: int, out: Path | None, fresh: bool, limits: Limits) -> int:
    """Write the states of the first documents over time as a table and as pictures; print which files.

    `options` are those of :func:`statecheck.tracing.trace_cell`: every, apart, path, length, rows.
    """
    cell = Cell("trace", "trace", options)
    plan = make_plan("trace", asked.request(), [cell], seed=seed, suite=None)
    with open_run(out or default_folder(asked.label, "trace"), plan, fresh=fresh) as folder:
        payload = _payload(folder, limits, "trace")
        files = [folder.path / name for name in payload["files"]]
        folder.note_written(files)
    print(payload["summary"])
    for file in files:
        print(file)
    return 0
