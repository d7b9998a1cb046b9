"""What every recurrence of this package takes and gives, whatever form of it runs.

A *form* is one implementation of the four recurrences: `reference` (as the papers write them, the oracle), `chunked`
(pure torch, matrix products), `cpu` (compiled C++) and `triton` (GPU kernels). Each is a module with the four functions
of :class:`Form`; :mod:`statecheck_kernels.operations` checks what the caller gave, chooses the form, and calls it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NEAR = 0.99  # a unit is near the largest when it has at least this share of its magnitude


@dataclass(frozen=True)
class Observe:
    """Which statistics of the state are wanted, fused into the recurrence.

    `every`: after each so many steps, counted from the start of the call, along the row where sequences are packed (1:
    every step). `entropy`: that too, it costs a logarithm a unit. `running`: :attr:`StateStatistics.running` of the
    call before, (rows, H), None at the start.
    """

    every: int = 1
    entropy: bool = False
    running: Tensor | None = None


@dataclass(frozen=True)
class StateStatistics:
    """Of the state after each observed step: (B, T // every, H) each; one "head" for a recurrence that has none.

    n is the number of units of a head, h one of them.

    square_sum    sum of h^2, float64
    largest       largest |h|, float64; NaN if any h is NaN
    mean          mean of h, float64
    near_largest  units with finite |h| >= 0.99 M, int64; M is the largest finite magnitude that this row's head has
                  held at any observed step so far (this one counted); 0 while M is 0
    nonfinite     units that are NaN or infinite, int64
    entropy       of the energy, -sum p log p / log n with p = h^2 / sum h^2, float64: 0 for one unit that has all (and
                  for a zero state, and n = 1), 1 for energy spread evenly; depends on the coordinates; NaN for a state
                  that is not finite; None if not asked for
    running       M at the end of the call, (rows, H), float64: what the next call's `Observe.running` wants

    Packed sequences: (1, T, H), and a row of `running` a sequence. Nothing here carries a gradient.
    """

    square_sum: Tensor
    largest: Tensor
    mean: Tensor
    near_largest: Tensor
    nonfinite: Tensor
    entropy: Tensor | None
    running: Tensor

    def items(self) -> Mapping[str, Tensor]:
        """Name -> tensor of what was asked for."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


class Scan(NamedTuple):
    """What a recurrence gives: outputs, the state after the last step, the statistics if asked, the form that ran."""

    outputs: Tensor
    state: Tensor
    statistics: StateStatistics | None
    form: str


Results = tuple[Tensor, Tensor, StateStatistics | None]


class Form(Protocol):
    """The four recurrences of one form. All shapes are checked and defaults filled in; see :mod:`operations`.

    `cu_seqlens` is None, or int64 (S + 1) from 0 to T on the device of the inputs, whose batch is then 1: sequence s is
    steps cu_seqlens[s] to cu_seqlens[s + 1] and starts from row s of `state`. Inputs may have any strides and be
    float64, float32, bfloat16 or float16; `state` is float32 or wider, all arithmetic too. Outputs have the dtype of
    the first input or that of `state`, the final state that of `state`.
    """

    def wkv6(
        self,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        log_w: Tensor,
        u: Tensor,
        state: Tensor,
        cu_seqlens: Tensor | None,
        observe: Observe | None,
    ) -> Results:
        """r, k, log_w (B, T, H, K), v (B, T, H, V), u (H, K), state (rows, H, K, V) to outputs (B, T, H, V)."""

    def selective_scan(
        self,
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
        """x, dt (B, T, D), A (D, N), B, C (B, T, N), D (D), state (rows, D, N) to outputs (B, T, D)."""

    def ssd(
        self,
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
        """x (B, T, H, P), dt (B, T, H), A (H), B, C (B, T, G, N), D (H), state (rows, H, P, N) to (B, T, H, P)."""

    def causal_conv1d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        silu: bool,
        state: Tensor,
        cu_seqlens: Tensor | None,
        observe: Observe | None,
    ) -> Results:
        """x (B, T, D), weight (D, W), bias (D), state (rows, D, W - 1), oldest first, to outputs (B, T, D)."""


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether a gradient can be asked for, so that what the backward pass needs must be kept.

    >>> differentiable(torch.ones(1), None), differentiable(torch.ones(1, requires_grad=True))
    (False, True)
    """
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on inputs of `dtype` is done in: float64 stays, all else is float32.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
