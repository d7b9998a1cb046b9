"""`statecheck baseline` and `statecheck compare`: the numbers of a healthy model, and whether a fix is one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from statecheck.atomic import atomic_write_text
from statecheck.commands.asking import Asked
from statecheck.commands.run import run
from statecheck.compare import baseline_metrics
from statecheck.compare import compare as judge_change
from statecheck.engine import Limits
from statecheck.errors import StatecheckError, UsageError
from statecheck.report.record import Report, json_text
from statecheck.store import default_folder, not_written
from statecheck.wording import raised


def baseline(
    asked: Asked, *, suite: str, seed: int, out: Path, run_folder: Path | None, fresh: bool, limits: Limits
) -> int:
    """Write the judged numbers of a model, or of a run directory given in place of MODEL, to `out`."""
    folder = Path(asked.spec) if asked.spec and is_run(Path(asked.spec)) else None
    if folder is None:
        folder = run_folder or default_folder(asked.label, suite)
        code = run(asked, suite=suite, only=[], seed=seed, out=folder, fresh=fresh, limits=limits)
        if code in (130, 143):
            return code
    report = read_report(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(out, json_text(baseline_metrics(report)))
    except OSError as error:
        raise not_written(out, error) from None
    if report.verdict != "PASS":
        print(f"note: this baseline is of a model whose verdict is {report.verdict}", file=sys.stderr)
    print(f"baseline: {out}")
    return 0


def is_run(path: Path) -> bool:
    """True for a run directory."""
    return os.path.isfile(path / "plan.json")


def read_report(folder: Path) -> Report:
    """The report of a run directory. Raises :class:`UsageError` if it has none, StatecheckError if it is damaged."""
    path = folder / "report.json"
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; finish the run, or `statecheck report {folder}`") from None
    except ValueError as error:
        raise StatecheckError(f"{path}: not whole JSON ({raised(error)}); `statecheck report {folder}`") from None


def compare(before: Path, after: Path, *, as_json: bool) -> int:
    """Print what changed from one run to another; 0 if the later one is accepted, 1 if not."""
    comparison = judge_change(before, after)
    print(json_text(comparison.to_json()) if as_json else comparison, end="\n" if not as_json else "")
    return comparison.exit_code
