"""Models that crash, exit, hang and eat memory, for real: what became of the run, and what the user was told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import alive, eventually, processes, started, statecheck, wait_for_line
from faulty_models import ESCAPE

ONE = ("--suite", "smoke", "--only", "S1")
SMOKE = ("--suite", "smoke")

#: Each fault in one process of its own; three at a time, as most of the time is spent in importing torch.
CASES = {
    "killed": ("is_killed_once", *ONE),
    "hangs": ("hangs_with_a_child", *ONE, "--cell-seconds", "2"),
    "allocates": ("allocates_once", *ONE, "--max-memory", "1200MB"),
    "sys_exit": ("calls_sys_exit", *ONE),
    "raises": ("raises", *ONE),
    "prints": ("prints_and_reads", *ONE),
    "dies_always": ("exits", "--suite", "phase39"),
    "budget": ("hangs_once", *SMOKE, "--max-seconds", "9"),
    "factory_exits": ("factory_exits", *ONE),
    "factory_hangs": ("factory_hangs", *ONE, "--load-seconds", "2"),
    "factory_allocates": ("factory_allocates", *ONE, "--max-memory", "1200MB"),
    "factory_raises": ("factory_raises", *ONE),
    "factory_sys_exit": ("factory_calls_sys_exit", *ONE),
    "unseeded": ("unseeded_and_dies_once", *ONE, "--only", "S2"),
}


@dataclass(frozen=True)
class Done:
    """A command that has ended, its run directory and the file that FAULT_MARK named."""

    process: subprocess.CompletedProcess[str]
    folder: Path
    mark: Path

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        return {item["id"]: item for item in self.report["items"]}

    @property
    def printed(self) -> str:
        return self.process.stdout + self.process.stderr


def do(folder: Path, mark: Path, factory: str, *options: str) -> Done:
    process = statecheck("run", f"faulty_models:{factory}", *options, "--out", folder, FAULT_MARK=str(mark))
    return Done(process, folder, mark)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Done]]:
    base = tmp_path_factory.mktemp("faults")
    pool = ThreadPoolExecutor(3)
    return {name: pool.submit(do, base / name, base / f"{name}.mark", *case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    """The same command three times in one folder: the model exits once, then never again."""
    base = tmp_path_factory.mktemp("crashed")
    done = []
    for attempt in range(3):
        one = do(base / "run", base / "mark", "exits_once", *SMOKE)
        kept = base / f"kept-{attempt}"
        subprocess.run(["cp", "-a", base / "run", kept], check=True)
        done.append(Done(one.process, kept, one.mark))
    return done


def test_a_crash_costs_one_item(crashed: list[Done]) -> None:
    first = crashed[0]
    assert first.code == 3
    assert first.items["S1"]["status"] == "ERROR"
    assert first.items["S1"]["reason"].startswith("the model exited the process (code 0) while S1 ran")
    assert [first.items[id]["status"] for id in ("S0", "S2", "S3")] == ["PASS"] * 3
    assert (first.folder / "VALIDATION_GATE_INCONCLUSIVE.md").is_file()


def test_the_same_command_resumes(crashed: list[Done]) -> None:
    first, second, _ = crashed
    assert second.code == 0
    assert {item["status"] for item in second.items.values()} == {"PASS"}
    assert (second.folder / "VALIDATION_GATE_PASS.md").is_file()
    assert not (second.folder / "VALIDATION_GATE_INCONCLUSIVE.md").exists()
    for id in ("S0", "S2", "S3"):
        paths = [done.folder / "results" / f"{id}.json" for done in (first, second)]
        assert paths[0].stat().st_mtime_ns == paths[1].stat().st_mtime_ns
    workers = sorted(path.name for path in second.folder.glob("worker-*.log"))
    assert workers == ["worker-1.log", "worker-2.log", "worker-3.log"]
    assert re.findall(r'"started", "cell": "(\w+)"', (second.folder / "events-3.jsonl").read_text()) == ["S1"]


def test_a_finished_run_is_rendered_again(crashed: list[Done]) -> None:
    _, second, third = crashed
    assert third.code == 0
    assert not (third.folder / "worker-4.log").exists()
    assert _stable(second.report) == _stable(third.report)


def test_a_resumed_run_brings_the_numbers_of_a_whole_one(crashed: list[Done], tmp_path: Path) -> None:
    whole = do(tmp_path / "whole", crashed[0].mark, "exits_once", *SMOKE)
    assert _stable(whole.report) == _stable(crashed[1].report)


def _stable(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("timings", "environment")}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("killed", r"killed by signal 9 \(SIGKILL.*\) while S1 ran"),
        ("hangs", r"hung: no answer in 2 s while S1 ran"),
        ("allocates", r"ate all memory: 1\.\d GB of 1\.2 GB while S1 ran"),
        ("sys_exit", r"the model exited the process \(sys.exit\(0\)\) while it ran"),
        ("factory_exits", r"the model exited the process \(code 0\) while it was loaded"),
        ("factory_hangs", r"hung: no answer in 2 s while it was loaded"),
        ("factory_allocates", r"ate all memory: 1\.\d GB of 1\.2 GB while it was loaded"),
    ],
)
def test_a_lost_model_is_inconclusive_with_a_reason(runs: dict[str, Future[Done]], case: str, reason: str) -> None:
    done = runs[case].result()
    assert done.code == 3, done.printed
    assert done.items["S1"]["status"] == "ERROR"
    assert re.match(reason, done.items["S1"]["reason"]), done.items["S1"]["reason"]


@pytest.mark.parametrize("case", ["factory_raises", "factory_sys_exit"])
def test_a_factory_that_raises_is_refused(runs: dict[str, Future[Done]], case: str) -> None:
    done = runs[case].result()
    assert done.code == 4
    assert len([line for line in done.process.stderr.splitlines() if line.startswith("statecheck: ")]) == 1
    assert not done.folder.exists()


def test_a_model_that_raises_fails(runs: dict[str, Future[Done]]) -> None:
    done = runs["raises"].result()
    assert done.code == 1
    assert done.items["S1"]["status"] == "FAIL"
    assert "ValueError" in done.items["S1"]["reason"]
    assert "raise ValueError" in (done.folder / "worker-1.log").read_text()  # the traceback is kept for its author


def test_what_a_model_prints_stays_in_the_log(runs: dict[str, Future[Done]]) -> None:
    done = runs["prints"].result()
    assert done.code == 0
    assert ESCAPE in (done.folder / "worker-1.log").read_text()


@pytest.mark.parametrize("case", CASES)
def test_no_traceback_and_no_escape_code_reaches_the_user(runs: dict[str, Future[Done]], case: str) -> None:
    done = runs[case].result()
    told = done.printed + "".join(path.read_text() for path in done.folder.glob("*.md"))
    assert "Traceback" not in told
    assert "\x1b" not in told


def test_three_losses_in_a_row_end_the_run(runs: dict[str, Future[Done]]) -> None:
    done = runs["dies_always"].result()
    assert done.code == 3
    assert done.items["S0"]["status"] == "PASS"
    assert len(list(done.folder.glob("worker-*.log"))) == 3
    rest = [item for item in done.items.values() if item["reason"].startswith("not run: the worker died three times")]
    assert len(rest) == len(done.items) - 4


def test_the_budget_of_the_whole_run(runs: dict[str, Future[Done]]) -> None:
    done = runs["budget"].result()
    assert done.code == 3
    assert "the 9 s of --max-seconds were spent" in done.items["S3"]["reason"]


def test_a_factory_that_builds_another_model_each_time_is_refused(runs: dict[str, Future[Done]]) -> None:
    done = runs["unseeded"].result()
    assert done.code == 2
    assert "has other weights than when this run began" in done.process.stderr


def test_what_a_hanging_model_started_is_ended_with_it(runs: dict[str, Future[Done]]) -> None:
    done = runs["hangs"].result()
    assert not alive(int(done.mark.read_text()))


def test_ctrl_c_once_ends_after_the_item(tmp_path: Path) -> None:
    run = started("run", "faulty_models:slow", *SMOKE, "--out", tmp_path / "run")
    wait_for_line(run, "[1/4] S0")
    second = statecheck("run", "faulty_models:slow", *SMOKE, "--out", tmp_path / "run")
    assert second.returncode == 2
    assert f"is in use by process {run.pid} on " in second.stderr
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    done = Done(subprocess.CompletedProcess([], run.returncode, out, err), tmp_path / "run", tmp_path)
    assert done.code == 130
    assert "Traceback" not in done.printed
    assert [done.items[id]["status"] for id in ("S0", "S1")] == ["PASS", "PASS"]
    assert done.items["S3"]["reason"] == "not run: the run was interrupted"
    assert "the run was interrupted; the same command resumes it" in done.report["notes"]


@pytest.mark.parametrize(
    ("signals", "code"), [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143)], ids=["twice", "terminated"]
)
def test_these_signals_end_the_run_at_once(signals: tuple[signal.Signals, ...], code: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run = started("run", "faulty_models:hangs_once", *SMOKE, "--out", tmp_path / "run", FAULT_MARK=str(mark))
    assert eventually(mark.exists, 60)
    run.send_signal(signals[0])
    if len(signals) > 1:
        wait_for_line(run, "Ctrl-C again ends at once")
        run.send_signal(signals[1])
    assert run.wait(15) == code
    assert run.stderr is not None
    assert "Traceback" not in run.stderr.read()
    assert eventually(lambda: not processes(["statecheck.worker", str(tmp_path)]))
    assert json.loads((tmp_path / "run" / "results" / "S0.json").read_text())["fault"] is None


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run = started("run", "faulty_models:hangs_with_a_child", *ONE, "--out", tmp_path / "run", FAULT_MARK=str(mark))
    assert eventually(lambda: mark.exists() and bool(mark.read_text()), 60)
    assert processes(["statecheck.worker", str(tmp_path)])
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert eventually(lambda: not processes(["statecheck.worker", str(tmp_path)]))
    assert eventually(lambda: not alive(int(mark.read_text())))
