"""The command `statecheck` as its users run it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TESTS = Path(__file__).parent
PATIENCE = 120.0  # seconds that any of these commands may take on a busy machine


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "statecheck", *map(str, arguments)]


def statecheck(
    *arguments: str | Path, cwd: Path = TESTS, before: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `before` is called in the new process, `env` is added to the environment."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def started(*arguments: str | Path, cwd: Path = TESTS, **env: str) -> subprocess.Popen[str]:
    """Start a command."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*arguments), cwd=cwd, env=environment(**env), stdout=pipe, stderr=pipe, text=True)


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read standard error up to a line that holds `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"no line with {text!r} in: {''.join(lines)}")


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """True as soon as `true()` is; False if it never becomes so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return true()


def alive(pid: int) -> bool:
    """True for a process that runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(words: Sequence[str]) -> list[int]:
    """Ids of living processes whose command line holds all `words`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and alive(int(folder.name)):
            found.append(int(folder.name))
    return found
