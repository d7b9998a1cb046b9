"""Gradients of the loss by states that were given to a model, and whether they are the slopes of the loss.

A gradient that is cut somewhere (a detached branch, `.data`, a block without gradients, a custom backward) is finite
and plausible. Central differences of the loss along random directions tell it from the true one, whatever the cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statecheck import states as functions
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing
from statecheck.experiments import losses
from statecheck.protocol import Capability, ModelFacts, StatefulModel, StateKind, States
from statecheck.wording import one_line

ROWS = 8  # documents of one differentiated call: bounds the memory for its graph
STEPS = (0.2, 0.05, 0.0125, 0.003125)  # of a central difference, in units of the states' spread over documents
AGREED = 0.25  # of the slope: by how much what is left over may differ between two steps that agree
CLEAR = 300.0  # times the rounding of the losses: a difference that large is one of the states
UNCOUNTED = (StateKind.POSITION, StateKind.MASK, StateKind.FLAG)


def reached_states(facts: ModelFacts, component: str) -> list[str]:
    """The states of a component that a gradient can reach: real or complex numbers; no positions, masks and flags."""
    names = facts.names(component=component, recurrent=False)
    kept = [name for name in names if facts.states[name].kind not in UNCOUNTED]
    return [name for name in kept if facts.states[name].dtype.startswith(("float", "bfloat", "complex"))]


def require_gradients(facts: ModelFacts) -> None:
    """Raise :class:`CapabilityMissing` if states can't be given to the model, or get no gradients in any call."""
    facts.require(Capability.SET_STATES)
    if Capability.GRADIENT_STEP not in facts.capabilities:
        facts.require(Capability.GRADIENT_SEQUENCE)


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients on; cuDNN off, whose recurrent networks have no backward in evaluation mode."""
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        yield


def gradients_of(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of `total` by `leaves`, zeros where it does not depend on one.

    Raises :class:`CapabilityMissing` where the model can't be differentiated.
    """
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    try:
        found = torch.autograd.grad(total, list(leaves), allow_unused=True)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        raise CapabilityMissing(f"no gradients through the model: {one_line(error)}") from error
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a times b, unit by unit, in float64; of complex numbers that of their pairs, as torch's gradients are pairs.

    >>> product(torch.tensor([2 + 3j]), torch.tensor([5 + 7j]))
    tensor([31.], dtype=torch.float64)
    """
    both = functions.wide(a) * functions.wide(b).conj()
    return both.real if both.is_complex() else both


def totals(value: Tensor) -> Array:
    """Sum over units of each row, (n,)."""
    return value.reshape(len(value), -1).sum(dim=1).numpy(force=True)


@dataclass(frozen=True)
class Boundary:
    """n documents at one place: the states that they hold there, (n, ...) each, and `windows` (n, time + 1), the
    elements from there on. Losses are divided by `scale`. Raises :class:`CapabilityMissing` for a state without rows.
    """

    model: StatefulModel
    held: States
    windows: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, value in self.held.items():
            if value.shape[:1] != (self.n,):
                found = f"state {name!r} has shape {tuple(value.shape)} for a batch of {self.n}"
                raise CapabilityMissing(f"{found}: nothing can be told of single documents; see S0")

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.windows)

    def losses(self, held: States, rows: slice) -> Tensor:
        """Mean loss of the elements after the first of each window in `rows`, read on from `held`, (rows,)."""
        windows = self.windows[rows]
        self.model.set_states(functions.clone(held))  # clones: gradients reach `held` through work in place, too
        outputs = _outputs(self.model, windows[:, :-1]).double()  # differences need the digits, see :func:`losses`
        return losses(outputs, windows[:, 1:], self.model.facts.loss).mean(dim=1) / self.scale

    def gradients(self, names: Sequence[str]) -> States:
        """dL/dh of each document: rows do not meet (S2), so the gradient of the sum of their losses holds them all."""
        return functions.concatenate([self._gradients(names, slice(i, i + ROWS)) for i in range(0, self.n, ROWS)])

    def _gradients(self, names: Sequence[str], rows: slice) -> States:
        held = {name: value[rows].detach() for name, value in self.held.items()}
        with differentiable():
            leaves = {name: held[name].clone().requires_grad_() for name in names}
            total = self.losses({**held, **leaves}, rows).sum()
            found = gradients_of(total, list(leaves.values()))
        return dict(zip(names, found, strict=True))

    def deviation(self, name: str) -> Tensor:
        """h - h_mean of each document, (n, ...) in float64 or complex128; the mean is that over the documents."""
        value = functions.wide(self.held[name])
        return value - value.mean(dim=0)


def _outputs(model: StatefulModel, inputs: Tensor) -> Tensor:
    """Outputs in one call if gradients pass through it, else in calls of one element."""
    if Capability.GRADIENT_SEQUENCE in model.facts.capabilities:
        return model(inputs)
    outputs = []
    for t in range(inputs.shape[1]):
        outputs.append(model(inputs[:, t : t + 1]))
        if t == 0 and torch.is_grad_enabled():
            _require_carried(model)
    return torch.cat(outputs, dim=1)


def _require_carried(model: StatefulModel) -> None:
    """Raise :class:`CapabilityMissing` if the gradient ends with a call: a later loss would not be seen."""
    if not any(value.requires_grad for value in model.get_states().values()):
        why = model.facts.missing.get(Capability.GRADIENT_SEQUENCE, "not declared")
        raise CapabilityMissing(
            f"gradients end with a call of one element, and a longer call has none from the states given ({why})"
        )


# Against differences ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlopeCheck:
    """Gradients against central differences: |difference - <g, v>| over the larger of the two, norms over documents.

    0: the gradient is the slope; 1: it has nothing of it. It lies in [low, high] with what the difference is not known
    to. `step` is the one that was taken, `slope` the RMS of the difference over documents.
    """

    error: float
    low: float
    high: float
    step: float
    slope: float


@torch.no_grad()
def check_slopes(at: Boundary, gradients: States, documents: int, generator: np.random.Generator) -> SlopeCheck | None:
    """Hold `gradients` (n, ...) of the losses at a boundary against central differences, for the first `documents`.

    None where the loss moves neither by the gradient nor by the difference. Where it moves by no more than rounding
    does, as behind a gate of 1e-27, nothing is known of the error. Each document's direction is a random
    combination of all documents' deviations from their mean: of the size and shape of the states, in any coordinates.
    """
    rows = slice(0, documents)
    held = {name: value[rows].detach() for name, value in at.held.items()}
    mix = torch.from_numpy(generator.standard_normal((min(documents, at.n), at.n)) / math.sqrt(at.n))
    directions = {name: _mixed(mix, at.deviation(name)).to(held[name]) for name in gradients}
    rounding = torch.finfo(getattr(torch, at.model.facts.dtype)).eps * float(at.losses(held, rows).norm())
    return _agreed([_tried(at, rows, held, directions, gradients, step) for step in STEPS], rounding)


def _mixed(mix: Tensor, value: Tensor) -> Tensor:
    """Combinations (rows, ...) of the rows of `value` (n, ...)."""
    return torch.tensordot(mix.to(value), value, dims=1)


def _tried(
    at: Boundary, rows: slice, held: States, directions: States, gradients: States, step: float
) -> tuple[Array, Array]:
    """Central difference of each document's loss, and what the gradient makes of it, (rows,) each.

    The gradient is asked about the very difference of the states that were given, so that rounding those is no error.
    """
    up, down = ({name: held[name] + sign * step * v for name, v in directions.items()} for sign in (1, -1))
    rise = at.losses({**held, **up}, rows) - at.losses({**held, **down}, rows)
    predicted = np.zeros(len(rise))
    for name, slope in gradients.items():
        predicted += totals(product(functions.wide(up[name]) - functions.wide(down[name]), slope[rows]))
    return rise.numpy(force=True) / (2 * step), predicted / (2 * step)


def _agreed(tried: Sequence[tuple[Array, Array]], rounding: float) -> SlopeCheck | None:
    """The check from (difference, prediction) at each of STEPS; `rounding` is what losses are known to.

    What is left over must not depend on the step. Of neighbouring steps the two that agree best are kept: at larger
    ones curvature shows, at smaller ones rounding. By what they differ, the difference is not known. The lower bound is
    what smaller steps say as well, where rounding lets them speak: beyond a bend of the loss a wide difference is near
    0 at any step, as if the gradient were wrong.
    """
    if not any(rise.any() or predicted.any() for rise, predicted in tried):
        return None
    left = [rise - predicted for rise, predicted in tried]
    unknown = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(left)]
    sizes = [max(float(np.linalg.norm(rise)), float(np.linalg.norm(predicted))) for rise, predicted in tried[1:]]
    usable = [i for i, size in enumerate(sizes) if math.isfinite(unknown[i]) and math.isfinite(size) and size > 0]
    if not any(2 * STEPS[i + 1] * sizes[i] > rounding for i in usable):
        return SlopeCheck(1.0, 0.0, math.inf, STEPS[-1], math.nan)
    best = min(usable, key=lambda i: unknown[i] / sizes[i])
    error, spread = _error(left, unknown, sizes, best)
    slope = float(np.sqrt(np.square(tried[best + 1][0]).mean()))
    speak = [i for i in usable if i == best or (i > best and 2 * STEPS[i + 1] * sizes[i] > CLEAR * rounding)]
    low = min(_at_least(*_error(left, unknown, sizes, i)) for i in speak)
    return SlopeCheck(error, low, error + spread, STEPS[best + 1], slope)


def _error(left: Sequence[Array], unknown: Sequence[float], sizes: Sequence[float], i: int) -> tuple[float, float]:
    """What is left over at a step, and by how much it differs from that at the step before, as shares of the slope."""
    return float(np.linalg.norm(left[i + 1])) / sizes[i], unknown[i] / sizes[i]


def _at_least(error: float, spread: float) -> float:
    """A lower bound of the error; 0 where the two steps do not agree."""
    return max(0.0, error - spread) if spread < AGREED else 0.0
