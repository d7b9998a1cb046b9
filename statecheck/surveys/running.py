"""Running a survey: a few workers, each sent one model at a time, results in files. The parent never imports torch.

What the laws found is confirmed by scripts of the library's own calls, in a process that does not know statecheck.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from statecheck.atomic import atomic_write_text
from statecheck.errors import InputRefused

LIBRARIES = ("transformers", "mambapy", "xlstm", "rwkv")
WORKER = "statecheck.surveys.one"
CONFIRMING = Path(__file__).with_name("confirming.py")
PER_SCRIPT = 120.0  # seconds


def installed(library: str) -> dict[str, Any]:
    """The release of the library that is installed, and the names of its models.

    Raises :class:`InputRefused` where it is not installed.
    """
    done = subprocess.run([*_WORKER, library, "list"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputRefused(last.partition("InputRefused: ")[2] or f"{library} can't be surveyed: {last}")
    return json.loads(done.stdout)


def run(
    library: str,
    names: Sequence[str],
    folder: Path,
    *,
    profile: str,
    jobs: int,
    limit: float,
    show: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Survey the models `names` of `library` that `folder` holds no result of yet; all results, in the same order.

    A model that takes longer than `limit` seconds, or brings its worker down, is told as such.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        if not _file(folder, name).exists():
            waiting.put(name)
    _models(folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        command = [*_WORKER, library, profile, str(_models(folder))]
        served = [pool.submit(_serve, waiting, folder, command, limit, show) for _ in range(jobs)]
    for one in served:
        one.result()
    return [json.loads(_file(folder, name).read_text(encoding="utf-8")) for name in names]


def _serve(
    waiting: queue.SimpleQueue[str],
    folder: Path,
    command: Sequence[str],
    limit: float,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Send models to a worker of this thread's own, started by `command`, until none waits."""
    worker: _Process | None = None
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            break
        worker = worker if worker is not None and worker.alive else _Process(command)
        row = _asked(worker, name, limit)
        _keep(row, folder)
        show(row)
    if worker is not None:
        worker.end()


def confirm(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Run the script of each law that is broken and was not confirmed yet; what came of it goes into the rows.

    `confirmed` maps parts of laws to what the script printed or raised, "" where it showed nothing.
    """
    runner = _Process([sys.executable, "-P", str(CONFIRMING)])
    for row in rows:
        written = sorted((_models(folder) / row["model"]).glob("violations/*.native/script.py"))
        scripts = [script for script in written if "statecheck" not in script.read_text(encoding="utf-8")]
        if scripts and "confirmed" not in row:
            row["confirmed"] = {}
            for script in scripts:
                runner = runner if runner.alive else _Process([sys.executable, "-P", str(CONFIRMING)])
                row["confirmed"][script.parent.name] = _shown(runner.ask(str(script.resolve()), PER_SCRIPT), row["bar"])
            _keep(row, folder)
    runner.end()


def _shown(answer: dict[str, Any] | None, bar: float) -> str:
    """What a script showed: a relative error above `bar`, another shape, or what it raised; "" if nothing."""
    if answer is None:
        return ""
    if answer["raised"]:
        return f"raises {answer['raised']}"
    lists = re.findall(r"each position \[(.*)\]", answer["printed"])
    errors = [float(value) for values in lists for value in values.split(",")]
    if not errors:
        return answer["printed"].strip()
    largest = max(errors, key=lambda error: (error != error, error))
    return "" if largest <= bar else f"{largest:.2g} relative"


def _asked(worker: _Process, name: str, limit: float) -> dict[str, Any]:
    """The row of a model; what ends the worker, or takes too long, is its reason."""
    answer = worker.ask(name, limit)
    if answer is not None:
        return answer
    reason = (
        f"took longer than {limit:g} s" if worker.late else f"ended its process (exit code {worker.process.wait()})"
    )
    return {"model": name, "stage": "not run", "reason": reason, "kinds": [], "recurrent": False, "laws": []}


class _Process:
    """A process that answers each line with a line of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self.late = False
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, line: str, limit: float) -> dict[str, Any] | None:
        """The answer to a line; None where the process ended, or was ended after `limit` seconds: then it is `late`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        self.late = not timer.is_alive()
        timer.cancel()
        if not answer:
            self.process.kill()
        return json.loads(answer) if answer else None

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


_WORKER = [sys.executable, "-P", "-m", WORKER]


def _models(folder: Path) -> Path:
    return folder / "models"


def _file(folder: Path, name: str) -> Path:
    return _models(folder) / f"{name}.json"


def _keep(row: dict[str, Any], folder: Path) -> None:
    atomic_write_text(_file(folder, row["model"]), json.dumps(row, indent=1, allow_nan=False) + "\n")
