"""The same on a CUDA device: the `triton` form beside fla's and mamba-ssm's kernels, in float32 and bfloat16.

Correctness first, against the recurrence in float64 on the same (rounded) inputs, then CUDA events. There are no bars.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import interleaved_on_gpu
from benchmarks.inputs import Inputs, make
from benchmarks.ours import OUR_CHUNKED, form_that_runs, ours
from benchmarks.peers import attribute
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.speed import Problem, Tolerances, compare
from benchmarks.variants import Missing, Variant, swapped

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {  # peers may use tensor cores in TF32 for float32: 10 bits of mantissa
    torch.float32: Tolerances(ours=1e-4, theirs=1e-2),
    torch.bfloat16: Tolerances(ours=2e-2, theirs=5e-2, of_gradients=4.0),
}
IN_FLOAT32 = ("A", "D", "u")  # parameters that stay in float32, as mamba-ssm wants them


def on_gpu(kernel: str, kind: str, settings: Settings) -> list[Row]:
    """Rows of one recurrence, `kind` "forward" or "backward", for both dtypes."""
    rows = []
    for dtype in DTYPES:
        rounded = make(kernel, settings.sizes, dtype, "cuda")
        inputs = {name: x.float() if name in IN_FLOAT32 else x for name, x in rounded.items()}
        mine = ours(kernel, settings.form, f"statecheck {form_that_runs(kernel, inputs, settings.form)}")
        found = [mine, ours(kernel, "chunked", OUR_CHUNKED), *peers_on_gpu(kernel)]
        problem = Problem.of(kernel, inputs, backward=kind == "backward")
        timer = partial(interleaved_on_gpu, repeats=settings.repeats)
        name = f"{kind} {str(dtype).removeprefix('torch.')}"
        rows += compare(kernel, name, found, problem, TOLERANCES[dtype], timer, "wall", {})[0]
    return rows


def peers_on_gpu(kernel: str) -> list[Variant | Missing]:
    """The GPU kernels of other packages, those not installed by name."""
    if kernel == "wkv6":
        return [
            _variant("fla chunk_rwkv6", "fla.ops.rwkv6", "chunk_rwkv6", _fla),
            _variant("fla fused_recurrent_rwkv6", "fla.ops.rwkv6", "fused_recurrent_rwkv6", _fla),
        ]
    if kernel == "selective_scan":
        module = "mamba_ssm.ops.selective_scan_interface"
        return [_variant("mamba-ssm selective_scan_fn", module, "selective_scan_fn", _mamba, ("x", "dt", "B", "C"))]
    if kernel == "ssd":
        module = "mamba_ssm.ops.triton.ssd_combined"
        return [_variant("mamba-ssm chunk scan", module, "mamba_chunk_scan_combined", _mamba2)]
    return [_variant("causal-conv1d", "causal_conv1d", "causal_conv1d_fn", _conv, ("x",))]


def _variant(name: str, module: str, function: str, run: Any, turned: tuple[str, ...] = ()) -> Variant | Missing:
    found, why = attribute(module, function)
    layout = swapped(*turned, *(["outputs"] if turned else []))
    return Variant(name, partial(run, found), layout, layout) if found else Missing(name, why)


def _fla(function: Any, i: Inputs) -> Tensor:
    outputs: Tensor = function(i["r"], i["k"], i["v"], i["log_w"], i["u"], scale=1.0)[0]
    return outputs


def _mamba(function: Any, i: Inputs) -> Tensor:
    outputs: Tensor = function(*(i[name] for name in ("x", "dt", "A", "B", "C", "D")))
    return outputs


def _mamba2(function: Any, i: Inputs) -> Tensor:
    outputs: Tensor = function(*(i[name] for name in ("x", "dt", "A", "B", "C")), chunk_size=256, D=i["D"])
    return outputs


def _conv(function: Any, i: Inputs) -> Tensor:
    outputs: Tensor = function(i["x"], i["weight"], i["bias"], activation="silu")
    return outputs
