"""One worker process as the parent sees it: start it, give it cells, watch its time and memory, end it.

The parent loads no torch. The worker leads a session of its own, so that a Ctrl-C in the terminal does not reach it and
everything that the model started can be ended with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TICK = 0.02  # seconds between looks at the worker's memory
Message = dict[str, Any]


class WorkerLost(Exception):
    """The worker died, took too long or took too much memory; the message says which. `retry`: it may not again."""

    def __init__(self, reason: str, *, retry: bool = False) -> None:
        super().__init__(reason)
        self.retry = retry


class Stopped(Exception):
    """The wait was given up because the run is to end at once."""


class Supervisor:
    """A worker process for the run directory `folder`; its output and the model's go to `worker-NUMBER.log`."""

    def __init__(self, folder: Path, number: str) -> None:
        self.number = number
        with (folder / f"worker-{number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "statecheck.worker", str(folder), number],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._buffer = b""

    def send(self, cell: str) -> None:
        """Give the worker a cell. A worker that is gone is found out by the next :meth:`wait`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(cell.encode() + b"\n")
            self._process.stdin.flush()

    def wait(self, *, seconds: float, memory: float, doing: str, stop: Callable[[], bool]) -> Message:
        """The worker's next message. `doing` ends the sentence "the model exited the process while ...".

        Raises :class:`WorkerLost` with the reason if it dies, is silent for `seconds` or holds more than `memory`
        bytes, and :class:`Stopped` once `stop()` is true; the worker is then gone.
        """
        deadline = time.monotonic() + seconds
        while True:
            message = self._receive(TICK)
            if message is not None:
                return message
            if self._process.poll() is not None:
                message = self._receive(0)
                if message is not None:
                    return message
                how = f"{died(self._process.returncode)} while {doing}; its log is worker-{self.number}.log"
                raise self._lost(how, retry=True)
            held = resident(self._process.pid)
            if held > memory:
                raise self._lost(f"ate all memory: {size(held)} of {size(memory)} while {doing}")
            if time.monotonic() > deadline:
                raise self._lost(f"hung: no answer in {seconds:g} s while {doing}")
            if stop():
                self.kill()
                raise Stopped

    def finish(self, seconds: float = 5.0) -> None:
        """Let an idle worker end by itself, and end it if it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """End the worker and everything that it started in its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _lost(self, reason: str, *, retry: bool = False) -> WorkerLost:
        self.kill()
        return WorkerLost(reason, retry=retry)

    def _receive(self, seconds: float) -> Message | None:
        """The next line of JSON from the worker, if one comes within `seconds`."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        if b"\n" not in self._buffer and select.select([handle], [], [], seconds)[0]:
            data = os.read(handle, 65536)
            if not data:  # closed: the process is about to end
                time.sleep(seconds)
            self._buffer += data
        line, found, rest = self._buffer.partition(b"\n")
        if not found:
            return None
        self._buffer = rest
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None


def died(code: int) -> str:
    """How a process ended, in words.

    >>> died(0), died(-11)
    ('the model exited the process (code 0)', 'killed by signal 11 (SIGSEGV)')
    """
    if code >= 0:
        return f"the model exited the process (code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ", perhaps by the system for want of memory" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}{hint})"


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where that can't be read (it is gone, or this is no Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can still be taken on this machine or in this container; None where that can't be read."""
    free = [value for value in (_machine_memory(), _container_memory()) if value is not None]
    return min(free, default=None)


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container_memory() -> int | None:
    """What the control group (version 2) of a container leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def size(count: float) -> str:
    """Bytes for people.

    >>> size(2_100_000_000), size(512_000_000)
    ('2.1 GB', '512 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
