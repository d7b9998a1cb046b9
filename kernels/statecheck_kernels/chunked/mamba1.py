"""Mamba's selective scan step by step, with a backward pass that holds the states of one chunk at a time.

Formulas and paper: :mod:`statecheck_kernels.reference`. Decays are computed where they are used, so nothing of shape
(B, T, D, N) exists: torch's own backward pass would keep several such. Instead the state before each chunk is kept,
and the backward pass goes through the chunks from the last, computing the states of each again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.chunked.pieces import take
from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.layout import Layout
from statecheck_kernels.statistics import Observer

CHUNK = 32  # steps whose states are in memory at once


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
    """Shapes in :class:`statecheck_kernels.contract.Form`."""
    layout = Layout.of(x, cu_seqlens)
    observer = None if observe is None else Observer(layout, observe, 1, x.device)
    wide = x.to(state.dtype)
    along = [layout.lay(y) for y in (wide, *(y.to(state.dtype) for y in (dt, B, C)))]
    outputs, state = _Scan.apply(*along, A.to(state.dtype), state, layout.real(), observer)
    outputs = layout.pack(outputs)
    if D is not None:
        outputs = outputs + D.to(state.dtype) * wide
    return outputs.to(x.dtype), state, None if observer is None else observer.statistics()


class _Scan(torch.autograd.Function):
    """x, dt (rows, T, D), B, C (rows, T, N), A (D, N), state (rows, D, N) to outputs (rows, T, D) and the last state.

    `real` (rows, T) or None says where there is a step: elsewhere x, dt, B and C are 0 and the state stays.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        A: Tensor,
        state: Tensor,
        real: Tensor | None,
        observer: Observer | None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state; the states before chunks are kept for the backward pass."""
        outputs, before = [x[:, :0]], []
        for piece in _pieces(x, dt, B, C, real):
            before.append(state)
            states, _ = _states(piece, A, state)
            outputs.append((torch.stack(states, 1) @ piece[3].unsqueeze(-1)).squeeze(-1))
            state = states[-1]
            take(observer, [h.unsqueeze(1) for h in states])
        ctx.save_for_backward(x, dt, B, C, A, real, *before)
        return torch.cat(outputs, 1), state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first six inputs."""
        x, dt, B, C, A, real, *before = ctx.saved_tensors
        d_A = torch.zeros_like(A)
        d_along = [[y[:, :0]] for y in (x, dt, B, C)]  # of the chunks, the last one first
        pieces = zip(_pieces(x, dt, B, C, real), before, _pieces(d_outputs), strict=True)
        for piece, start, (d_y,) in reversed(list(pieces)):
            d_piece, d_rate, d_state = _back(piece, A, start, d_y, d_state)
            d_A += d_rate
            for parts, d in zip(d_along, d_piece, strict=True):
                parts.append(d)
        return *(torch.cat(parts[::-1], 1) for parts in d_along), d_A, d_state, None, None


def _pieces(*along: Tensor | None) -> Iterator[list[Tensor]]:
    """The tensors (rows, T, ...) cut into chunks along time; None is left out. No chunk at all for no step."""
    there = [x for x in along if x is not None]
    for start in range(0, there[0].shape[1], CHUNK):
        yield [x[:, start : start + CHUNK] for x in there]


def _states(piece: Sequence[Tensor], A: Tensor, state: Tensor) -> tuple[list[Tensor], Tensor]:
    """The state after each step of a chunk, (rows, D, N) each, and the decays (rows, t, D, N)."""
    x, dt, B, _, *real = piece
    decay = (dt.unsqueeze(-1) * A).exp()
    if real:  # 0 * A is no 0 where A is minus infinity
        decay = decay.masked_fill(~real[0][..., None, None], 1)
    written = (dt * x).unsqueeze(-1) * B.unsqueeze(-2)  # (rows, t, D, N)
    states = []
    for kept, new in zip(decay.unbind(1), written.unbind(1), strict=True):
        state = torch.addcmul(new, kept, state)
        states.append(state)
    return states, decay


def _back(
    piece: Sequence[Tensor], A: Tensor, before: Tensor, d_y: Tensor, d_state: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of a chunk's x, dt, B and C, its part of A's, and that of the state before it.

    `before` is that state, `d_y` (rows, t, D) and `d_state` (rows, D, N) are gradients of what came out of the chunk.
    """
    x, dt, B, C = piece[:4]
    states, decay = _states(piece, A, before)
    read = d_y.unsqueeze(-1) * C.unsqueeze(-2)  # (rows, t, D, N): what reaches h_t through y_t
    d_states = []
    for kept, new in zip(reversed(decay.unbind(1)), reversed(read.unbind(1)), strict=True):
        d_states.append(d_state + new)
        d_state = kept * d_states[-1]
    d_h = torch.stack(d_states[::-1], 1)  # (rows, t, D, N)
    d_log = torch.stack([before, *states[:-1]], 1) * decay * d_h  # of the log-decays dt_t A
    d_product = (d_h @ B.unsqueeze(-1)).squeeze(-1)  # (rows, t, D), of dt_t x_t
    d_x, d_dt = d_product * dt, d_product * x + (d_log * A).sum(-1)
    d_B = ((dt * x).unsqueeze(-2) @ d_h).squeeze(-2)
    d_C = (d_y.unsqueeze(-2) @ torch.stack(states, 1)).squeeze(-2)
    return [d_x, d_dt, d_B, d_C], (d_log * dt.unsqueeze(-1)).sum((0, 1)), d_state
