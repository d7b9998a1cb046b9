"""`statecheck conform` and `check_model(suite="conformance")`: what they print, write, resume, and end with."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import TESTS, environment, statecheck
from lawless_models import Restarts, restarts, sound

import statecheck as sc
from statecheck import cli
from statecheck.catalogue import CASELESS, ITEMS
from statecheck.catalogue import LAWS as LAWS_THERE_ARE
from statecheck.errors import UsageError
from statecheck.histories.operations import Claim
from statecheck.probes.contract import Effort
from statecheck.report.record import Report

CASE = "1x3@0: feed(0:1) feed(1:3) == feed(0:3)"
LAWS = ("--law", "STEP", "--law", "CHUNK", "--law", "SIZE")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished run on a model that breaks CHUNK."""
    folder = tmp_path_factory.mktemp("conform") / "run"
    arguments = (
        "--law",
        "STEP",
        "--law",
        "CHUNK",
        "--law",
        "SIZE",
        "--out",
        folder,
        "--junit",
        folder.parent / "x.xml",
    )
    return folder, statecheck("conform", "lawless_models:restarts", *arguments)


def test_a_broken_law_is_printed_with_all_that_an_issue_needs(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = broken
    assert done.returncode == 1, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line.split()[:2] for line in lines[:3]] == [["PASS", "STEP"], ["FAIL", "CHUNK"], ["PASS", "SIZE"]]
    assert "CHUNK FAIL: Several elements on a warm state equal one call over all" in lines
    assert any(re.fullmatch(r"CHUNK.native FAIL: [\d.e+]+ floors", line) for line in lines)
    assert any(re.fullmatch(r"CHUNK.functional FAIL: [\d.e+]+ floors", line) for line in lines)
    assert f"case: {CASE}" in lines
    found = next(line for line in lines if line.startswith("found: "))
    error = r"found: 0\.\d+ relative \(noise floor [\d.]+e-0\d\), "
    first = r"first at row 0, position 1, feature \d: expected -?0\.\d+, found -?0\.\d+"
    assert re.fullmatch(error + first, found)
    assert any(line.startswith("A call of several elements on a warm state must start") for line in lines)


def test_the_printed_command_plays_the_case_again(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = broken
    replay = next(line.strip() for line in done.stdout.splitlines() if line.strip().startswith("replay: "))
    words = shlex.split(replay.removeprefix("replay: "))
    assert words[:3] == ["statecheck", "conform", "lawless_models:restarts"]
    again = statecheck(*words[1:], "--out", folder.parent / "again")
    assert again.returncode == 1, again.stderr
    assert f"case: {CASE}" in again.stdout
    report = json.loads((folder.parent / "again" / "report.json").read_text())
    assert [item["id"] for item in report["items"]] == ["CHUNK"]
    assert [number["n"] for number in report["items"][0]["measurements"]] == [1, 1]


@pytest.mark.parametrize("part", ["CHUNK.native", "CHUNK.functional"])
def test_the_script_of_a_violation_runs_as_it_stands(
    broken: tuple[Path, subprocess.CompletedProcess[str]], part: str
) -> None:
    folder = broken[0] / "violations" / part
    assert {path.name for path in folder.iterdir()} == {"script.py", "inputs.safetensors"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    number = Report.from_json(json.loads((broken[0] / "report.json").read_text()))[part].measurements[0]
    assert done.stdout.splitlines()[0] in number.note
    assert f"script: {folder / 'script.py'}" in broken[1].stdout


def test_the_report_holds_the_case_and_comes_back(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    data = json.loads((broken[0] / "report.json").read_text())
    report = Report.from_json(data)
    assert report.to_json() == data
    assert report["CHUNK.native"].measurements[0].broken == CASE
    assert report["STEP.native"].measurements[0].broken == ""
    page = (broken[0] / "statefulness_report.md").read_text()
    assert f"        case: {CASE}" in page.splitlines()


def test_the_same_command_resumes_and_another_budget_is_refused(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = broken
    again = statecheck("conform", "lawless_models:restarts", *LAWS, "--out", folder)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    assert "loading" not in again.stderr
    other = statecheck("conform", "lawless_models:restarts", *LAWS, "--out", folder, "--examples", "41")
    assert other.returncode == 2
    assert "examples: none there, 41 now" in other.stderr
    rendered = statecheck("report", folder)
    assert (rendered.returncode, rendered.stdout) == (1, done.stdout)


def test_fresh_removes_the_scripts_of_before(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert statecheck("conform", "lawless_models:restarts", "--law", "CHUNK", "--out", out).returncode == 1
    (out / "violations" / "notes.txt").write_text("mine")
    done = statecheck("conform", "lawless_models:sound", "--law", "CHUNK", "--out", out, "--fresh")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (out / "violations").iterdir()] == ["notes.txt"]


def test_a_budget_that_ends_early_is_no_pass(tmp_path: Path) -> None:
    """Even where nothing else was asked for: it was begun, so it is not nothing (exit 5)."""
    done = statecheck(
        "conform", "lawless_models:sound", *("--law", "BATCH", "--seconds", "0.001"), "--out", tmp_path / "a"
    )
    assert done.returncode == 3, done.stdout
    assert "not run to its end: time was up" in done.stdout
    assert "VALIDATION_GATE_INCONCLUSIVE" in done.stdout


def test_what_was_begun_blocks_though_it_is_not_required(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    criterion = '[[item.criterion]]\non = "BATCH.native"\npass = "< 30"\nsource = "test"\n'
    size = '[[item]]\nid = "SIZE"\n[[item.criterion]]\non = "SIZE.undeclared"\npass = "< 0.5"\nsource = "test"\n'
    suite.write_text(f'[[item]]\nid = "BATCH"\nrequired = false\n{criterion}{size}')
    report = sc.check_model(sound(), suite=suite, seconds=1e-4)
    assert (report["SIZE"].status, report["BATCH"].status) == (sc.Status.PASS, sc.Status.SKIP)
    assert (report.verdict, report.exit_code) == ("INCONCLUSIVE", 3)
    assert Report.from_json(report.to_json()).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--case", CASE], "name exactly one"),
        (["--case", CASE, "--law", "STEP", "--law", "CHUNK"], "name exactly one"),
        (["--case", CASE, "--law", "SIZE"], "SIZE takes no case, as it draws no histories"),
        (["--case", "feed(0:3)", "--law", "STEP"], "a case reads 'ROWSxLENGTH@SEED: history == history'"),
        (["--case", "1x1@0: fed(0:1) == whole(0:1)", "--law", "STEP"], "can't read the operation 'fed(0:1)'"),
        (["--law", "STEPP"], "--law STEPP: not an item of suite 'conformance'; did you mean STEP"),
        (["--law", "D1"], "--law D1: not an item of suite 'conformance'"),
        (["--examples", "0"], "--examples"),
        (["--expect-failure", "PADR"], "expected LAW=REASON"),
        (["--expect-failure", "PADR="], "expected LAW=REASON"),
        (["--expect-failure", "PADR.natve=x"], "expected failure 'PADR.natve': not an item or part"),
        (["--junit", "missing/x.xml"], "the folder missing does not exist"),
    ],
)
def test_usage_errors_are_exit_2_and_nothing_is_left(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["statecheck", "conform", *arguments])
    assert cli._exit_code() == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_model_finds_what_the_command_finds(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = sc.check_model(restarts(), suite="conformance", only=["CHUNK"])
    command = Report.from_json(json.loads((broken[0] / "report.json").read_text()))
    assert [m.broken for m in report["CHUNK"].measurements] == [m.broken for m in command["CHUNK"].measurements]
    assert f'sc.check_model(model, suite="conformance", only=["CHUNK"], case="{CASE}", seed=0)' in str(report)


def test_check_model_looks_at_one_case_alone() -> None:
    found = sc.check_model(restarts(), suite="conformance", only=["CHUNK"], case=CASE)["CHUNK"]
    assert [(m.n, m.broken) for m in found.measurements] == [(1, CASE), (1, CASE)]
    steps = CASE.replace("feed(1:3)", "feed(1:2) feed(2:3)")
    harmless = sc.check_model(restarts(), suite="conformance", only=["CHUNK"], case=steps)["CHUNK"]
    assert [(m.n, m.broken, m.value < 30) for m in harmless.measurements] == [(1, "", True), (1, "", True)]
    with pytest.raises(UsageError, match="name exactly one"):
        sc.check_model(restarts(), suite="conformance", case=CASE)


@pytest.mark.parametrize("law", sorted(set(LAWS_THERE_ARE) - CASELESS - {"PADL", "PADR"}))  # which need a mask
def test_every_law_that_takes_a_case_says_nothing_of_its_other_parts(law: str) -> None:
    """A case is played on each route; what is no history is NOT_APPLICABLE, never an ERROR."""
    case = "2x3@0: feed(0:2) feed(2:3) == feed(0:2) feed(2:3)"
    verdict = sc.check_model(sound(), suite="conformance", only=[law], case=case)[law]
    assert verdict.status is sc.Status.PASS, verdict.reason
    assert {m.n for m in verdict.measurements} == {1}


def test_laws_without_cases_are_those_that_draw_no_histories() -> None:
    homes = {law: ITEMS[law].target.partition(":")[0].rpartition(".")[2] for law in LAWS_THERE_ARE}
    sources = {law: (Path(sc.__file__).parent / "laws" / f"{home}.py").read_text() for law, home in homes.items()}
    takes = {law for law, source in sources.items() if "hold(" in source or "Claim.parse(effort.case)" in source}
    assert set(LAWS_THERE_ARE) - takes == CASELESS


def test_examples_bound_what_is_drawn() -> None:
    measured = sc.check_model(sound(), suite="conformance", only=["DETERM"], examples=3)["DETERM"].measurements
    assert [m.n for m in measured] == [3, 3]


def test_check_model_writes_scripts_and_removes_those_of_before(tmp_path: Path) -> None:
    report = sc.check_model(restarts(), suite="conformance", only=["CHUNK"], out=tmp_path)
    folder = tmp_path / "violations" / "CHUNK.native"
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(PYTHONPATH=str(TESTS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in report["CHUNK.native"].measurements[0].note
    sc.check_model(sound(), suite="conformance", only=["CHUNK"], out=tmp_path)
    assert not folder.exists()


def test_a_model_that_can_not_be_saved_is_left_to_the_reader(tmp_path: Path) -> None:
    class Local(Restarts):
        """Of a class that only this function knows."""

    sc.check_model(Local(), suite="conformance", only=["CHUNK"], out=tmp_path, case=CASE)
    script = (tmp_path / "violations" / "CHUNK.native" / "script.py").read_text()
    assert "model = sc.wrap(Local(...))  # build your model here: it can't be saved" in script
    assert not (tmp_path / "violations" / "model.pt").exists()


def test_the_help_tells_the_budget_that_is_used() -> None:
    (conform,) = [command for command in cli.app.registered_commands if command.callback.__name__ == "conform"]  # type: ignore[union-attr]
    texts = {name: str(hint) for name, hint in conform.callback.__annotations__.items()}  # type: ignore[union-attr]
    assert f"default: {Effort.examples}." in texts["examples"]
    assert f"Default: {Effort.seconds:g}." in texts["seconds"]
    assert str(Claim.parse(CASE)) == CASE
