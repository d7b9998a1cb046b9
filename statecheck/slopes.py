"""Gradients of a model's parameters: as the model brings them, in float64, and as slopes of the loss.

The loss is the sum of the outputs times fixed random weights, so that every output counts. A gradient is compared
parameter by parameter: its distance from the expected one, over the larger of their norms; a parameter whose gradient
is under a thousandth of the largest is measured against that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from statecheck.errors import ModelRaised
from statecheck.states import wide

Gradients = dict[str, Tensor]
Call = Callable[[], Tensor]
SMALL = 1e-3  # of the largest norm: below it rounding is all that a gradient may be
STEPS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of a central difference, in norms of the parameter
AGREED = 0.01  # by how much the differences over two steps may differ, in gradients


def weighted(outputs: Tensor, *, seed: int = 0) -> Tensor:
    """The sum of outputs times normal weights, over the root of their number."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs.device)
    return (outputs.to(torch.float64) * weights).sum() / outputs.numel() ** 0.5


def gradients(module: nn.Module, call: Call) -> Gradients:
    """Gradients of the weighted outputs of `call` by every parameter that takes part; others are left out.

    Raises :class:`ModelRaised` where the backward pass raises, or nothing requires a gradient.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> found = gradients(layer, lambda: layer(torch.tensor([[[1.0, 2.0]]])))
    >>> (found["weight"][0, 1] / found["weight"][0, 0]).item()
    2.0
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        loss = weighted(call())
        if not loss.requires_grad:
            raise ModelRaised("outputs do not depend on any parameter that takes gradients (detached?)")
        try:
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise ModelRaised(f"the backward pass raised {type(error).__name__}: {first}") from error
    return {name: slope for name, slope in zip(named, found, strict=True) if slope is not None}


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """How far gradients are from the expected ones, and for which parameter; infinite for NaN and what is missing.

    >>> apart({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, 0.0])})
    (0.7071..., 'w')
    """
    largest = max((wide(value).norm().item() for value in expected.values()), default=0.0)
    errors = {name: _error(found.get(name), expected.get(name), SMALL * largest) for name in {**expected, **found}}
    worst = max(errors, key=lambda name: errors[name], default="")
    return errors.get(worst, 0.0), worst


def _error(found: Tensor | None, expected: Tensor | None, least: float) -> float:
    if found is None or expected is None:
        there = found if expected is None else expected
        assert there is not None
        return 0.0 if wide(there).norm().item() <= least else float("inf")
    a, b = wide(found), wide(expected)
    if not bool(torch.isfinite(a).all()):
        return float("inf") if bool(torch.isfinite(b).all()) else 0.0
    scale = max(a.norm().item(), b.norm().item(), least)
    return (a - b).norm().item() / scale if scale else 0.0


@torch.no_grad()
def slope_error(
    parameter: Tensor, gradient: Tensor, call: Call, least: float, *, seed: int, still: int | None = None
) -> float | None:
    """|central difference - gradient| along a random direction, relative to a gradient's part along one.

    A long step bends, a short one is lost in the rounding of a model that computes parts of itself in float32 whatever
    its dtype is: of two neighbouring steps whose differences agree best the nearer one counts, and None comes back
    where no two agree. Gradients below `least` are measured against that.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    if still is not None:
        direction[still] = 0.0
    direction /= direction.norm()
    scale = max(gradient.norm().item() / gradient.numel() ** 0.5, least)
    if not scale:
        return 0.0
    expected = (gradient * direction).sum().item() / scale
    found = [_difference(parameter, direction, step, call) / scale for step in STEPS]
    spread, one, other = min((abs(a - b), a, b) for a, b in pairwise(found))
    return min(abs(one - expected), abs(other - expected)) if spread < AGREED else None


def _difference(parameter: Tensor, direction: Tensor, relative: float, call: Call) -> float:
    """The loss's central difference over a step of so many norms of the parameter."""
    step, kept, losses = relative * max(parameter.norm().item(), 1e-2), parameter.clone(), []
    for sign in (1, -1):
        parameter.copy_(kept + sign * step * direction)
        losses.append(weighted(call()).item())
    parameter.copy_(kept)
    return (losses[0] - losses[1]) / (2 * step)
