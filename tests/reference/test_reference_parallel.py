"""Training by several processes that torchrun started: the result of one process, and what a kill or a fault leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from statecheck_reference.checkpointing import held, kept_checkpoint, load_checkpoint, weights_digest
from statecheck_reference.cli import app
from statecheck_reference.corpus import open_corpus
from statecheck_reference.parallel import World, gathered, joined, share, whole
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import Batch
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import read_log, without_clock
from typer.testing import CliRunner

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
COMMAND = ["-m", "statecheck_reference.cli", "train"]
SHAPE = """
    vocabulary=300 width=12 blocks=2 rwkv_heads=2 low_rank=2 mamba_inner=16 mamba_heads=2 mamba_state=4 feed_forward=16
    attention_at=1 attention_heads=2 attention_window=8 fusion=sum blend_learned=false
"""
# All that changes gradients on the way, and a parameter (the blend) that never has one.
OPTIONS = """
    --model hybrid --held-out kept-apart --steps 40 --batch 4 --window 16 --passage-windows 4 --seed 5 --warm-up 5
    --freeze rwkv=3:9 --component-clip mamba=0.01 --component-rate rwkv=0.5 --activation-checkpointing
    --log-every 1 --validate-every 20 --checkpoint-every 10 --keep 20 --validation-rows 2 --validation-length 64
    --sample-tokens 4
"""
WEIGHTS = 1e-5  # relative, after 20 steps; found: 5e-7


def words(texts: Path, work: Path, *options: str) -> list[str]:
    """A run that is long enough to be killed."""
    shape = [word for pair in SHAPE.split() for word in ("--shape", pair)]
    return ["--data", str(texts), "--out", str(work), *shape, *OPTIONS.split(), *options]


def environment() -> dict[str, str]:
    """The package as this process found it, installed or not; a thread for each process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def together(*given: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Several processes, to their end."""
    return subprocess.run(
        [*TORCHRUN, str(processes), *given], capture_output=True, text=True, env=environment(), timeout=500, check=False
    )


def alone(texts: Path, work: Path) -> None:
    """The same run by this process."""
    done = CliRunner().invoke(app, ["train", *words(texts, work)])
    assert done.exit_code == 0, done.output


def checkpoint_of(work: Path, step: int | None = None) -> dict[str, Any]:
    found = load_checkpoint(work) if step is None else load_checkpoint(work, kept_checkpoint(step))
    assert found is not None
    return found


def digests(work: Path) -> tuple[str, str, str]:
    """Of weights, states and log, but for its speeds."""
    checkpoint = checkpoint_of(work)
    rows = json.dumps(without_clock(read_log(work / LOG)))
    return weights_digest(checkpoint["weights"]), weights_digest(checkpoint["states"]), rows


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of all values as one vector, relative."""
    assert one.keys() == other.keys()
    first, second = (torch.cat([found[name].double().flatten() for name in one]) for found in (one, other))
    return float((first - second).norm() / first.norm())


@pytest.fixture(scope="module")
def single(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    work = tmp_path_factory.mktemp("single") / "work"
    torch.set_num_threads(1)
    alone(texts, work)
    return work


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def pair(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind and the run by two processes of that kind."""
    work = tmp_path_factory.mktemp("pair") / "work"
    done = together(*COMMAND, *words(texts, work, "--parallel", request.param))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 40 steps") == 1, done.stdout
    assert "error" not in done.stderr.lower(), done.stderr
    return request.param, work


def test_two_processes_train_the_model_that_one_does(single: Path, pair: tuple[str, Path]) -> None:
    one, two = (checkpoint_of(work, 20) for work in (single, pair[1]))
    assert distance(one["weights"], two["weights"]) < WEIGHTS
    assert distance(one["states"], two["states"]) < 1e-4
    assert [len(state) for state in two["states"].values()] == [4] * len(one["states"])  # all rows, in their order
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    for number, found in one["optimizer"]["state"].items():
        assert found["step"] == two["optimizer"]["state"][number]["step"]
        assert found["exp_avg"].shape == two["optimizer"]["state"][number]["exp_avg"].shape
    assert (one["processes"], two["processes"]) == (1, 2)


def test_the_log_of_two_processes_is_that_of_one(single: Path, pair: tuple[str, Path]) -> None:
    one, two = (read_log(work / LOG) for work in (single, pair[1]))
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for first, second in zip(one[1:21], two[1:21], strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-5)
        tolerance = 1e-5 if first["step"] <= 3 else 1e-2  # rounding grows where a gradient is small
        for name in ("gradient_norms", "gates", "relative_updates"):
            assert second[name] == pytest.approx(first[name], rel=tolerance), name
        assert second["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=tolerance)
    for name in ("validation_loss", "state_rms", "state_entropy", "evolution", "health", "perplexity"):
        assert two[0][name] == one[0][name]  # of the untrained model
        assert two[20][name] == pytest.approx(one[20][name], rel=1e-3)
    assert two[0]["checks"] == one[0]["checks"]


def test_one_process_writes_all_files(single: Path, pair: tuple[str, Path]) -> None:
    found = [sorted(path.name for path in work.iterdir()) for work in (single, pair[1])]
    assert found[0] == found[1]
    assert len(read_log(pair[1] / LOG)) == 41


def kill_at(texts: Path, work: Path, step: int, *options: str) -> None:
    """Run by two processes until the log says `step`, then SIGKILL to all."""
    agent = subprocess.Popen([*TORCHRUN, "2", *COMMAND, *words(texts, work, *options)], env=environment())
    while agent.poll() is None and logged(work) < step:
        time.sleep(0.001)
    assert agent.poll() is None, f"the run ended before step {step}"
    children = subprocess.run(
        ["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    for process in (agent.pid, *map(int, children)):  # the agent first: it would end the others by itself
        os.kill(process, signal.SIGKILL)
    assert agent.wait() == -signal.SIGKILL
    assert len(children) == 2
    wait_until_free(work)


def logged(work: Path) -> int:
    try:
        return (work / LOG).read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return -1


def wait_until_free(work: Path) -> None:
    """Until the last of the killed processes has gone."""
    for _ in range(1000):
        try:
            with held(work):
                return
        except RuntimeError:
            time.sleep(0.01)
    raise AssertionError(f"{work} is still held")


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_end_by_two_and_by_one(
    texts: Path, tmp_path: Path, pair: tuple[str, Path]
) -> None:
    """By two to the very bits, by one but for rounding."""
    kind, unbroken = pair
    kill_at(texts, tmp_path / "two", 13, "--parallel", kind)
    assert checkpoint_of(tmp_path / "two")["step"] >= 10
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    done = together(*COMMAND, *words(texts, tmp_path / "two", "--parallel", kind))
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "two") == digests(unbroken)
    alone(texts, tmp_path / "one")
    ends = (checkpoint_of(tmp_path / name)["weights"] for name in ("one", "two"))
    assert distance(*ends) < 10 * WEIGHTS


@pytest.mark.slow
def test_three_processes_add_their_gradients_in_one_order_before_and_after_they_stop(
    texts: Path, tmp_path: Path
) -> None:
    given = [*COMMAND, *words(texts, tmp_path / "unbroken", "--batch", "6", "--parallel", "ddp")]
    assert together(*given, processes=3).returncode == 0
    shutil.copytree(tmp_path / "unbroken", tmp_path / "stopped")
    shutil.copy(tmp_path / "stopped" / kept_checkpoint(20), tmp_path / "stopped" / "checkpoint.pt")
    given[given.index("--out") + 1] = str(tmp_path / "stopped")
    assert together(*given, processes=3).returncode == 0
    assert digests(tmp_path / "stopped") == digests(tmp_path / "unbroken")


def test_two_processes_go_on_from_the_checkpoint_of_one(texts: Path, tmp_path: Path, single: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(single, work)
    shutil.copy(work / kept_checkpoint(20), work / "checkpoint.pt")  # as if it had stopped there
    done = together(*COMMAND, *words(texts, work, "--parallel", "fsdp"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: the checkpoint was written by 1 processes, now there are 2") == 1
    assert distance(checkpoint_of(work)["weights"], checkpoint_of(single)["weights"]) < 10 * WEIGHTS


FAULTY = """
import os
from statecheck_reference import cli, streams

read = streams.PassageStreams.batch_at


def batch_at(self, step):
    if step == 7 and os.environ["RANK"] == "1":
        raise OSError("the disk is gone")
    return read(self, step)


streams.PassageStreams.batch_at = batch_at
cli.main()
"""


def test_a_fault_of_one_process_ends_all_with_a_line(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    done = together(str(tmp_path / "faulty.py"), "train", *words(texts, tmp_path / "work"))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "error: process 1 of 2: the disk is gone" in lines
    other = "error: process 0 of 2: another process of the run has ended, and so does this one; the other says why"
    assert set(lines) <= {"error: process 1 of 2: the disk is gone", other}  # torchrun may have ended it before
    assert len(read_log(tmp_path / "work" / LOG)) == 8


def test_the_rows_of_the_processes_are_those_of_the_batch() -> None:
    batch = Batch(
        torch.arange(12).view(4, 3), torch.arange(12).view(4, 3) + 1, torch.tensor([True, False, False, True])
    )
    parts = [World(rank=rank, size=2).own(batch) for rank in range(2)]
    for name in ("inputs", "targets", "fresh"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(batch, name))
    assert World(rank=1, size=2).own_states({"h": torch.arange(4.0)})["h"].tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"^batch: expected a multiple of the number of processes, 3, found 4"):
        World(rank=0, size=3).own(batch)


def test_a_batch_that_can_not_be_dealt_out_is_refused_before_anything_is_written(
    tiny: TrainingSettings, single: Path, tmp_path: Path
) -> None:
    corpus = open_corpus(single / "corpus")
    with pytest.raises(ValueError, match=r"multiple of the number of processes, 3, found 2; ask for another --batch"):
        train(tiny, corpus, tmp_path / "work", world=World(rank=0, size=3))
    assert not (tmp_path / "work").exists()


def test_one_process_gathers_and_shares_nothing() -> None:
    """The very tensors: a run by one process is what it was before there were several."""
    tensor = torch.zeros(2)
    assert whole(tensor) is tensor
    assert share(tensor, torch.ones(2)) is tensor
    assert gathered({"a": [tensor, 1]}, keep=True)["a"][0] is tensor
    assert gathered({"a": [tensor, 1]}, keep=False) == {"a": [None, 1]}
    with joined() as world:
        assert (world.size, world.device, world.main) == (1, torch.device("cpu"), True)


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("ddp", None, r"--parallel ddp: expected several processes, found one; start them with torchrun"),
        ("zero", None, r"--parallel: expected one of ddp, fsdp, found 'zero'"),
        (None, "tpu", r"--device: expected cpu or cuda, found 'tpu'"),
        pytest.param(
            None,
            "cuda",
            r"--device cuda: expected a GPU for each process, 1 or more, torch finds 0",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_kind_or_device_that_can_not_be_is_refused(
    texts: Path, tmp_path: Path, kind: str | None, device: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"), joined(kind, device):
        pass
    options = ["--parallel", kind] if kind else ["--device", str(device)]
    done = CliRunner().invoke(app, ["train", *words(texts, tmp_path / "work", *options)])
    assert isinstance(done.exception, ValueError)
    assert not (tmp_path / "work").exists()


@pytest.mark.gpu
def test_a_gpu_trains_the_model_that_the_cpu_does_and_resumes(texts: Path, tmp_path: Path, single: Path) -> None:
    shutil.copytree(single, tmp_path / "resumed")
    shutil.copy(tmp_path / "resumed" / kept_checkpoint(20), tmp_path / "resumed" / "checkpoint.pt")
    for name in ("begun", "resumed"):
        done = CliRunner().invoke(app, ["train", *words(texts, tmp_path / name, "--device", "cuda")])
        assert done.exit_code == 0, done.output
        assert checkpoint_of(tmp_path / name)["device"] == "cuda"
        losses = [read_log(folder / LOG)[-1]["validation_loss"] for folder in (tmp_path / name, single)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
