"""The command line: what is printed, where, and with which exit code. The engine beneath is in test_run_engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command, environment, statecheck

from statecheck.catalogue import ITEMS, LAWS
from statecheck.commands.asking import Asked, make_limits, parse_size
from statecheck.commands.calibrate import matrix
from statecheck.errors import UsageError
from statecheck.faults import ARCHITECTURES, FAULTS
from statecheck.store import Result
from statecheck.suite import load_suite


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke suite."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = statecheck("run", "faulty_models:healthy", "--suite", "smoke", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "VALIDATION_GATE_PASS" in done.stdout
    assert [line[:5] for line in done.stderr.splitlines()] == ["loadi", "[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    return folder


def test_exit_code_banner_file_and_json_agree(run_folder: Path) -> None:
    report = json.loads((run_folder / "report.json").read_text())
    assert (report["verdict"], report["path"], report["exit_code"]) == ("PASS", "A", 0)
    assert [path.name for path in run_folder.glob("VALIDATION_GATE_*")] == ["VALIDATION_GATE_PASS.md"]
    assert [item["id"] for item in report["items"]] == [item.id for item in load_suite("smoke").items]
    assert {"S0", "S1", "S2", "S3"} == set(report["timings"]["items"])
    assert report["environment"]["threads"] == 1
    assert report["environment"]["statecheck"]


def test_baseline_of_a_run_and_compare(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "metrics" / "baseline.json"
    done = statecheck("baseline", run_folder, "--out", file)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["kind"] == "baseline"
    compared = statecheck("compare", file, run_folder)
    assert compared.returncode == 1
    assert "REFUSED: every number passed before" in compared.stdout
    as_json = statecheck("compare", file, run_folder, "--json")
    assert json.loads(as_json.stdout)["accept"] is False


def test_compare_refuses_what_is_no_baseline(run_folder: Path, tmp_path: Path) -> None:
    assert statecheck("compare", tmp_path / "nothing", run_folder).returncode == 2
    (tmp_path / "half.json").write_text((run_folder / "report.json").read_text()[:500])
    done = statecheck("compare", tmp_path / "half.json", run_folder)
    assert done.returncode == 3
    assert "half-written" in done.stderr


def test_report_of_a_folder_without_a_run(tmp_path: Path) -> None:
    done = statecheck("report", tmp_path)
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--suite", "phase93"], "did you mean phase39"),
        (["run", "--suite", "smoke", "--only", "S9"], "--only S9: not an item of suite 'smoke'"),
        (["run", "no-such-model"], "MODEL 'no-such-model' is no registered model"),
        (["run", "--max-memory", "lots"], "expected a size above 0 like 800MB or 2GB"),
        (["run", "--seed", "x"], "--seed"),
        (["run", "--no-such-option"], "--no-such-option"),
        (["run", "--cell-seconds", "-1"], "--cell-seconds"),
        (["show", "D9"], "no item 'D9'"),
        (["calibrate", "--only", "frozzen"], "did you mean frozen"),
        (["no-such-command"], "no-such-command"),
        ([], "Usage"),
    ],
)
def test_usage_errors_are_exit_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = statecheck(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "missing.pt"], 4, "missing.pt: no such file"),
        (["run", "no_such_module:build"], 2, "no module 'no_such_module'"),
        (["run", "--suite", "options.toml"], 2, "item S3 has no option 'lagg'"),
        (["doctor", "reference", "--device", "cuda:99"], 2, "--device cuda:99 can't be used here"),
    ],
)
def test_what_the_worker_refuses_is_one_line(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    smoke = Path(load_suite.__globals__["__file__"]).parent / "suites" / "smoke.toml"
    text = smoke.read_text().replace('id = "S3"\n', 'id = "S3"\noptions = { lagg = 3 }\n')
    (tmp_path / "options.toml").write_text(text)
    out = ["--out", "run"] if arguments[0] == "run" else []
    done = statecheck(*arguments, *out, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line != "loading"]
    assert len(lines) == 1
    assert lines[0].startswith("statecheck: ")
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


def test_ls_names_items_suites_and_models() -> None:
    done = statecheck("ls")
    assert done.returncode == 0
    for name in (*ITEMS, "phase39", "smoke", "reference"):
        assert f"\n  {name}" in done.stdout


@pytest.mark.parametrize("id", ITEMS)
def test_show_explains_every_item(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    from statecheck.commands.tables import show

    assert show(id) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{id}: {ITEMS[id].title}\n")
    assert "no description" not in said
    assert "source: " in said.partition(f"thresholds in suite {'conformance' if id in LAWS else 'phase39'}:")[2]


def test_a_reader_who_goes_away_is_no_error() -> None:
    lister = subprocess.Popen(
        command("show", "D1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED="1")
    )
    assert lister.stdout is not None
    assert lister.stderr is not None
    lister.stdout.close()
    assert lister.wait(60) == 0
    assert lister.stderr.read() == b""


def test_a_full_standard_output_is_exit_3() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("ls"), stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 3
    assert done.stderr == "statecheck: No space left on device\n"


def test_a_closed_standard_output_is_no_error() -> None:
    code = "import os, subprocess, sys; os.close(1); sys.exit(subprocess.call(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command("ls")], stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_entry_point_and_the_module_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("statecheck")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[2:] == statecheck("--help").stdout.splitlines()[2:]


def test_a_fault_of_our_own_is_one_line_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from statecheck import cli

    def broken() -> int:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("statecheck.commands.tables.ls", broken)
    monkeypatch.setattr(sys, "argv", ["statecheck", "ls"])
    assert cli._exit_code() == 3
    said = capsys.readouterr().err
    assert said.startswith("statecheck: a fault of statecheck itself, ZeroDivisionError: deep inside")
    log = Path(said.split()[-1])
    assert "in broken" in log.read_text()
    log.unlink()


def test_doctor_says_what_is_there_and_what_is_missing() -> None:
    done = statecheck("doctor", "faulty_models:healthy")
    assert done.returncode == 0, done.stderr
    rows = {line[6:].split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    for name in ("statecheck", "memory", "torch", "model", "states", "forward", "set states", "reset"):
        assert rows[name].startswith("ok "), rows[name]
    for name in ("tokenizer", "text", "training log"):
        assert rows[name].startswith("no "), rows[name]
    assert "layers.0.h" in rows["states"]


def test_doctor_says_why_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    done = statecheck("doctor", tmp_path / "empty.pt")
    assert done.returncode == 4
    assert [line for line in done.stdout.splitlines() if line.startswith("no    model")]


def test_trace_writes_a_table_and_pictures(tmp_path: Path) -> None:
    done = statecheck(
        "trace", "faulty_models:healthy", "--length", "64", "--every", "4", "--rows", "3", "--out", tmp_path / "trace"
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "trace" / "states.csv").read_text().splitlines()
    assert len(lines) == 1 + 64 // 4
    assert lines[0].startswith("position,component,layer,rms")
    for line in done.stdout.splitlines()[1:]:
        assert Path(line).is_file()
    assert "state-rms.png" in done.stdout
    said = "; generic: states read every 4 elements (the module has no forward_with_statistics: traces read its states)"
    assert done.stdout.splitlines()[0].endswith(said)
    assert (tmp_path / "trace" / "trace.txt").read_text().strip() == done.stdout.splitlines()[0]


def test_trace_without_cosines_at_every_element(tmp_path: Path) -> None:
    done = statecheck(
        *("trace", "faulty_models:healthy", "--length", "20", "--every", "1", "--apart", "0", "--rows", "2"),
        *("--out", tmp_path / "trace"),
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "trace" / "states.csv").read_text().splitlines()) == 1 + 20
    assert (tmp_path / "trace" / "cosines.csv").read_text() == "component,layer,lag,cosine\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--every", "4", "--apart", "6"], "apart=6: expected a multiple of every=4, or 0 for no cosines"),
        (["--path", "fused"], "path 'fused' can't be had: the module has no forward_with_statistics"),
    ],
)
def test_trace_refuses_what_can_not_be_meant(tmp_path: Path, options: list[str], said: str) -> None:
    done = statecheck("trace", "faulty_models:healthy", "--length", "64", *options, "--out", tmp_path / "trace")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "trace").exists()


def test_the_culprit_matrix_is_printed() -> None:
    payload = {"fault": "frozen", "statuses": {"S0": "PASS", "D2": "FAIL"}, "missed": [], "wolves": ["D1.growth"]}
    clean = {"fault": "none", "statuses": {"S0": "PASS", "D2": "PASS"}, "missed": [], "wolves": []}
    lines = matrix(
        {
            "a/frozen": Result("a/frozen", payload, 1.0, "1"),
            "a/none": Result("a/none", clean, 1.0, "1"),
            "a/dead": Result("a/dead", None, 1.0, "1", "killed by signal 9"),
        }
    )
    assert lines[0].split() == ["S0", "D2"]
    assert lines[1].split() == ["a/frozen", ".", "F", "CRIED", "WOLF", "D1.growth"]
    assert lines[2].split() == ["a/none", ".", ".", "clean"]
    assert lines[3].split() == ["a/dead", "no", "answer:", "killed", "by", "signal", "9"]


@pytest.mark.slow
def test_calibrate_resumes(tmp_path: Path) -> None:
    arguments = ("calibrate", "--only", "none", "--architecture", ARCHITECTURES[0], "--out", tmp_path / "matrix")
    done = statecheck(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean" in done.stdout
    again = statecheck(*arguments)
    assert again.stdout == done.stdout
    assert "loading" not in again.stderr
    assert "none" in FAULTS


@pytest.mark.parametrize(
    ("text", "size"), [("800MB", 8e8), ("2 GB", 2e9), ("1.5g", 1.5e9), ("123", 123.0), ("4GiB", 2.0**32)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "1PB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size above 0"):
        parse_size(text)


def test_limits_default_to_most_of_the_free_memory() -> None:
    limits = make_limits(cell_seconds=1, load_seconds=2, max_memory=None)
    assert 1e7 < limits.max_memory < 1e15
    assert (limits.cell_seconds, limits.load_seconds, limits.max_seconds) == (1, 2, float("inf"))


def test_paths_of_a_request_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").touch()
    request = Asked("model.pt", data=Path("text")).request()
    assert (request["spec"], request["data"]) == (str(tmp_path / "model.pt"), str(tmp_path / "text"))
    assert Asked().request()["spec"] == "reference"
    assert [Asked(spec).label for spec in (None, "model.pt", "a.b:build")] == ["reference", "model", "build"]
