"""One way to compute a recurrence: ours or a peer's, with the layout that it is fastest in prepared beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.inputs import Inputs

Layout = Callable[[str, Tensor], Tensor]  # a tensor by its name, "outputs" too, from one layout to another


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The layout of a variant that takes ours."""
    return tensor


def swapped(*names: str, view: bool = False) -> Layout:
    """A layout whose axes 1 and 2 are swapped for tensors of these names: its own inverse.

    `view`: the memory stays as it is in ours, where a variant is faster on that.

    >>> swapped("x")("x", torch.zeros(2, 3, 4)).shape
    torch.Size([2, 4, 3])
    """

    def layout(name: str, tensor: Tensor) -> Tensor:
        if name not in names:
            return tensor
        turned = tensor.transpose(1, 2)
        return turned if view else turned.contiguous()

    return layout


@dataclass(frozen=True)
class Variant:
    """`run` takes inputs in its own layout (`prepare` of ours) to outputs; `back` leads outputs and gradients to ours.

    `backward` is False where a variant has none; `slow` where its backward pass takes minutes.
    """

    name: str
    run: Callable[[Inputs], Tensor]
    prepare: Layout = as_it_is
    back: Layout = as_it_is
    backward: bool = True
    slow: bool = False

    def prepared(self, inputs: Inputs, gradients: bool) -> Inputs:
        """Ours in its layout, detached, as leaves if gradients are wanted."""
        return {name: self.prepare(name, tensor).detach().requires_grad_(gradients) for name, tensor in inputs.items()}

    def forward(self, inputs: Inputs) -> Tensor:
        """Outputs in its own layout of inputs in its own layout; nothing is kept for a backward pass."""
        with torch.no_grad():
            return self.run(inputs)

    def both(self, leaves: Inputs, upstream: Tensor) -> tuple[Tensor, Inputs]:
        """Outputs and, for `upstream` on them, the gradient of every input; all in its own layout."""
        outputs = self.run(leaves)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)
        return outputs, dict(zip(leaves, gradients, strict=True))


@dataclass(frozen=True)
class Missing:
    """A peer that can't be run here, and why."""

    name: str
    why: str
