"""The run directory: what a run was asked, what it has done so far, and who is at it.

    plan.json             what was asked; the same plan resumes, another one is refused
    results/CELL.json     one file a cell, whole or not there
    events-WRITER.jsonl   what happened when; one writer a file, lines are only added
    worker-N.log          what the model printed, and tracebacks
    violations/           of each law that was broken, a script that shows it, and its inputs
    expected.json         failures that the last command was told to expect
    subject.json          what the worker found MODEL to be, the environment, and which source files it loaded
    written.json          the names of report files, so that `--fresh` removes what statecheck wrote and nothing else
    lock                  held (flock) by the one process that works here

Files are replaced atomically: a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from statecheck.atomic import atomic_write_text, sweep_temporaries
from statecheck.errors import StatecheckError, UsageError
from statecheck.plan import FORMAT, Cell, Plan, digest

#: What statecheck writes besides reports, as shell patterns below the run directory.
OWN_FILES = (
    *("plan.json", "subject.json", "written.json", "expected.json", "results/*.json", "events-*.jsonl"),
    *("worker-*.log", "violations/*/*.py", "violations/*/*.safetensors", "violations/*.pt"),
)
EXPECTED = "expected.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(StatecheckError):
    """A file of the run could not be written: the disk is full, or the folder went away."""


@dataclass(frozen=True)
class Result:
    """What became of one cell: a payload, or the fault (crash, time-out, no memory) that kept it from having one."""

    cell: str
    payload: Mapping[str, Any] | None
    seconds: float
    worker: str
    fault: str | None = None


class RunFolder:
    """A run directory, locked for this process until :meth:`close`; made by :func:`open_run` and :func:`reopen`."""

    def __init__(self, path: Path, plan: Plan, lock: IO[str], *, created: bool) -> None:
        self.path = path
        self.plan = plan
        self._lock = lock
        self._created = created

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others work here."""
        self._lock.close()

    def results(self) -> dict[str, Result]:
        """Results so far by cell id, in the order of the plan."""
        found = {cell.id: read_result(self.path, cell) for cell in self.plan.cells}
        return {id: result for id, result in found.items() if result is not None}

    def unfinished(self) -> list[Cell]:
        """Cells without a result, and those that a crash, a time-out or an interruption kept from one."""
        finished = {id for id, result in self.results().items() if result.fault is None}
        return [cell for cell in self.plan.cells if cell.id not in finished]

    def subject(self) -> dict[str, Any] | None:
        """What the worker found the model to be; None before it was loaded."""
        return read_json(self.path / "subject.json")

    def next_worker(self) -> str:
        """A name that no worker of this run has had."""
        taken = [int(match[1]) for p in self.path.iterdir() if (match := re.fullmatch(r"worker-(\d+)\.log", p.name))]
        return str(max(taken, default=0) + 1)

    def note_written(self, paths: Iterable[Path]) -> None:
        """Remember report files as ours."""
        known = set(read_json(self.path / "written.json") or [])
        known |= {str(path.resolve().relative_to(self.path.resolve())) for path in paths}
        write_json(self.path / "written.json", sorted(known))

    def discard(self) -> None:
        """Take back a run that was refused before anything was done: what was written, and the folder if it is new."""
        _remove_own(self.path)
        (self.path / "lock").unlink(missing_ok=True)
        if self._created and not any(self.path.iterdir()):
            self.path.rmdir()


def open_run(path: Path, plan: Plan, *, fresh: bool = False) -> RunFolder:
    """The run directory `path` for `plan`: new, or with what an earlier run of the same plan has done.

    Raises :class:`UsageError` if the folder can't be made or written, is in use, is not ours, or holds another plan
    (`fresh` then removes what statecheck wrote there, and only that).
    """
    created = _make(path)
    lock = _lock(path)
    try:
        there = _read_plan(path)
        if there is not None and fresh:
            _remove_own(path)
            there = None
        if there is not None:
            _refuse_differences(path, there.differences(plan) + changed_sources(path))
        else:
            write_json(path / "plan.json", plan.to_json())
        (path / "results").mkdir(exist_ok=True)
        sweep_temporaries(path / "results")
    except BaseException:
        lock.close()
        raise
    return RunFolder(path, plan, lock, created=created)


def reopen(path: Path) -> RunFolder:
    """The run directory `path` with the plan that it holds. Raises :class:`UsageError` if it holds none."""
    if not (path / "plan.json").is_file():
        raise UsageError(f"{path} is not a run directory: expected a plan.json, written by `statecheck run --out`")
    lock = _lock(path)
    try:
        plan = _read_plan(path)
    except BaseException:
        lock.close()
        raise
    assert plan is not None
    return RunFolder(path, plan, lock, created=False)


def default_folder(model: str, suite: str) -> Path:
    """A new name `statecheck-runs/TIME-MODEL-SUITE` below the working directory; its parent is made."""
    parent = Path("statecheck-runs")
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", Path(word).name).strip("-.") for word in (model, suite)]
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(word for word in words if word)])
    try:
        parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {parent}: {error.strerror}; say --out FOLDER") from None
    names = [stem, *(f"{stem}-{n}" for n in range(2, 1000))]
    return next(parent / name for name in names if not (parent / name).exists())


def read_result(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell, or None."""
    data = read_json(folder / "results" / cell.file_name)
    return None if data is None else Result(**data)


def write_result(folder: Path, cell: Cell, result: Result) -> None:
    """Put the result of a cell in its place, atomically."""
    write_json(folder / "results" / cell.file_name, vars(result), indent=None)


def write_json(path: Path, data: Any, *, indent: int | None = 1) -> None:
    """Strict JSON, atomically. Raises :class:`NotWritten` if the disk is full, ValueError for NaN."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        atomic_write_text(path, text)
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> NotWritten:
    """The one line for a file that could not be written."""
    what = "free some space" if error.errno in NO_SPACE else "make the folder writable again"
    return NotWritten(
        f"could not write {path}: {error.strerror}; {what} and run the same command again (finished items are kept)"
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours; None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


class EventLog:
    """Lines of JSON that are only ever added, by one writer. A half line at the end is what a kill leaves."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._path = folder / f"events-{writer}.jsonl"

    def add(self, event: str, **details: str | float | None) -> None:
        """Add one line with the time. Raises :class:`NotWritten` if the disk is full."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **details}, ensure_ascii=False)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise not_written(self._path, error) from None


def write_expected(folder: Path, expected: Mapping[str, str]) -> None:
    """Remember the failures that are expected, by item or part, with the reasons."""
    if expected or (folder / EXPECTED).exists():
        write_json(folder / EXPECTED, dict(expected))


def read_expected(folder: Path) -> dict[str, str]:
    """The failures that are expected, with the reasons."""
    return dict(read_json(folder / EXPECTED) or {})


def changed_sources(folder: Path) -> list[str]:
    """Files that the numbers rest on (sources of the user's, what came with the model) and that have changed since."""
    subject = read_json(folder / "subject.json") or {}
    return [f"the content of {path}" for path, sha in subject.get("sources", {}).items() if digest(Path(path)) != sha]


def _refuse_differences(path: Path, lines: list[str]) -> None:
    if lines:
        raise UsageError(
            f"{path} holds another run; different are {'; '.join(lines)}."
            " Take another --out, or --fresh to start over in this one"
        )


def _make(path: Path) -> bool:
    """True if the folder is new."""
    try:
        path.mkdir()
        return True
    except FileExistsError:
        if path.is_dir():
            return False
        raise UsageError(f"--out {path}: expected a folder, found a file") from None
    except FileNotFoundError:
        raise UsageError(f"--out {path}: the folder {path.parent} does not exist; make it first") from None
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> StatecheckError:
    if error.errno in NO_SPACE:
        return not_written(path, error)
    return UsageError(f"--out {path}: can't write there: {error.strerror}; take another folder")


def _lock(path: Path) -> IO[str]:
    try:
        lock = (path / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise UsageError(f"{path} is in use by {holder}; wait for it, or take another --out") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    lock.flush()
    return lock


def _read_plan(path: Path) -> Plan | None:
    """The plan in the folder; None if the folder holds nothing. UsageError if it holds something else."""
    try:
        data = read_json(path / "plan.json")
        if data is not None:
            return Plan.from_json(data if data["format"] == FORMAT else {})
    except (ValueError, KeyError, TypeError, OSError):
        raise UsageError(f"{path}/plan.json is not a plan of this version of statecheck; take another --out") from None
    strangers = sorted(p.name for p in path.iterdir() if p.name != "lock" and not _leftover(p))
    if strangers:
        raise UsageError(f"{path} is not empty and not a run directory (it holds {strangers[0]}); take another --out")
    return None


def _leftover(path: Path) -> bool:
    """What a run that was killed before it wrote its plan may leave."""
    return path.name.startswith(".plan.json.") or (path.name == "results" and not any(path.iterdir()))


def _remove_own(path: Path) -> None:
    """Remove what statecheck wrote; folders of ours go only when nothing else is in them."""
    reports = [path / name for name in read_json(path / "written.json") or []]
    own = [*reports, *(file for pattern in OWN_FILES for file in path.glob(pattern))]
    for file in own:
        file.unlink(missing_ok=True)
    folders = {path / "results", path / "violations", *(file.parent for file in own)}
    for folder in sorted(folders - {path}, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
