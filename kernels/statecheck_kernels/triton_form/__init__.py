"""The `triton` form: the four recurrences and their gradients as GPU kernels, one program a block of a head.

Needs triton 3.5 or newer and a CUDA or ROCm device; with TRITON_INTERPRET=1 set before the process starts, triton's
interpreter runs the kernels on CPU tensors, some milliseconds a step: for tests. triton is imported when a function
here is first called, not by importing this package.
"""

import os
from functools import cache
from importlib import metadata

import torch
from torch import Tensor

from statecheck_kernels.contract import Observe, Results

OLDEST = (3, 5)  # the oldest triton that these kernels were compiled with; they take tuples as arguments


def available() -> bool:
    """Whether the form can run here: :func:`reason` has nothing to say against it.

    >>> available() == (reason() == "")
    True
    """
    return not reason()


def reason() -> str:
    """Why the form can't run here and what to do about it; empty where it can."""
    if missing := _missing():
        return missing
    if not interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device is visible; set TRITON_INTERPRET=1 before Python starts to run on CPU tensors"
    return ""


@cache
def _missing() -> str:
    """Why there is no triton to use; empty if there is. Looked up once: it reads a file."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed: pip install 'triton>=3.5'"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"triton {version} is too old, 3.5 or newer is needed: pip install 'triton>=3.5'"
    return ""


def interpreted() -> bool:
    """Whether triton runs kernels in its interpreter, on CPU tensors: TRITON_INTERPRET says so."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """See :meth:`statecheck_kernels.contract.Form.wkv6`."""
    _require(r)
    from statecheck_kernels.triton_form.wkv6_kernels import wkv6 as run

    return run(r, k, v, log_w, u, state, cu_seqlens, observe)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """See :meth:`statecheck_kernels.contract.Form.selective_scan`."""
    _require(x)
    from statecheck_kernels.triton_form.selective_scan_kernels import selective_scan as run

    return run(x, dt, A, B, C, D, state, cu_seqlens, observe)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """See :meth:`statecheck_kernels.contract.Form.ssd`."""
    _require(x)
    from statecheck_kernels.triton_form.ssd_kernels import ssd as run

    return run(x, dt, A, B, C, D, state, cu_seqlens, observe)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """See :meth:`statecheck_kernels.contract.Form.causal_conv1d`."""
    _require(x)
    from statecheck_kernels.triton_form.causal_conv1d_kernels import causal_conv1d as run

    return run(x, weight, bias, silu, state, cu_seqlens, observe)


def _require(x: Tensor) -> None:
    """Refuse what the form can't run on, before triton does so in its own words."""
    if why := reason():
        raise ValueError(f"the triton form can't run here: {why}")
    if x.is_cuda or (x.device.type == "cpu" and interpreted()):
        return
    raise ValueError(
        f"the triton form runs on CUDA and ROCm tensors, found device {str(x.device)!r}: move the inputs to a GPU, or "
        "set TRITON_INTERPRET=1 before Python starts, or ask for form='cpu' or 'chunked'"
    )
