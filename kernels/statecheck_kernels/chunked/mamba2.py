"""Mamba-2's recurrence in chunks of 64 steps, section 6 of its paper. Formulas: :mod:`statecheck_kernels.reference`."""

import torch
from torch import Tensor

from statecheck_kernels.chunked.pieces import (
    in_chunks,
    in_order,
    size_of_chunk,
    states_between,
    states_within,
    take,
    well_behaved,
)
from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.layout import Layout
from statecheck_kernels.statistics import Observer

CHUNK = 64  # steps whose answers are matrix products


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
    """Shapes in :class:`statecheck_kernels.contract.Form`.

    Every product of decays is the exponential of the sum of just its own logarithms (a difference of running sums
    would lose its digits after a decay of exp(-100)).
    """
    layout = Layout.of(x, cu_seqlens)
    observer = None if observe is None else Observer(layout, observe, x.shape[2], x.device)
    wide, step = x.to(state.dtype), dt.to(state.dtype)
    log_decay = step * A.to(state.dtype)  # (B, T, H), before it is laid out: past an end it is 0, whatever A is
    along = [wide * step.unsqueeze(-1), B.to(state.dtype), C.to(state.dtype)]
    written, write, read = (layout.lay(y) for y in along)
    log_decay = layout.lay(log_decay)
    chunks = layout.longest > 1 and well_behaved(log_decay, (written, write, read, state))
    run = _by_chunk if chunks else _by_step
    outputs, state = run(written, log_decay, write, read, state, observer)
    outputs = layout.pack(outputs)
    if D is not None:
        outputs = outputs + D.to(state.dtype).unsqueeze(-1) * wide
    return outputs.to(x.dtype), state, None if observer is None else observer.statistics()


def _by_step(
    x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor, observer: Observer | None
) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for what chunks can't do: outputs (rows, T, H, P) and the last state.

    `x` is dt_t x_t (rows, T, H, P), `log_decay` (rows, T, H), `write` and `read` (rows, T, G, N).
    """
    outputs = [x[:, :0]]
    for now in zip(*(y.split(CHUNK, 1) for y in (x, log_decay, write, read)), strict=True):
        states = list(states_within(now[1].unsqueeze(-1), _written(now[0], now[2]), state))
        if states:
            read_now = _to_heads(now[3], x.shape[2], 2)  # (rows, t, H, N)
            outputs.append((torch.stack(states, 1) @ read_now.unsqueeze(-1)).squeeze(-1))
            state = states[-1]
            take(observer, states)
    return torch.cat(outputs, 1), state


def _by_chunk(
    written: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor, observer: Observer | None
) -> tuple[Tensor, Tensor]:
    """The same as matrix products; T >= 1."""
    steps, heads = written.shape[1:3]
    size = size_of_chunk(steps, CHUNK)
    x, b, c = (in_chunks(y, size) for y in (written, write, read))  # (B, H, n, C, P), (B, G, n, C, N) twice
    log_a = in_chunks(log_decay.unsqueeze(-1), size).squeeze(-1)  # (B, H, n, C)
    between = _segment_sums(log_a)  # (B, H, n, C, C): from after step j up to step i
    products = (c @ b.transpose(-1, -2)).tril()  # (B, G, n, C, C); above the diagonal an overflow must not stay
    scores = _to_heads(products, heads, 1) * between.exp()  # (B, H, n, C, C)
    b, c = (_to_heads(y, heads, 1) for y in (b, c))  # (B, H, n, C, N)
    until_end = between[..., -1, :].exp().unsqueeze(-1)  # (B, H, n, C, 1)
    since_start = log_a.cumsum(-1).exp().unsqueeze(-1)  # (B, H, n, C, 1)
    writes = (x * until_end).transpose(-1, -2) @ b  # (B, H, n, P, N)
    before, state = states_between(since_start[..., -1:, :], writes, state)
    answers = scores @ x + since_start * (c @ before.transpose(-1, -2))  # (B, H, n, C, P)
    if observer is not None:
        _observe(written, log_decay, write, before, size, observer)
    return in_order(answers, steps), state


@torch.no_grad()
def _observe(x: Tensor, log_decay: Tensor, write: Tensor, before: Tensor, size: int, observer: Observer) -> None:
    """Show the states of one chunk after the other, step by step from the state before it."""
    pieces = (y.split(size, 1) for y in (x, log_decay.unsqueeze(-1), write))
    for now, state in zip(zip(*pieces, strict=True), before.unbind(2), strict=True):
        take(observer, list(states_within(now[1], _written(now[0], now[2]), state)))


def _written(x: Tensor, write: Tensor) -> Tensor:
    """dt_t x_t B_t^T of each step: (rows, t, H, P, N)."""
    return x.unsqueeze(-1) * _to_heads(write, x.shape[2], 2).unsqueeze(-2)


def _segment_sums(x: Tensor) -> Tensor:
    """(..., C) to (..., C, C): [i, j] = x_j+1 + ... + x_i for j <= i, minus infinity above the diagonal.

    >>> _segment_sums(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[0.0, -inf, -inf], [2.0, 0.0, -inf], [5.0, 3.0, 0.0]]
    """
    lower = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()
    columns = x.unsqueeze(-1).expand(*x.shape, x.shape[-1])  # [i, j] = x_i
    sums = columns.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf)


def _to_heads(x: Tensor, heads: int, axis: int) -> Tensor:
    """Groups along `axis` repeated for their heads, neighbours first."""
    return x if x.shape[axis] == heads else x.repeat_interleave(heads // x.shape[axis], axis)
