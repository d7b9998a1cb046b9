"""A file is the old one or the new one, whatever kills the writer."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from statecheck.atomic import atomic_write_bytes, atomic_write_text, sweep_temporaries

WRITER = """
import sys
from statecheck.atomic import atomic_write_bytes
print("ready", flush=True)
number = 0
while True:
    number += 1
    atomic_write_bytes(sys.argv[1], bytes([number % 251]) * 300_000)
"""


def test_content_replaces_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ü.json"
    atomic_write_text(path, "first\r\n")
    atomic_write_text(path, "zweite Fassung: ü")
    assert path.read_bytes() == "zweite Fassung: ü".encode()
    assert os.listdir(tmp_path) == ["ü.json"]


def test_the_mode_is_that_of_any_new_file_or_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "new", "")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    (tmp_path / "new").chmod(0o640)
    atomic_write_text(tmp_path / "new", "again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write_text(tmp_path / "folder", "a file can't replace a folder")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError):
        atomic_write_text(tmp_path / "missing" / "a", "")


def test_a_killed_writer_leaves_a_whole_file_and_the_next_sweeps(tmp_path: Path) -> None:
    path, randomness = tmp_path / "result", random.Random(0)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(randomness.uniform(0.02, 0.06))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = path.read_bytes() if path.exists() else bytes(300_000)
        assert len(data) == 300_000
        assert len(set(data)) == 1, "two contents in one file"
    atomic_write_bytes(path, b"last")
    assert os.listdir(tmp_path) == ["result"]


def test_only_temporaries_of_dead_writers_are_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        ended.wait()
    dead = tmp_path / f".a.{ended.pid}.x1_y.tmp"
    living = tmp_path / f".a.{os.getpid()}.x1_y.tmp"
    others = tmp_path / ".notes.tmp"
    for path in (dead, living, others):
        path.write_text("")
    assert sweep_temporaries(tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([living, others])
