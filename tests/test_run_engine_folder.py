"""The run directory: resume, refuse, start over, a full disk; and that nothing of the user's is ever removed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from command_line import statecheck

from statecheck.errors import UsageError
from statecheck.plan import Cell, Plan, digest, digests
from statecheck.store import EventLog, NotWritten, Result, default_folder, open_run, read_result, reopen, write_result

PLAN = Plan(
    "run",
    {"spec": "reference", "data": None},
    {"name": "smoke", "digest": "1", "text": ""},
    {"/data": "abc"},
    0,
    (Cell("S0"), Cell("D1.growth/x")),
    {"statecheck": "0.1.0"},
)
S0 = ("--suite", "smoke", "--only", "S0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one item on a model of the user's own, made of two files, with a stranger's file beside its own."""
    base = tmp_path_factory.mktemp("own")
    (base / "parts.py").write_text("import torch\nWIDTH = 3\n")
    lines = (
        "import os",
        "from parts import WIDTH, torch",
        "def build():",
        " os.chdir('/')",
        " return torch.nn.GRU(4, WIDTH)",
    )
    (base / "own_model.py").write_text("\n".join(lines))
    done = statecheck("run", "own_model:build", *S0, "--out", "run", cwd=base)
    assert done.returncode == 0, done.stderr
    (base / "run" / "notes.txt").write_text("mine")
    return base


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def again(base: Path, *options: str, model: str = "own_model:build") -> str:
    """The error line of a second run in the same folder, which must be refused and change nothing."""
    before = contents(base / "run")
    done = statecheck("run", model, *S0, "--out", "run", *options, cwd=base)
    assert done.returncode == 2, done.stderr
    assert contents(base / "run") == before
    assert done.stderr.startswith("statecheck: ")
    assert "--fresh" in done.stderr
    return done.stderr


def test_another_seed_is_refused(finished: Path) -> None:
    assert "seed: 0 there, 1 now" in again(finished, "--seed", "1")


def test_another_selection_is_refused(finished: Path) -> None:
    assert "items: S0 there, S0, S3 now" in again(finished, "--only", "S3")


def test_another_model_is_refused(finished: Path) -> None:
    assert "spec: own_model:build there, reference now" in again(finished, model="reference")


def test_a_changed_source_of_the_model_is_refused(finished: Path) -> None:
    original = (finished / "parts.py").read_text()
    (finished / "parts.py").write_text(original + "# changed\n")
    assert f"the content of {finished / 'parts.py'}" in again(finished)
    (finished / "parts.py").write_text(original)


def test_changed_weights_of_a_registered_model_are_refused(tmp_path: Path) -> None:
    """What a registered model rests on is remembered, so that an old verdict is not taken for one on new weights."""
    done = statecheck("run", *S0, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    subject = json.loads((tmp_path / "run" / "subject.json").read_text())
    weights = next(path for path in subject["sources"] if path.endswith("hybrid"))
    subject["sources"][weights] = "the digest of other weights"
    (tmp_path / "run" / "subject.json").write_text(json.dumps(subject))
    again = statecheck("run", *S0, "--out", tmp_path / "run")
    assert again.returncode == 2
    assert f"different are the content of {weights}" in again.stderr


def test_fresh_removes_what_statecheck_wrote_and_nothing_else(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    (folder / "images" / "mine.png").write_text("mine")
    with open_run(folder, PLAN, fresh=True) as run:
        assert run.results() == {}
    assert set(contents(folder)) == {"plan.json", "notes.txt", "images/mine.png"}


def test_report_renders_again(finished: Path) -> None:
    done = statecheck("report", finished / "run")
    assert done.returncode == 0
    assert "S0" in done.stdout


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_folder_that_is_not_ours_is_refused(fresh: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = statecheck("run", *S0, "--out", tmp_path, *fresh)
    assert done.returncode == 2
    assert "is not empty and not a run directory (it holds thesis.tex)" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_somebody_elses_plan_is_refused_even_with_fresh(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"format": "terraform"}')
    done = statecheck("run", *S0, "--out", tmp_path, "--fresh")
    assert done.returncode == 2
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("missing/parent/run", "the folder missing/parent does not exist; make it first"),
        ("/sys/statecheck", "can't write there"),
        ("plain", "expected a folder, found a file"),
    ],
)
def test_a_folder_that_cant_be_made(out: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    done = statecheck("run", *S0, "--out", out, cwd=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    done = statecheck("run", "empty.pt", *S0, "--out", "run", cwd=tmp_path)
    assert done.returncode == 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("limit", "item"), [(1000, None), (10_000, "S0")], ids=["plan", "report"])
def test_a_full_disk_is_one_line_and_keeps_what_is_finished(limit: int, item: str | None, tmp_path: Path) -> None:
    """No file may grow beyond `limit` bytes: the plan can't be written, or only the report can't."""

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = statecheck("run", "faulty_models:healthy", *S0, "--out", tmp_path / "run", before=fill)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "could not write" in done.stderr.splitlines()[-1]
    assert "free some space and run the same command again" in done.stderr.splitlines()[-1]
    results = [path.stem for path in (tmp_path / "run" / "results").glob("*.json")]
    assert results == ([item] if item else [])
    again = statecheck("run", "faulty_models:healthy", *S0, "--out", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert ("loading" in again.stderr) == (item is None)


def test_a_lock_is_held_until_the_run_is_closed(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", PLAN):
        with pytest.raises(UsageError, match="is in use by process"):
            open_run(tmp_path / "run", PLAN)
        with pytest.raises(UsageError, match="is in use by process"):
            reopen(tmp_path / "run")
    with (tmp_path / "run" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with reopen(tmp_path / "run") as run:
        assert run.plan == PLAN


def test_cells_with_a_fault_are_unfinished(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", PLAN) as run:
        first, second = PLAN.cells
        write_result(run.path, first, Result(first.id, {"notes": []}, 1.0, "1"))
        write_result(run.path, second, Result(second.id, None, 1.0, "1", "killed by signal 9"))
        assert run.unfinished() == [second]
        assert [result.fault for result in run.results().values()] == [None, "killed by signal 9"]
        assert read_result(run.path, second) == Result(second.id, None, 1.0, "1", "killed by signal 9")


def test_a_run_that_was_killed_before_its_plan_was_written_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".plan.json.1.abc.tmp").touch()
    with open_run(folder, PLAN) as run:
        assert run.unfinished() == list(PLAN.cells)


def test_events_are_lines_that_are_only_added(tmp_path: Path) -> None:
    for writer in ("1", "2", "1"):
        EventLog(tmp_path, writer).add("started", cell="S0")
    lines = (tmp_path / "events-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "started"]
    with pytest.raises(NotWritten, match="could not write"):
        EventLog(tmp_path / "missing", "1").add("started")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 3}, "seed: 0 there, 3 now"),
        ({"request": {"spec": "x.pt", "data": None}}, "spec: reference there, x.pt now"),
        ({"request": {"spec": "reference", "data": "/d"}}, "data: none there, /d now"),
        ({"suite": {"name": "phase39", "digest": "2", "text": ""}}, "suite: smoke there, phase39 now"),
        ({"suite": {"name": "smoke", "digest": "2", "text": "#"}}, "the suite's text"),
        ({"files": {"/data": "abd"}}, "the content of /data"),
        ({"versions": {"statecheck": "0.2.0"}}, "version of statecheck: 0.1.0 there, 0.2.0 now"),
        ({"cells": (Cell("S0"),)}, "items: S0, D1.growth/x there, S0 now"),
        ({"cells": (Cell("S0", "item", {"a": 1}), PLAN.cells[1])}, "a: none there, 1 now"),
        ({"command": "trace"}, "command: run there, trace now"),
    ],
)
def test_differences_of_plans(change: dict[str, object], line: str) -> None:
    assert PLAN.differences(dataclasses.replace(PLAN, **change)) == [line]  # type: ignore[arg-type]
    assert PLAN.differences(PLAN) == []


def test_digests_see_every_change_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    seen = {digest(tmp_path)}
    (tmp_path / "sub" / "a.txt").write_text("b")
    seen.add(digest(tmp_path))
    (tmp_path / "sub" / "a.txt").rename(tmp_path / "sub" / "b.txt")
    seen.add(digest(tmp_path))
    (tmp_path / "c").touch()
    seen.add(digest(tmp_path))
    assert len(seen) == 4
    assert digests([str(tmp_path / "missing")]) == {}


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert digest(tmp_path / "pipe") == "not a regular file"


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_folder("../models/my model:x", "smoke")
    assert first.parent == Path("statecheck-runs")
    assert first.name.endswith("-my-model-x-smoke")
    first.mkdir()
    second = default_folder("../models/my model:x", "smoke")
    assert second != first
