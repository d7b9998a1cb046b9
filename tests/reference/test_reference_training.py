"""Training: what is logged, and that a run that was killed ends with the same bytes as one that was not."""

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from statecheck_reference.checkpointing import held, load_checkpoint, save_checkpoint, weights_digest
from statecheck_reference.cli import app
from statecheck_reference.corpus import Corpus
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.stepping import TrainingDiverged
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import TrainingLog, read_log, without_clock
from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "statecheck_reference.cli", "train"]
OPTIONS = """
    --steps 250 --batch 4 --window 16 --passage-windows 4 --seed 5 --warm-up 20 --log-every 1 --validate-every 50
    --checkpoint-every 10 --validation-rows 2 --validation-length 64 --threads 1
"""


class Stopped(Exception):
    """Raised in the middle of a run, in place of a fault."""


def digests(folder: Path) -> tuple[str, str]:
    """Of the weights in the checkpoint, and of the log but for its speeds."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    rows = json.dumps(without_clock(read_log(folder / LOG)))
    return weights_digest(checkpoint["weights"]), hashlib.sha256(rows.encode()).hexdigest()


def stop_at(limit: int) -> Any:
    """A `report` that raises at a step."""

    def report(step: int, row: dict[str, Any] | None) -> None:
        if step == limit:
            raise Stopped

    return report


def test_the_loss_falls_and_the_log_tells_of_every_interval(
    tiny: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(tiny, steps=150, peak_rate=0.02)
    train(settings, corpus, tmp_path)
    rows = read_log(tmp_path / LOG)
    assert [row["step"] for row in rows] == list(range(0, 151, 2))
    assert rows[0]["checks"]["G1"] == {"finite": True, "passed": True}
    assert 0.98 < rows[0]["checks"]["G2"]["entropy_share"] <= 1
    tenth = [row["train_loss"] for row in rows[1:8]]  # of 75 rows
    assert rows[-1]["checks"]["G3"]["first"] == pytest.approx(sum(tenth) / 7)
    assert rows[-1]["checks"]["G3"]["passed"] is True
    assert not any("checks" in row for row in rows[1:-1])
    validated = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert sorted(validated) == list(range(0, 151, 10))
    assert validated[150] < validated[0] - 1
    for row in rows[1:]:
        norms = row["gradient_norms"]
        assert set(norms) == {"embedding", "layers.0", "layers.1"}
        assert all(math.isfinite(value) and value > 0 for value in [*norms.values(), row["gradient_norm"]])
        assert row["lr"] == pytest.approx(settings.rate(row["step"]), rel=1e-5)
        assert set(row["relative_updates"]) == set(norms)
        assert all(0 < value < 1 for value in row["relative_updates"].values())
        assert "gates" not in row
        assert row["tokens_per_second"] > 0
        if "validation_loss" in row:
            assert row["perplexity"] == pytest.approx(math.exp(row["validation_loss"]), rel=1e-5)
            assert set(row["health"]) == {"lstm.0", "lstm.1"}
            assert all(0 < row["state_rms"][name] < 1 for name in ("layers.0.h", "layers.1.h"))
            assert all(0 < entropy < 1 for entropy in row["state_entropy"].values())
            assert set(row["evolution"]) == {"lstm.0", "lstm.1"}
            assert row["sample"].count("|") >= 1


@pytest.mark.parametrize(
    ("model", "limits"),
    [("lstm", [1]), ("lstm", [5]), ("lstm", [6]), ("lstm", [13, 14, 39]), ("lstm", [40]), ("hybrid", [13, 14, 39])],
)
def test_a_run_that_stopped_goes_on_to_the_same_end(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, tmp_path: Path, model: str, limits: list[int]
) -> None:
    settings = tiny_runs[model]
    train(settings, corpus, tmp_path / "unbroken")
    for limit in limits:
        with pytest.raises(Stopped):
            train(settings, corpus, tmp_path / "broken", report=stop_at(limit))
    trained = train(settings, corpus, tmp_path / "broken")
    assert digests(tmp_path / "broken") == digests(tmp_path / "unbroken")
    assert weights_digest(trained.state_dict()) == digests(tmp_path / "unbroken")[0]


@pytest.mark.parametrize("part", ["states", "optimizer", "weights"])
def test_every_part_of_the_checkpoint_matters(
    tiny: TrainingSettings, corpus: Corpus, tmp_path: Path, part: str
) -> None:
    """A resumption that lost its states, optimiser or weights must not get the same digests."""
    train(tiny, corpus, tmp_path / "unbroken")
    with pytest.raises(Stopped):
        train(tiny, corpus, tmp_path / "broken", report=stop_at(13))
    checkpoint = load_checkpoint(tmp_path / "broken")
    assert checkpoint is not None
    assert checkpoint["step"] == 12
    if part == "states":
        checkpoint["states"] = {name: torch.zeros_like(state) for name, state in checkpoint["states"].items()}
    elif part == "optimizer":
        checkpoint["optimizer"]["state"] = {}
    else:
        checkpoint["weights"]["output_bias"] += 1e-3
    save_checkpoint(tmp_path / "broken", checkpoint)
    train(tiny, corpus, tmp_path / "broken")
    assert digests(tmp_path / "broken")[0] != digests(tmp_path / "unbroken")[0]


def test_another_seed_gives_another_model(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    train(tiny, corpus, tmp_path / "one")
    train(replace(tiny, seed=4), corpus, tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "two")


def test_other_settings_or_another_corpus_are_not_resumed(
    tiny: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    train(tiny, corpus, tmp_path)
    with pytest.raises(ValueError, match=r"\(peak_rate 0.003 -> 0.5\); repeat its settings"):
        train(replace(tiny, peak_rate=0.5), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"settings \(shape.width 12 -> 16\)"):
        train(replace(tiny, shape={**tiny.shape, "width": 16}), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"corpus .* -> another"):
        train(tiny, replace(corpus, digest="another"), tmp_path)


def test_another_number_of_threads_is_told(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny, corpus, tmp_path, report=stop_at(13))
    lines: list[str] = []
    torch.set_num_threads(2)
    train(tiny, corpus, tmp_path, warn=lines.append)
    assert len(lines) == 1
    assert "written with 1 threads, this process has 2" in lines[0]


def test_two_processes_do_not_share_a_work_directory(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(RuntimeError, match="in use by another run"):
        train(tiny, corpus, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"step \d+: the loss is .* lower --peak-rate"):
        train(replace(tiny, peak_rate=1e38, clip=1e38), corpus, tmp_path)


def test_a_broken_checkpoint_is_refused_in_one_line(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    train(tiny, corpus, tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^checkpoint: [^\n]* can't be read [^\n]*delete it to start over$"):
        train(tiny, corpus, tmp_path)


def test_a_log_shorter_than_its_checkpoint_says_is_refused(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / LOG)
    log.append({"step": 1})
    length = log.mark()
    log.close()
    with pytest.raises(ValueError, match=f"expected at least {length + 1} bytes .* found {length}"):
        TrainingLog(tmp_path / LOG, keep_bytes=length + 1)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 2}\n{"ste')
    assert [row["step"] for row in read_log(tmp_path / LOG)] == [1, 2]
    TrainingLog(tmp_path / LOG, keep_bytes=length).close()
    assert (tmp_path / LOG).stat().st_size == length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_every": 15}, "checkpoint_every: expected a multiple of log_every = 10, found 15"),
        ({"validation_length": 100}, "validation_length: expected a multiple of window = 256"),
        ({"steps": 0}, "steps: expected more than 0"),
        ({"clip": math.nan}, "clip: expected more than 0, found nan"),
        ({"validation_rows": 1}, "validation_rows: expected at least 2"),
        ({"model": "gru"}, "model: expected one of hybrid, lstm, transformer, found 'gru'"),
        ({"shape": {"heads": 4}}, "expected the keys layers, vocabulary, width; missing: none; unknown: heads"),
        ({"shape": {"width": 0.5}}, "LSTMConfig.width: expected a whole number of at least 1, found 0.5"),
        ({"model": "hybrid", "component_rates": {"mamba": 1, "ssm": 2}}, r"components .*\(rwkv, mamba\), found 'ssm'"),
        ({"component_rates": {"lstm": 2}}, r"component_rates: .*\(it has none\), found 'lstm'"),
        ({"model": "hybrid", "component_rates": {"rwkv": -1}}, r"component_rates\['rwkv'\]: expected a number from 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**change)


def arguments(texts: Path, work: Path, settings: TrainingSettings) -> list[str]:
    """A run of the model of `settings` that is long enough to be killed."""
    where = ["--data", str(texts), "--out", str(work), "--held-out", "kept-apart"]
    model = ["--model", settings.model]
    for option, table in (("--shape", settings.shape), ("--component-rate", settings.component_rates)):
        model += [word for name, value in table.items() for word in (option, f"{name}={spoken(value)}")]
    return [*where, *model, *OPTIONS.split()]


def spoken(value: object) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def environment() -> dict[str, str]:
    """The package as this process found it, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(texts: Path, work: Path, settings: TrainingSettings) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments(texts, work, settings)], stdout=subprocess.DEVNULL, env=environment())


def kill_at(texts: Path, work: Path, step: int, settings: TrainingSettings) -> None:
    """Run the command until its log (or, at step 0, a moment of its start-up) says `step`, then SIGKILL."""
    process = start(texts, work, settings)
    while process.poll() is None and logged(work) < step:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"the run ended before step {step}"


def logged(work: Path) -> int:
    try:
        return (work / LOG).read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


def assert_killed_runs_end_alike(texts: Path, folder: Path, settings: TrainingSettings, steps: list[int]) -> None:
    unbroken = CliRunner().invoke(app, ["train", *arguments(texts, folder / "unbroken", settings)])  # in this process
    assert unbroken.exit_code == 0, unbroken.output
    for step in steps:
        kill_at(texts, folder / "broken", step, settings)
        assert logged(folder / "broken") >= step
    assert start(texts, folder / "broken", settings).wait() == 0
    assert digests(folder / "broken") == digests(folder / "unbroken")
    assert len(read_log(folder / "unbroken" / LOG)) == 251
    assert not list((folder / "broken").glob("*.tmp"))
    assert all(row["tokens_per_second"] > 0 for row in read_log(folder / "broken" / LOG)[1:])


def test_a_run_killed_twice_ends_with_the_same_bytes(texts: Path, tmp_path: Path, tiny: TrainingSettings) -> None:
    """Once before the first checkpoint, once at a random step."""
    assert_killed_runs_end_alike(texts, tmp_path, tiny, [3, random.Random().randint(30, 150)])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hybrid", "lstm"])
def test_a_run_killed_ten_times_at_random_steps_ends_with_the_same_bytes(
    texts: Path, tmp_path: Path, tiny_runs: dict[str, TrainingSettings], model: str
) -> None:
    draw = random.Random()
    steps = sorted(draw.randint(0, 180) for _ in range(10))
    print(f"killed at steps {steps}")
    assert_killed_runs_end_alike(texts, tmp_path, tiny_runs[model], steps)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_its_start_ends_with_the_same_bytes(
    texts: Path, tmp_path: Path, tiny: TrainingSettings
) -> None:
    """The corpus is encoded in the first seconds: a kill there must leave nothing that a second run trips over."""
    draw = random.Random()
    for _ in range(6):
        process = start(texts, tmp_path / "broken", tiny)
        time.sleep(draw.uniform(1.0, 3.5))
        process.kill()
        process.wait()
    assert_killed_runs_end_alike(texts, tmp_path, tiny, [])


def test_the_command_refuses_a_missing_folder_in_one_line(tmp_path: Path, tiny: TrainingSettings) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments(tmp_path / "nowhere", tmp_path / "work", tiny)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: corpus: expected a folder of .txt files")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "width"], "--shape: expected NAME=VALUE, found 'width'"),
        (["--shape", "width=8", "--shape", "width=9"], "--shape: expected width once, found it twice"),
        (["--component-rate", "rwkv=fast"], "--component-rate: expected NAME=NUMBER, found 'rwkv=fast'"),
        (["--model", "hybrid", "--shape", "layers=2"], "unknown: layers"),
    ],
)
def test_options_that_mean_nothing_are_refused(texts: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["train", "--data", str(texts), "--out", str(tmp_path / "work"), *options])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not (tmp_path / "work").exists()
