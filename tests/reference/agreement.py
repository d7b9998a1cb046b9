"""What the tests of the reference hybrid share: how far two answers are apart, weights drawn from a seed, its forms."""

from collections.abc import Callable
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
