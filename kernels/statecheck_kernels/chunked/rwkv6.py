"""RWKV-6 in chunks of 32 steps. Formulas and paper: :mod:`statecheck_kernels.reference`."""

import torch
from torch import Tensor
from torch.nn import functional

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

CHUNK = 32  # steps whose answers are matrix products; a power of two


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """Shapes in :class:`statecheck_kernels.contract.Form`.

    No exponential here is of a positive number and no difference of two sums is taken: however small a decay is, a
    product of decays is computed as the exponential of the sum of just its own logarithms. So a log-decay of -100
    gives what the recurrence gives, 0, where dividing by a running product would overflow.
    """
    layout = Layout.of(r, cu_seqlens)
    observer = None if observe is None else Observer(layout, observe, r.shape[2], r.device)
    receptance, key, value, log_decay = (layout.lay(x.to(state.dtype)) for x in (r, k, v, log_w))
    bonus = u.to(state.dtype)
    chunks = layout.longest > 1 and well_behaved(log_decay, (receptance, key, value, bonus, state))
    run = _by_chunk if chunks else _by_step
    outputs, state = run(receptance, key, value, log_decay, bonus, state, observer)
    return layout.pack(outputs).to(r.dtype), state, None if observer is None else observer.statistics()


def _by_step(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, observer: Observer | None
) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for what chunks can't do: outputs (rows, T, H, V) and the last state."""
    outputs = [v[:, :0]]
    for now in zip(*(x.split(CHUNK, 1) for x in (r, k, v, log_w)), strict=True):
        written = now[1].unsqueeze(-1) * now[2].unsqueeze(-2)  # (rows, t, H, K, V)
        states = [state, *states_within(now[3], written, state)]
        before = torch.stack(states, 1)[:, :-1]  # (rows, t, H, K, V)
        outputs.append((now[0].unsqueeze(-2) @ (before + u.unsqueeze(-1) * written)).squeeze(-2))
        state = states[-1]
        take(observer, states[1:])
    return torch.cat(outputs, 1), state


def _by_chunk(
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    state: Tensor,
    observer: Observer | None,
) -> tuple[Tensor, Tensor]:
    """The same as matrix products; T >= 1."""
    steps = value.shape[1]
    size = size_of_chunk(steps, CHUNK)
    r, k, v, log_w = (in_chunks(x, size) for x in (receptance, key, value, log_decay))  # (B, H, n, C, K or V)
    scores, since_start, until_end, whole = _within_chunk(r, k, log_w)  # (..., C, C), (..., C, K) twice, (..., K)
    diagonal = (r * bonus[:, None, None, :] * k).sum(-1, keepdim=True)  # (B, H, n, C, 1): the current step's own
    writes = (k * until_end.exp()).transpose(-1, -2) @ v  # (B, H, n, K, V)
    before, state = states_between(whole.exp().unsqueeze(-1), writes, state)
    answers = (r * since_start.exp()) @ before + scores @ v + diagonal * v  # (B, H, n, C, V)
    if observer is not None:
        _observe(key, value, log_decay, before, size, observer)
    return in_order(answers, steps), state


@torch.no_grad()
def _observe(k: Tensor, v: Tensor, log_w: Tensor, before: Tensor, size: int, observer: Observer) -> None:
    """Show the states of one chunk after the other, step by step from the state before it."""
    pieces = (x.split(size, 1) for x in (k, v, log_w))
    for now, state in zip(zip(*pieces, strict=True), before.unbind(2), strict=True):
        written = now[0].unsqueeze(-1) * now[1].unsqueeze(-2)  # (rows, t, H, K, V)
        take(observer, list(states_within(now[2], written, state)))


def _within_chunk(receptance: Tensor, key: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What steps of a chunk ask of the ones before them, and the sums of log decays to and from the chunk's ends.

    Inputs are (..., C, K). Returns scores (..., C, C), where [i, j] = sum over channels of r_i k_j w_j+1 ... w_i-1 for
    j < i and 0 elsewhere; the log decay from the chunk's start to each step, itself not counted, (..., C, K); from
    after each step to the chunk's end, (..., C, K); and of the whole chunk (..., K).

    Blocks of 1, 2, 4 ... steps are joined in pairs. A step of the second block asks one of the first across the
    border between them, and the product of decays falls apart there: exp(sum up to the border) on the key's side,
    exp(sum from the border on) on the receptance's, both at most 1.
    """
    pairs = (*log_decay.shape[:-2], log_decay.shape[-2], 1)
    since_start = until_end = log_decay.new_zeros(*pairs, log_decay.shape[-1])  # (..., blocks, steps, K)
    whole = log_decay  # (..., blocks, K)
    scores = log_decay.new_zeros(*pairs, 1)  # (..., blocks, steps, steps)
    while whole.shape[-2] > 1:
        size = scores.shape[-1]
        asking = _second(receptance.unflatten(-2, (-1, size))) * _second(since_start).exp()
        asked = _first(key.unflatten(-2, (-1, size))) * _first(until_end).exp()
        upper, lower = _first(scores), _second(scores)
        scores = torch.cat(
            [functional.pad(upper, (0, size)), torch.cat([asking @ asked.transpose(-1, -2), lower], -1)], -2
        )
        first, second = whole[..., 0::2, :], whole[..., 1::2, :]
        since_start = torch.cat([_first(since_start), _second(since_start) + first.unsqueeze(-2)], -2)
        until_end = torch.cat([_first(until_end) + second.unsqueeze(-2), _second(until_end)], -2)
        whole = first + second
    return scores.squeeze(-3), since_start.squeeze(-3), until_end.squeeze(-3), whole.squeeze(-2)


def _first(blocks: Tensor) -> Tensor:
    """The first block of every pair: (..., blocks, steps, D) -> (..., blocks / 2, steps, D)."""
    return blocks[..., 0::2, :, :]


def _second(blocks: Tensor) -> Tensor:
    return blocks[..., 1::2, :, :]
