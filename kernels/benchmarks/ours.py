"""The kernels of this package as variants, and the truth: the recurrence as its paper writes it, in float64."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import statecheck_kernels
import torch
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.variants import Variant

OUR_CHUNKED = "our chunked form"
Operation = Callable[..., Any]

OPERATIONS: dict[str, Operation] = {
    "wkv6": statecheck_kernels.wkv6,
    "selective_scan": statecheck_kernels.selective_scan,
    "ssd": statecheck_kernels.ssd,
    "causal_conv1d": functools.partial(statecheck_kernels.causal_conv1d, silu=True),
}


def form_that_runs(kernel: str, inputs: Inputs, form: str | None) -> str:
    """The form that a call of `kernel` really takes: "cpu", "chunked" ..."""
    name: str = OPERATIONS[kernel](**inputs, form=form).form
    return name


def ours(kernel: str, form: str | None, name: str, cu_seqlens: Tensor | None = None) -> Variant:
    """A form of ours; None for the one that a caller gets who names none."""

    def run(inputs: Inputs) -> Tensor:
        outputs: Tensor = OPERATIONS[kernel](**inputs, cu_seqlens=cu_seqlens, form=form).outputs
        return outputs

    return Variant(name, run)


def truth(
    kernel: str, inputs: Inputs, upstream: Tensor | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Inputs]:
    """Outputs of the `reference` form in float64 and, if there is an upstream gradient, the gradient of every input."""
    variant = ours(kernel, "reference", "reference", cu_seqlens)
    leaves = {name: x.detach().double().requires_grad_(upstream is not None) for name, x in inputs.items()}
    if upstream is None:
        return variant.forward(leaves), {}
    return variant.both(leaves, upstream.double())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude expected; infinite if either is not finite or shapes differ.

    >>> relative_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    0.2
    """
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    mine, true = found.detach().double(), expected.detach().double()
    error = (mine - true).abs().max() / true.abs().max().clamp_min(1e-30)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative error of several tensors."""
    return max((relative_error(found[name], tensor) for name, tensor in expected.items()), default=0.0)
