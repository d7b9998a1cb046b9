"""kernels/bench.py: that it runs, what it says of peers that are not installed, and what its exit code means."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "kernels"))

from benchmarks import eager, gpu, inputs, memory, ours, own, peers, rows, speed, training, training_runs  # noqa: E402
from benchmarks.bars import BARS, Bar  # noqa: E402
from benchmarks.clock import Measured, Spread, interleaved  # noqa: E402
from benchmarks.gpt import GPT  # noqa: E402
from benchmarks.learners import First, Learner, agree, copy_weights, forgetting  # noqa: E402
from benchmarks.mamba_models import MAMBA, PEERS, Peer  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402
from benchmarks.variants import Missing, Variant  # noqa: E402
from statecheck_kernels.contract import Scan  # noqa: E402
from statecheck_reference.hybrid import HybridLanguageModel  # noqa: E402
from statecheck_reference.presets import preset  # noqa: E402
from statecheck_reference.settings import TrainingSettings  # noqa: E402
from statecheck_reference.streams import Batch  # noqa: E402

PATIENCE = 300.0  # seconds on a busy machine
SPOILED = """
import sys, time
sys.path.append("kernels")
import bench
from benchmarks import ours
kernel, do = sys.argv[1], sys.argv[2]
given = ours.OPERATIONS[kernel]

def spoiled(*arguments, form=None, **named):
    scan = given(*arguments, form=form or "chunked", **named)
    if form == "reference":
        return scan
    if do == "slow":
        time.sleep(0.2)
        sum(range(20_000_000))  # time of this process, which a sleep is not
    return scan._replace(outputs=scan.outputs * (1.001 if do == "wrong" else 1))

ours.OPERATIONS[kernel] = spoiled
sys.exit(bench.main(sys.argv[3:]))
"""


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_quick_run_has_a_row_for_every_kernel_and_names_what_is_not_installed(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    kinds = ("forward", "backward")
    ended = run("kernels/bench.py", "--quick", "--json", str(out), "--kinds", *kinds)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert {(row["kernel"], row["kind"]) for row in found["rows"]} == {
        (kernel, kind) for kernel in inputs.KERNELS for kind in kinds
    }
    measured = [row for row in found["rows"] if row["name"].startswith("statecheck ")]
    assert len(measured) == 2 * len(inputs.KERNELS)
    assert all(row["wall"]["median"] > 0 and row["error"] <= 1e-5 for row in measured)
    for kernel in inputs.KERNELS:
        assert f"{kernel} " in ended.stdout
        for variant in peers.peers(kernel):
            row = next(r for r in found["rows"] if (r["kernel"], r["name"]) == (kernel, variant.name))
            assert row["note"] == (variant.why if isinstance(variant, Missing) else "")
    missing = [name for name, version in peers.versions().items() if version == "not installed"]
    assert all(f"{name} not installed" in ended.stdout for name in missing)
    assert "no bar is judged" in ended.stdout


@pytest.mark.slow
def test_a_quick_run_of_everything_else_measures_every_row(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    kinds = ("threads", "packed", "statistics", "memory")
    models = ("hybrid", "training")
    ended = run("kernels/bench.py", "--quick", "--long", "--json", str(out), "--kinds", *kinds, *models)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())["rows"]
    of_models = {row for row in BARS if row[1] in models}
    assert {(row["kernel"], row["kind"], row["name"]) for row in found if row["kind"] in models} == of_models
    wanted = {(kernel, kind) for kernel in inputs.KERNELS for kind in kinds} | {row[:2] for row in of_models}
    assert {(row["kernel"], row["kind"]) for row in found} == wanted
    for row in found:
        lacking = ("needs two processors", "only the chunked form is here", "not installed")
        assert row["ratio"] is not None or any(why in row["note"] for why in lacking), row


@pytest.mark.slow
def test_a_kernel_that_is_too_slow_ends_with_1() -> None:
    ended = run("-c", SPOILED, "wkv6", "slow", "--only", "wkv6", "--kinds", "forward", "--repeats", "2")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    line = next(line for line in ended.stdout.splitlines() if "share of GEMM rate" in line)
    assert "short" in line
    assert "short: " in ended.stdout


def test_a_kernel_that_computes_something_else_ends_with_3_and_is_not_timed() -> None:
    ended = run("-c", SPOILED, "wkv6", "wrong", "--only", "wkv6", "--kinds", "forward", "--quick")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    line = next(line for line in ended.stdout.splitlines() if "statecheck chunked" in line)
    assert "DISAGREES" in line
    assert "not timed" in line
    assert "1.0e-03" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_in_vain() -> None:
    ended = run("kernels/bench.py", "--device", "cuda", "--quick")
    assert ended.returncode == 2
    assert "expected a CUDA device" in ended.stderr


@pytest.mark.parametrize("kernel", inputs.KERNELS)
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_the_rows_of_a_gpu_run_with_the_tensors_on_the_cpu(
    kernel: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs.make
    monkeypatch.setattr(gpu, "make", lambda kernel, sizes, dtype, device: given(kernel, sizes, dtype))
    monkeypatch.setattr(gpu, "interleaved_on_gpu", interleaved)
    monkeypatch.setattr(gpu, "peers_on_gpu", lambda kernel: [Missing("a peer", "not installed")])
    settings = Settings(sizes=inputs.QUICK, repeats=1, form="chunked")
    found = gpu.on_gpu(kernel, kind, settings)
    assert {row.kind for row in found} == {f"{kind} float32", f"{kind} bfloat16"}
    assert all(row.agrees for row in found)
    errors = [row.error for row in found if row.name == "statecheck chunked"]
    assert errors[0] < 1e-5
    assert 1e-4 < errors[1] < 4 * 2e-2  # bfloat16 has 8 bits


@pytest.mark.parametrize("kernel", inputs.KERNELS)
def test_every_peer_that_is_installed_agrees_with_the_reference(kernel: str) -> None:
    problem = speed.Problem.of(kernel, inputs.make(kernel, inputs.QUICK), backward=True)
    for variant in peers.peers(kernel):
        if isinstance(variant, Variant) and variant.backward:
            errors = problem.error(variant, problem.call(variant)())
            assert max(errors) < 1e-5, variant.name


def test_a_peer_that_disagrees_or_fails_is_not_timed_and_ours_still_is() -> None:
    def fails(i: inputs.Inputs) -> torch.Tensor:
        raise RuntimeError("no such thing")

    problem = speed.Problem.of("wkv6", inputs.make("wkv6", inputs.QUICK), backward=False)
    found: list[Variant | Missing] = [
        ours.ours("wkv6", "chunked", "statecheck chunked"),
        Variant("off", lambda i: 1.01 * eager.wkv_by_unbind(i)),
        Variant("broken", fails),
        Missing("absent", "not installed"),
    ]

    def timer(calls: dict) -> dict[str, Measured]:
        return interleaved(calls, repeats=1)

    table, times = speed.compare("wkv6", "forward", found, problem, speed.Tolerances(), timer, "cpu", {})
    assert list(times) == ["statecheck chunked"]
    assert [row.agrees for row in table] == [True, False, True, True]
    assert "RuntimeError: no such thing" in table[2].note
    assert rows.exit_code(table) == 3


def a_row(ratio: float | None, bar: Bar | None, agrees: bool = True) -> rows.Row:
    spread = None if ratio is None else Spread(ratio, ratio, ratio)
    return rows.Row("wkv6", "forward", "a peer", ratio=spread, bar=bar, agrees=agrees)


def test_verdicts_and_the_exit_code() -> None:
    least, most = Bar(10, 15), Bar(1.25, 1.15, most=True)
    judged = [a_row(x, least).verdict for x in (15.0, 10.0, 9.99, float("nan"), None)]
    assert judged == ["STRETCH", "PASS", "short", "short", "not measured"]
    assert [a_row(x, most).verdict for x in (1.15, 1.25, 1.26)] == ["STRETCH", "PASS", "short"]
    assert rows.exit_code([a_row(12.0, least), a_row(None, least), a_row(0.1, None)]) == 0
    assert rows.exit_code([a_row(12.0, least), a_row(9.0, least)]) == 1
    assert rows.exit_code([a_row(9.0, least), a_row(12.0, least, agrees=False)]) == 3


def test_rounds_are_interleaved_and_slow_calls_have_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("benchmarks.clock.WORTH", 0.0)
    monkeypatch.setattr("benchmarks.clock._once", lambda call: (call(), call.seconds)[1:] * 2)

    def called(name: str, seconds: float) -> object:
        class Call:
            def __init__(self) -> None:
                self.seconds = seconds

            def __call__(self) -> None:
                order.append(name)

        return Call()

    times = interleaved({"fast": called("fast", 1e-4), "slow": called("slow", 3.0)}, repeats=6)  # type: ignore[dict-item]
    assert sorted(times["fast"].wall) == [0, 1, 2, 3, 4, 5]
    assert sorted(times["slow"].wall) == [0, 3]
    assert order == ["fast", "slow", *["fast", "slow"], "fast", "fast", "fast", "slow", "fast", "fast"]


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs Linux: /proc")
def test_the_peak_is_that_since_the_mark_was_set_back() -> None:
    def allocated(megabytes: int) -> float:
        before = memory.reset_peak()
        torch.ones(megabytes * 250_000).sum()  # float32
        return (memory.peak() - before) / 1e6

    allocated(400)  # a peak of before, which no longer counts
    assert allocated(100) == pytest.approx(100, abs=5)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs Linux: /proc")
def test_memory_beyond_inputs_and_outputs_is_what_a_form_uses_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = inputs.Sizes(batch=1, length=2048, heads=8, width=64)

    def hungry(*, v: torch.Tensor, **named: object) -> Scan:
        torch.ones(100_000_000 // 4).sum()
        return Scan(torch.ones_like(v), torch.zeros(0), None, "hungry")

    monkeypatch.setitem(ours.OPERATIONS, "wkv6", hungry)
    found = memory._call("wkv6", None, sizes, backward=False)
    outputs = 4 * 2048 * 8 * 64
    assert found["inputs_and_outputs"] == 5 * outputs + 4 * 8 * 64
    # The 100 MB are given back before the outputs, 4 MB, are made: the peak is theirs alone.
    assert found["extra"] == pytest.approx(100e6 - outputs, abs=3e6)


def test_packed_sequences_are_uneven_and_fill_the_row() -> None:
    ends = own.uneven(4096, 16)
    lengths = ends.diff()
    assert (ends[0], ends[-1]) == (0, 4096)
    assert len(set(lengths.tolist())) == 16
    assert lengths.min() > 0


def test_the_inputs_of_the_bars() -> None:
    assert inputs.Sizes(batch=4, length=1024, channels=512, state=16, heads=8, width=64) == inputs.FULL
    assert inputs.flops("wkv6", inputs.FULL) == 5 * 4 * 1024 * 8 * 64 * 64
    scan, wkv = inputs.make("selective_scan", inputs.QUICK), inputs.make("wkv6", inputs.QUICK)
    assert bool((scan["dt"] > 0).all())
    assert bool((scan["A"] < 0).all())
    assert bool((wkv["log_w"] < 0).all())
    assert torch.equal(wkv["r"], inputs.make("wkv6", inputs.QUICK)["r"])


# ---------------------------------------------------------------------------------------------------- training steps

SMALL_MAMBA = replace(
    MAMBA, width=8, rwkv_heads=1, mamba_inner=16, mamba_state=4, mamba_rank=2, blocks=2, vocabulary=16
)
SETTINGS_8M = TrainingSettings("hybrid", shape=preset("hybrid-8m"))
SMALL = TrainingSettings("hybrid", shape=SMALL_MAMBA.to_dict(), peak_rate=1e-2, warm_up=0, final_rate=1.0, clip=0.01)
BATCH = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(3))


def small(seed: int = 0) -> HybridLanguageModel:
    torch.manual_seed(seed)
    return HybridLanguageModel(SMALL_MAMBA)


def learner_of(model: HybridLanguageModel) -> Learner:
    return Learner(model, forgetting(model), BATCH, SMALL)


def test_the_step_that_is_timed_is_the_trainers() -> None:
    pytest.importorskip("scipy")  # the trainer needs it, the benchmark does not
    from statecheck_reference.stepping import Stepper

    timed, trained = small(), small()
    learner = learner_of(timed)
    stepper = Stepper.of(SMALL, trained)
    batch = Batch(BATCH[:, :-1], BATCH[:, 1:], torch.ones(2, dtype=torch.bool))
    assert [learner.step() for _ in range(3)] == [stepper.step(batch, n + 1, detailed=False).loss for n in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(timed.parameters(), trained.parameters(), strict=True))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with_our_weights_takes_our_first_step(name: str) -> None:
    model = small()
    peer = PEERS[name](SMALL_MAMBA, model)
    if isinstance(peer, str):
        pytest.skip(f"{name} is {peer}")
    first = First.of(learner_of(model))
    other = First.of(Learner(peer.model, peer.read, BATCH, SMALL))
    assert len(first.gradients) == 2 + 2 * 10  # embedding, norm; a norm and nine of Mamba's own in each block
    assert max(first.errors(other, peer.names)) < 1e-5


def test_a_first_step_with_one_weight_off_disagrees() -> None:
    model, twin, off = small(), small(), small()
    off.get_parameter("blocks.1.mamba.A_log").data.mul_(1.05)
    first = First.of(learner_of(model))
    assert first.errors(First.of(learner_of(twin))) == (0, 0)
    loss, gradients = first.errors(First.of(learner_of(off)))
    assert loss < 1e-4 < 1e-3 < gradients  # the loss of an untrained model alone would not tell
    assert not agree(loss, gradients)


def test_weights_are_copied_by_name_or_not_at_all() -> None:
    model, other = small(), small(seed=1)
    copy_weights(model, other, str)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"blocks.0.norm.weight has no counterpart"):
        copy_weights(model, other, lambda name: name.replace("norm.weight", "norm_f.weight"))


def test_the_plain_gpt_is_one_and_of_the_size_of_the_hybrid() -> None:
    with torch.device("meta"):
        plain = GPT(4096, 256, places=256, **training_runs.GPT_SHAPE)
        hybrid = SETTINGS_8M.architecture.build(SETTINGS_8M.shape)
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert count == 9 * (12 * 256**2 + 2 * 2 * 256) + (4096 + 256 + 2) * 256  # layers and norms; table, places, norm
    assert count / sum(parameter.numel() for parameter in hybrid.parameters()) == pytest.approx(1, abs=0.03)
    torch.manual_seed(0)
    small_gpt = GPT(vocabulary=16, width=8, layers=2, heads=2, places=8)
    changed = BATCH[:, :-1].clone()
    changed[:, 5] = (changed[:, 5] + 1) % 16
    differs = (small_gpt(BATCH[:, :-1]) - small_gpt(changed)).abs().amax((0, 2)) > 0
    assert differs.tolist() == [False] * 5 + [True] * 3


def found_by_the_hybrid(**other: object) -> dict[str, object]:
    """A step of 3 seconds, matrix products of 0.01 and 0.03, a GPT's step of 2, a step without the library of 6."""
    seconds = {"ours": 3.0, "GPT": 2.0, "chunked": 6.0, "GEMM before": 0.01, "GEMM after": 0.03}
    return {
        "times": {name: [{"0": x, "1": x}, {"0": x, "1": x}] for name, x in seconds.items()},
        "errors": [1e-6, 1e-5],
        "agrees": True,
        "forms": {"ours": ["cpu"], "chunked": ["chunked"]},
        "parameters": {"ours": 10_000_000, "GPT": 10_200_000},
        "falls": {"ours": True, "chunked": True, "GPT": True},
        "tokens": 2**13,
        **other,
    }


def test_the_ratios_of_a_training_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "in_a_process", lambda module, told: found_by_the_hybrid())
    # 6 x 10^7 x 2^13 operations at 2^32 in 0.02 s are 2.29 s.
    bound, plain, chunked = training._hybrid(Settings())
    assert bound.ratio.median == pytest.approx(3 / (6e7 * 2**13 / 2**32 * 0.02))
    assert (plain.ratio.median, chunked.ratio.median) == (1.5, 2.0)
    assert [row.verdict for row in (bound, plain, chunked)] == ["STRETCH", "short", "PASS"]
    assert "215 GF/s" in bound.note


@pytest.mark.parametrize(
    ("other", "number", "why"),
    [
        ({"agrees": False, "errors": [1e-6, 0.1]}, 2, "no time is given"),
        ({"parameters": {"ours": 10_000_000, "GPT": 10_400_000}}, 1, "not of its size"),
        ({"falls": {"ours": False, "chunked": True, "GPT": True}}, 0, "the loss of ours does not fall"),
    ],
)
def test_a_training_step_that_is_not_what_it_says_disagrees(
    other: dict[str, object], number: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "in_a_process", lambda module, told: found_by_the_hybrid(**other))
    found = training._hybrid(Settings())
    assert [row.agrees for row in found] == [n != number for n in range(3)]
    assert why in found[number].note
    assert rows.exit_code(found) == 3


@pytest.mark.parametrize("slow", [False, True])
def test_no_time_is_given_of_a_peer_that_takes_another_step(slow: bool) -> None:
    model = small()
    off = small()
    off.get_parameter("blocks.1.mamba.A_log").data.mul_(1.05)
    peer = Peer(off, forgetting(off), str, slow=slow)
    beside = training_runs._Beside(First.of(learner_of(model)), learner_of(model).step, repeats=1)
    found = beside.measured(peer, BATCH, SMALL)
    assert not found["agrees"]
    row = training._peer("mambapy", found, "", "cpu")
    assert (row.verdict, row.ratio) == ("DISAGREES", None)
