"""kernels/bench.py: that it runs, what it says of peers that are not installed, and what its exit code means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "kernels"))

from benchmarks import eager, gpu, inputs, memory, ours, own, peers, rows, speed  # noqa: E402
from benchmarks.bars import BARS, Bar  # noqa: E402
from benchmarks.clock import Measured, Spread, interleaved  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402
from benchmarks.variants import Missing, Variant  # noqa: E402
from statecheck_kernels.contract import Scan  # noqa: E402

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
    ended = run("kernels/bench.py", "--quick", "--long", "--json", str(out), "--kinds", *kinds, "hybrid")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())["rows"]
    wanted = {(kernel, kind) for kernel in inputs.KERNELS for kind in kinds} | {("hybrid", "hybrid")}
    assert {(row["kernel"], row["kind"]) for row in found} == wanted
    of_hybrid = {row["name"] for row in found if row["kernel"] == "hybrid"}
    assert of_hybrid == {name for kernel, _, name in BARS if kernel == "hybrid"}
    for row in found:
        lacking = ("needs two processors", "only the chunked form is here")
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
