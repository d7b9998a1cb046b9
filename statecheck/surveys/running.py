"""Running a survey: a few workers, each sent one model at a time, results in files. The parent never imports torch."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from statecheck.atomic import atomic_write_text
from statecheck.errors import InputRefused

WORKER = "statecheck.surveys.one"


def installed() -> dict[str, Any]:
    """The release of the library that is installed, and the names of its models.

    Raises :class:`InputRefused` where it is not installed.
    """
    done = subprocess.run(_command("list"), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputRefused(f"no transformers to survey: {last}; pip install transformers")
    return json.loads(done.stdout)


def run(
    names: Sequence[str], folder: Path, *, profile: str, jobs: int, limit: float, show: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Survey the models `names` that `folder` holds no result of yet; all results, in the order of the names.

    A model that takes longer than `limit` seconds, or brings its worker down, is told as such.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        if not _file(folder, name).exists():
            waiting.put(name)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        served = [pool.submit(_serve, waiting, folder, profile, limit, show) for _ in range(jobs)]
    for one in served:
        one.result()
    return [json.loads(_file(folder, name).read_text(encoding="utf-8")) for name in names]


def _serve(
    waiting: queue.SimpleQueue[str], folder: Path, profile: str, limit: float, show: Callable[[dict[str, Any]], None]
) -> None:
    """Send models to a worker of this thread's own until none waits."""
    worker: _Worker | None = None
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            break
        worker = worker if worker is not None and worker.alive else _Worker(profile)
        row = worker.ask(name, limit)
        atomic_write_text(_file(folder, name), json.dumps(row, indent=1, allow_nan=False) + "\n")
        show(row)
    if worker is not None:
        worker.end()


class _Worker:
    """A process that surveys the models it is sent."""

    def __init__(self, profile: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            _command(profile), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, name: str, limit: float) -> dict[str, Any]:
        """The row of a model; what ends the worker, or takes too long, is its reason."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        late = not timer.is_alive()
        timer.cancel()
        if answer:
            return json.loads(answer)
        reason = f"took longer than {limit:g} s" if late else f"ended its process (exit code {self.process.wait()})"
        return {"model": name, "stage": "not run", "reason": reason, "kinds": [], "recurrent": False, "laws": []}

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _command(task: str) -> list[str]:
    return [sys.executable, "-P", "-m", WORKER, task]


def _file(folder: Path, name: str) -> Path:
    return folder / "models" / f"{name}.json"
