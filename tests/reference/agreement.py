"""What the tests of the reference hybrid share: how far two answers are apart, weights drawn from a seed, its forms."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from cuts import generator, normal
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
#: For whole layers in float32: how well a layer is conditioned depends on its weights, so these are no random draws.
FIXED = [[1], [5, 1, 7], [31, 2, 34, 5], [129, 71]]
#: Marks a test that holds for both forms of the recurrences that users get: compiled, and in torch.
both_forms = pytest.mark.usefixtures("form")


def error(found: Tensor, expected: Tensor) -> float:
    """Relative difference, the norm of a whole tensor against the norm of a whole tensor; NaN counts as infinite."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    difference, size = (found - expected).norm(), expected.norm()
    return float(torch.nan_to_num(difference / size.clamp_min(1e-300), nan=torch.inf)) if difference != 0 else 0.0


def off_over_cuts(layer: nn.Module, first: Sequence[Tensor], inputs: Tensor, lengths: list[int]) -> float:
    """In pieces, whole, token by token, from the states `first` on: the largest error of outputs and last states
    against the layer in float64. `inputs` (B, sum of `lengths` + 1, W).
    """
    dtype, exact, found = next(layer.parameters()).dtype, copy.deepcopy(layer).double(), [0.0]
    inputs, first = inputs.to(dtype), [state.to(dtype) for state in first]
    with torch.no_grad():
        expected = exact(inputs.double(), *(state.double() for state in first))
        for cuts in ([*lengths, 1], [sum(lengths) + 1], [1] * (sum(lengths) + 1)):
            outputs, states = [], first
            for piece in inputs.split(cuts, 1):
                output, *states = layer(piece, *states)
                outputs.append(output)
            pairs = zip((torch.cat(outputs, 1), *states), expected, strict=True)
            found += [error(ours, wanted) for ours, wanted in pairs]
    return max(found)


def randomised(make: Callable[[], Module], seed: int) -> Module:
    """A module all of whose parameters matter: vectors get normal numbers added, matrices are drawn anew."""
    with torch.random.fork_rng():  # a module draws its first values from the global generator
        torch.manual_seed(seed)
        module = make()
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = normal(draw, *parameter.shape).to(parameter.dtype)
            parameter.copy_(parameter + 0.5 * drawn if parameter.dim() == 1 else drawn * parameter.shape[-1] ** -0.5)
    return module
