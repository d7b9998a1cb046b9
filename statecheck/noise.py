"""The noise floor of a model: how far rounding alone moves its outputs. Tolerances are measured, not chosen.

Two ways, the larger counts, neither of which a fault of the state can raise, since both compare one whole call from no
history with another of the same shape:

    float64    the outputs against those of a copy in float64: what the model's own precision costs
    ulp        the outputs against those after every parameter was moved by about a unit in its last place, up or down
               at random: what the rounding of the parameters alone is worth

The floor is never under the spacing of numbers in the outputs' dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from statecheck.deviation import deviation
from statecheck.histories.playing import plain
from statecheck.protocol import StatefulModel


@dataclass(frozen=True)
class Floor:
    """`value` is relative, as :mod:`statecheck.deviation` has it; `ways` tells what each way found."""

    value: float
    ways: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.value:.2g} relative ({', '.join(f'{name} {value:.2g}' for name, value in self.ways)})"


#: Of the outputs' dtype, where the model can't be copied or shows no parameters to move: a few dependent operations.
ASSUMED = 16.0


@torch.no_grad()
def noise_floor(model: StatefulModel, inputs: Tensor, *, seed: int = 0, times: int = 3) -> Floor:
    """The floor of `model` on `inputs` (batch, time) or (batch, time, features), read in one call from no history.

    >>> import statecheck as sc
    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> found = noise_floor(sc.wrap(nn.GRU(4, 8, batch_first=True)), torch.randn(2, 16, 4))
    >>> 1e-8 < found.value < 1e-6
    True
    """
    outputs = plain(model, inputs)
    spacing = torch.finfo(outputs.dtype).eps
    ways = {"spacing": spacing}
    twin = copied(model)
    if twin is None or next(twin.module.parameters(), None) is None:  # type: ignore[attr-defined]
        ways["assumed"] = ASSUMED * spacing
        return Floor(max(ways.values()), tuple(ways.items()))
    with default_dtype(torch.float64), suppress(Exception):  # a kernel may know one dtype alone
        truth = float64_twin(model)
        assert truth is not None
        ways["float64"] = deviation(outputs, plain(truth, widened(inputs))).error
    generator = torch.Generator().manual_seed(seed)
    ways["ulp"] = max(deviation(plain(nudged(model, generator), inputs), outputs).error for _ in range(times))
    finite = {name: value for name, value in ways.items() if value < float("inf")}
    return Floor(max(finite.values()), tuple(finite.items()))


def copied(model: StatefulModel) -> StatefulModel | None:
    """A copy that shares nothing with `model`, its module in `module`; None where there is none to be had."""
    rebuild = getattr(model, "rebuild", None)
    with suppress(Exception):
        twin = copy.deepcopy(rebuild() if callable(rebuild) else model)
        if isinstance(getattr(twin, "module", None), nn.Module):
            return twin
    return None


def float64_twin(model: StatefulModel) -> StatefulModel | None:
    """A copy in float64, to be called inside `default_dtype(torch.float64)`; None where no copy can be made."""
    twin = copied(model)
    if twin is not None:
        twin.module.double()  # type: ignore[attr-defined]
    return twin


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A model that makes its first states in torch's default dtype makes them in this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widened(inputs: Tensor) -> Tensor:
    """Vectors in float64, ids as they are."""
    return inputs.double() if inputs.is_floating_point() else inputs


@torch.no_grad()
def nudged(model: StatefulModel, generator: torch.Generator) -> StatefulModel:
    """A copy whose every parameter was moved by about a unit in its last place, up or down at random."""
    twin = copied(model)
    assert twin is not None
    for parameter in twin.module.parameters():  # type: ignore[attr-defined]
        if parameter.is_floating_point():
            sides = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter) * 2 - 1
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps * sides)
    return twin
