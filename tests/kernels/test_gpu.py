"""The triton form on a GPU: the battery, real strides and sizes, and the libraries that people use there.

Needs a CUDA or ROCm device and triton; each test skips without. A GPU computes exp to a few units in the last place and
rounds outputs to nearest, and its sums are in another order than the reference's: tolerances are those of float32.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import battery
import battery_hard
import drawing
import pytest
import statecheck_kernels
import torch
from battery import CASES, Case
from drawing import (
    CONVOLUTION,
    OPERATIONS,
    SCAN,
    SSD,
    WKV6,
    Arguments,
    Operation,
    assert_close,
    drawn,
    gradients,
    off,
    oracle,
    results,
    run,
)
from statecheck_kernels import Observe, Scan, triton_form
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device is visible"),
    pytest.mark.skipif(triton_form.interpreted(), reason="TRITON_INTERPRET is set: nothing would run on the GPU"),
    pytest.mark.skipif(bool(triton_form.reason()), reason=triton_form.reason()),
]
REAL = {  # as in models of some hundred million parameters
    "wkv6": {"H": 12, "K": 64, "V": 64},
    "selective_scan": {"D": 1536, "N": 16},
    "ssd": {"H": 24, "P": 64, "G": 1, "N": 128},
    "causal_conv1d": {"D": 1536, "W": 4, "window": 3},
}
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def on_gpu(x: Tensor) -> Tensor:
    """The same numbers on the GPU with the same strides, also those that leave gaps; a gradient finds its way back."""
    if x.requires_grad:
        return x.to("cuda")
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    there = torch.full((size,), torch.nan, dtype=x.dtype, device="cuda").as_strided(x.shape, x.stride())
    return there.copy_(x) if 0 not in x.stride() else x.to("cuda")


def run_on_gpu(
    operation: Operation,
    arguments: Arguments,
    form: str,
    *,
    packed: Sequence[int] | None = None,
    observe: Observe | None = None,
) -> Scan:
    """As `drawing.run`, but the triton form gets its tensors on the GPU; what comes out is brought back."""
    if form != "triton":
        return run(operation, arguments, form, packed=packed, observe=observe)
    if observe is not None and observe.running is not None:
        observe = dataclasses.replace(observe, running=observe.running.cuda())
    function = getattr(statecheck_kernels, operation.name)
    starts = None if packed is None else torch.tensor([0, *packed]).cumsum(0).cuda()
    there = {name: on_gpu(x) for name, x in arguments.items()}
    scan = function(**there, **operation.options, cu_seqlens=starts, statistics=observe, form="triton")
    assert scan.form == "triton"
    assert scan.outputs.is_cuda
    found = scan.statistics
    if found is not None:
        found = dataclasses.replace(found, **{name: x.cpu() for name, x in found.items().items()})
    return Scan(scan.outputs.cpu(), scan.state.cpu(), found, scan.form)


@pytest.fixture(autouse=True)
def triton_runs_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the battery runs goes through `run_on_gpu`."""
    for module in (drawing, battery, battery_hard):
        monkeypatch.setattr(module, "run", run_on_gpu)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_triton_passes_the_battery_on_a_gpu(case: Case) -> None:
    case.check("triton")


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_sizes(operation: Operation, dtype: torch.dtype) -> None:
    """Heads and widths of real models, some hundred steps: results, statistics and gradients."""
    arguments = drawn(operation, 300, REAL[operation.name], dtype=dtype)
    arguments["state"] = arguments["state"].float()
    observe = Observe(every=7, entropy=True)
    found, expected = (
        run_on_gpu(operation, arguments, "triton", observe=observe),
        oracle(operation, arguments, observe=observe),
    )
    step = 5e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert off(found.outputs, expected.outputs) <= step
    assert off(found.state, expected.state) <= 5e-6
    assert found.statistics is not None
    assert expected.statistics is not None
    for name, x in found.statistics.items().items():
        if name == "near_largest":
            assert bool(((x - expected.statistics.items()[name]).abs() <= 1).all())  # one may lie on the border
        else:
            assert off(x, expected.statistics.items()[name], floor=1e-3) <= 1e-4, name
    grads = gradients(operation, arguments, "triton")
    assert_close(grads, drawing.expected_gradients(operation, arguments), max(5e-5, 3 * step), "gradients")


@each
def test_packed_real_sizes(operation: Operation) -> None:
    """Many sequences, some empty, more than programs run at once."""
    draw = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 60, (64,), generator=draw).tolist()
    sizes = {name: max(1, size // 4) for name, size in REAL[operation.name].items()}
    sizes = sizes if operation is not CONVOLUTION else {"D": 384, "W": 4, "window": 3}
    arguments = drawn(operation, sum(packed), sizes, 1, len(packed), dtype=torch.float32)
    found = run_on_gpu(operation, arguments, "triton", packed=packed)
    assert_close(results(found), results(oracle(operation, arguments, packed=packed)), 5e-6)
    grads = gradients(operation, arguments, "triton", packed=packed)
    assert_close(grads, drawing.expected_gradients(operation, arguments, packed), 5e-5)


@each
def test_two_devices(operation: Operation) -> None:
    """Kernels run where the tensors are, not where the process happens to be."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = drawn(operation, 9, dtype=torch.float32)
    there = {name: x.to("cuda:1") for name, x in arguments.items()}
    scan = getattr(statecheck_kernels, operation.name)(**there, **operation.options, form="triton")
    assert scan.outputs.device.index == 1
    assert off(scan.outputs.cpu(), oracle(operation, arguments).outputs) <= 2e-6


def library(name: str, function: str) -> Any:
    """A function of another library, or skip."""
    return getattr(pytest.importorskip(name, exc_type=ImportError), function)


def on(arguments: Arguments) -> Arguments:
    return {name: x.cuda() for name, x in arguments.items()}


def test_wkv6_agrees_with_fla() -> None:
    theirs = library("fla.ops.rwkv6", "fused_recurrent_rwkv6")
    arguments = drawn(WKV6, 100, {"H": 4, "K": 64, "V": 64}, dtype=torch.float32)
    ours = run_on_gpu(WKV6, arguments, "triton")
    r, k, v, log_w, u, state = on(arguments).values()
    outputs, last = theirs(r, k, v, log_w, u, scale=1.0, initial_state=state, output_final_state=True)
    assert_close(results(ours), {"outputs": outputs.cpu(), "state": last.cpu()}, 1e-5)


def test_selective_scan_agrees_with_mamba_ssm() -> None:
    theirs = library("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    arguments = drawn(SCAN, 100, {"D": 64, "N": 16}, dtype=torch.float32)
    arguments["state"].zero_()  # theirs takes none
    ours = run_on_gpu(SCAN, arguments, "triton")
    x, dt, A, B, C, D, _ = on(arguments).values()
    x, dt, B, C = (z.transpose(1, 2).contiguous() for z in (x, dt, B, C))
    outputs, last = theirs(x, dt, A, B, C, D, return_last_state=True)
    assert_close(results(ours), {"outputs": outputs.transpose(1, 2).cpu(), "state": last.cpu()}, 1e-5)


def test_ssd_agrees_with_mamba_ssm() -> None:
    theirs = library("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    arguments = drawn(SSD, 100, {"H": 4, "P": 64, "G": 2, "N": 64}, dtype=torch.float32)
    ours = run_on_gpu(SSD, arguments, "triton")
    x, dt, A, B, C, D, state = on(arguments).values()
    outputs, last = theirs(x, dt, A, B, C, 64, D=D, initial_states=state, return_final_states=True)
    assert_close(results(ours), {"outputs": outputs.cpu(), "state": last.cpu()}, 5e-3)  # theirs multiplies in TF32


def test_convolution_agrees_with_causal_conv1d() -> None:
    theirs = library("causal_conv1d", "causal_conv1d_fn")
    arguments = drawn(CONVOLUTION, 100, {"D": 64, "W": 4, "window": 3}, dtype=torch.float32)
    arguments["state"].zero_()
    ours = run_on_gpu(CONVOLUTION, arguments, "triton")
    x, weight, bias, _ = on(arguments).values()
    outputs = theirs(x.transpose(1, 2).contiguous(), weight, bias, activation="silu")
    assert off(ours.outputs, outputs.transpose(1, 2).cpu()) <= 1e-5


def test_a_call_without_a_form_takes_triton() -> None:
    x = torch.ones(1, 3, 2, device="cuda")
    assert statecheck_kernels.causal_conv1d(x, torch.ones(2, 2, device="cuda")).form == "triton"
