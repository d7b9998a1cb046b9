"""The process that owns a model: `python -P -m statecheck.worker RUNDIR NUMBER`, started by the engine.

It loads once what the plan in RUNDIR asks for, then takes cell ids on standard input, one a line, runs each, writes its
result and answers with a line of JSON. The end of standard input means that the parent is gone: the worker ends, with
everything that it started. What the model prints goes to the log that the parent gave as standard error.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from statecheck.errors import StatecheckError
from statecheck.store import EventLog, NotWritten, Result, write_json, write_result
from statecheck.wording import raised


class Channel:
    """The pipes to the parent, kept from the model: it reads nothing on standard input and prints into the log."""

    def __init__(self) -> None:
        commands, answers = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)
        self._answers: IO[str] = os.fdopen(answers, "w", encoding="utf-8")
        self._cells: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._busy = True
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()

    def next(self) -> str | None:
        """The next cell id; None when the parent wants no more."""
        self._busy = False
        cell = self._cells.get()
        self._busy = True
        return cell

    def answer(self, event: str, **details: Any) -> None:
        """Tell the parent. A parent that is gone is found out by :meth:`_listen`."""
        with suppress(BrokenPipeError):
            self._answers.write(json.dumps({"event": event, **details}) + "\n")
            self._answers.flush()

    def _listen(self, commands: int) -> None:
        with os.fdopen(commands, encoding="utf-8") as lines:
            for line in lines:
                self._cells.put(line.strip())
        if self._busy:
            os.killpg(0, signal.SIGKILL)
        self._cells.put(None)


def main() -> None:
    """Serve the plan in the run directory that the command line names."""
    folder, number = Path(sys.argv[1]).absolute(), sys.argv[2]  # the model may change the working directory
    _expendable()
    watcher = _watch_parent()
    channel = Channel()
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("statecheck").setLevel(logging.DEBUG)
    try:
        _serve(folder, number, channel)
    except NotWritten as error:
        channel.answer("refused", type="NotWritten", message=str(error), exit_code=error.exit_code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the model may have closed it
            stream.flush()
    if watcher is not None:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)
    os._exit(0)  # threads and exit handlers of the model's have no say


def _serve(folder: Path, number: str, channel: Channel) -> None:
    log = EventLog(folder, number)
    started = time.monotonic()
    try:
        from statecheck.session import Session

        session = Session.load(folder)
        loading = round(time.monotonic() - started, 3)
        write_json(folder / "subject.json", session.subject(loading))
    except NotWritten:
        raise
    except Exception as error:
        _refuse(error, channel, number)
        return
    log.add("loaded", seconds=loading)
    channel.answer("loaded")
    modules = len(sys.modules)
    while (id := channel.next()) is not None:
        cell = session.plan.cell(id)
        log.add("started", cell=id)
        started = time.monotonic()
        try:
            payload = session.run(cell)
        except Exception as error:
            _refuse(error, channel, number)
            return
        seconds = round(time.monotonic() - started, 3)
        write_result(folder, cell, Result(id, payload, seconds, number))
        if len(sys.modules) != modules:  # something was imported late: a change in it must be seen by the next run
            modules = len(sys.modules)
            write_json(folder / "subject.json", session.subject(loading))
        log.add("finished", cell=id, seconds=seconds)
        channel.answer("finished", cell=id, seconds=seconds)


def _refuse(error: Exception, channel: Channel, number: str) -> None:
    """What ends the run: our own errors as they are, anything else with the place of its traceback."""
    logging.getLogger("statecheck").debug("refused", exc_info=error)
    if isinstance(error, StatecheckError):
        channel.answer("refused", type=type(error).__name__, message=str(error), exit_code=error.exit_code)
        return
    message = f"{raised(error)} (worker-{number}.log in the run directory holds the traceback)"
    channel.answer("refused", type="StatecheckError", message=message, exit_code=StatecheckError.exit_code)


def _expendable() -> None:
    """Let the system end this process before others when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _watch_parent() -> int | None:
    """Start a small process that ends the whole group when the parent dies, even while the model hangs in C code.

    Elsewhere than on Linux, and when the parent is gone already, the end of standard input does that.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        parent = os.pidfd_open(os.getppid())
    except OSError:
        return None
    watcher = os.fork()
    if watcher == 0:
        select.select([parent], [], [])
        os.killpg(0, signal.SIGKILL)
    os.close(parent)
    return watcher


if __name__ == "__main__":
    main()
