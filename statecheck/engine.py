"""A plan is executed: cells go one by one to a worker process, and whatever happens to it, the run goes on or says why.

A cell whose worker dies, hangs or eats all memory gets a fault in place of a result; a new worker takes the rest. Three
losses in a row, or two while the model is loaded, end the run. Finished cells are never lost or run again; cells with
a fault are tried again when the same command is given again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from types import FrameType
from typing import Protocol

from statecheck import errors
from statecheck.errors import StatecheckError
from statecheck.plan import Cell
from statecheck.store import EventLog, Result, RunFolder, write_result
from statecheck.supervisor import Message, Stopped, Supervisor, WorkerLost, available_memory
from statecheck.wording import one_line

MOST_LOSSES = 3  # in a row
MOST_LOADS = 2


@dataclass(frozen=True)
class Limits:
    """What a run may take: seconds for one cell, for loading, and in all; bytes of the worker's memory."""

    cell_seconds: float = 900.0
    load_seconds: float = 900.0
    max_seconds: float = inf
    max_memory: float = inf

    @staticmethod
    def default_memory() -> float:
        """80 % of what is available now."""
        available = available_memory()
        return inf if available is None else 0.8 * available


class Show(Protocol):
    """Who is told how the run goes: a progress bar, or plain lines."""

    def loading(self) -> None: ...
    def started(self, cell: Cell) -> None: ...
    def finished(self, cell: Cell, seconds: float, fault: str | None) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True)
class Ending:
    """How a run ended: `exit_code` 130 or 143 if it was interrupted, else None; `at_once` if no report is wanted."""

    exit_code: int | None = None
    at_once: bool = False


@dataclass
class Interrupts:
    """What Ctrl-C and SIGTERM have asked for so far."""

    exit_code: int | None = None
    now: bool = False
    told: Callable[[str], None] = field(default=lambda line: None)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C: the first ends after this cell, the second at once."""
        self.now = self.exit_code is not None
        self.exit_code = 130
        if not self.now:
            self.told("interrupted: ends after this item; Ctrl-C again ends at once")

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: ends at once."""
        self.exit_code = 143
        self.now = True


@contextmanager
def interrupts(told: Callable[[str], None]) -> Iterator[Interrupts]:
    """Ctrl-C and SIGTERM as wishes, while the block runs (in the main thread; elsewhere signals are left alone)."""
    wishes = Interrupts(told=told)
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return
    old = [signal.signal(signal.SIGINT, wishes.interrupt), signal.signal(signal.SIGTERM, wishes.terminate)]
    try:
        yield wishes
    finally:
        signal.signal(signal.SIGINT, old[0])
        signal.signal(signal.SIGTERM, old[1])


def execute(folder: RunFolder, limits: Limits, show: Show) -> Ending:
    """Run the unfinished cells of the plan in `folder`; each ends with a result or a fault in `results/`.

    Raises what the worker refused (:class:`statecheck.errors.InputRefused`, `UsageError`) and
    :class:`statecheck.store.NotWritten` when the disk is full.
    """
    with interrupts(show.note) as wishes:
        run = _Run(folder, limits, show, wishes)
        run.go()
        return Ending(wishes.exit_code, wishes.now)


class _Run:
    """One execution: the queue of cells, and what went wrong so far."""

    def __init__(self, folder: RunFolder, limits: Limits, show: Show, wishes: Interrupts) -> None:
        self.folder = folder
        self.limits = limits
        self.show = show
        self.wishes = wishes
        self.queue = deque(folder.unfinished())
        self.end = time.monotonic() + limits.max_seconds
        self.losses = 0
        self.loads = 0
        self.log = EventLog(folder.path, f"parent-{folder.next_worker()}")

    def go(self) -> None:
        while self.queue:
            why = self._why_not()
            if why:
                self._give_up(f"not run: {why}")
                return
            self._serve()

    def _why_not(self) -> str | None:
        if self.wishes.exit_code is not None:
            return "the run was interrupted"
        if time.monotonic() >= self.end:
            return f"the {self.limits.max_seconds:g} s of --max-seconds were spent"
        if self.losses >= MOST_LOSSES:
            return "the worker died three times in a row"
        return None

    def _serve(self) -> None:
        """Start a worker and give it cells until it is lost or there are no more."""
        worker = Supervisor(self.folder.path, self.folder.next_worker())
        self.log.add("worker", worker=worker.number)
        try:
            if self._load(worker):
                while self.queue and not self._why_not() and self._run_cell(worker):
                    pass
            worker.finish()
        finally:
            worker.kill()

    def _load(self, worker: Supervisor) -> bool:
        self.show.loading()
        self.loads += 1
        try:
            # No cell is lost when loading is given up, so the first Ctrl-C ends it.
            stop = lambda: self.wishes.exit_code is not None  # noqa: E731
            self._heed(self._wait(worker, self.limits.load_seconds, "it was loaded", stop))
        except Stopped:
            return False
        except WorkerLost as lost:
            self.log.add("lost", worker=worker.number, reason=str(lost))
            if self.loads >= MOST_LOADS or not lost.retry:
                self._give_up(str(lost))
            else:
                self.show.note(f"{lost}; trying once more")
            return False
        self.loads = 0
        return True

    def _run_cell(self, worker: Supervisor) -> bool:
        """True if the worker can take another cell."""
        cell = self.queue[0]
        self.show.started(cell)
        started = time.monotonic()
        worker.send(cell.id)
        try:
            message = self._wait(worker, self.limits.cell_seconds, f"{cell.id} ran", lambda: self.wishes.now)
            self._heed(message)
        except (WorkerLost, Stopped) as lost:
            reason = str(lost) if isinstance(lost, WorkerLost) else "not finished: the run was interrupted"
            self.log.add("lost", worker=worker.number, cell=cell.id, reason=reason)
            self.losses += 1
            seconds = time.monotonic() - started
            self._fault(cell, reason, seconds, worker.number)
            self.show.finished(cell, seconds, reason)
            return False
        self.losses = 0
        self.queue.popleft()
        self.show.finished(cell, message["seconds"], None)
        return True

    def _wait(self, worker: Supervisor, limit: float, doing: str, stop: Callable[[], bool]) -> Message:
        left = self.end - time.monotonic()
        seconds = min(limit, max(left, 0.0))
        try:
            return worker.wait(seconds=seconds, memory=self.limits.max_memory, doing=doing, stop=stop)
        except WorkerLost as lost:
            if time.monotonic() >= self.end and str(lost).startswith("hung"):
                spent = f"not finished: the {self.limits.max_seconds:g} s of --max-seconds were spent while {doing}"
                raise WorkerLost(spent) from None
            raise

    def _heed(self, message: Message) -> None:
        """Raise what the worker refused; anything else means that it is ready for the next cell."""
        if message["event"] != "refused":
            return
        kind = getattr(errors, message["type"], StatecheckError)
        error: StatecheckError = kind(one_line(message["message"], 1000))
        error.exit_code = message["exit_code"]
        raise error

    def _fault(self, cell: Cell, reason: str, seconds: float, worker: str) -> None:
        self.queue.remove(cell)
        write_result(self.folder.path, cell, Result(cell.id, None, round(seconds, 3), worker, reason))

    def _give_up(self, reason: str) -> None:
        self.show.note(f"{', '.join(cell.id for cell in self.queue)}: {reason}")
        for cell in list(self.queue):
            self._fault(cell, reason, 0.0, "none")
