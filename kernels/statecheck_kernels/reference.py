"""The recurrences as the papers write them, step by step: the oracle that every other form is held against.

Slow, in float32 or float64 as the state is, with gradients by torch. Packed sequences are a loop over sequences.

RWKV-6 ("Finch"): Peng et al. 2024, arXiv 2404.05892, section 4. One head; K keys, V values
    S_t = diag(w_t) S_t-1 + k_t^T v_t              state (K, V); w_t = exp(log_w_t)
    y_t = r_t (S_t-1 + diag(u) k_t^T v_t)          r receptance, k key, v value, u bonus of the current token

Mamba, selective scan (S6): Gu & Dao 2023, arXiv 2312.00752, section 3 and algorithm 2. One channel d of D; N numbers
    h_t = exp(dt_t A_d) h_t-1 + dt_t B_t x_t       state (N); dt step, A (N) below 0, B_t write, C_t read
    y_t = C_t h_t + D_d x_t                        D skip; B is discretised in Euler's way, as the published code does

Mamba-2, state space duality (SSD): Dao & Gu 2024, arXiv 2405.21060, section 7. One head of P channels; N numbers each
    h_t = exp(dt_t A) h_t-1 + (dt_t x_t) B_t^T     state (P, N); A a number a head; heads of a group share B_t, C_t
    y_t = h_t C_t + D x_t

Causal convolution of both Mambas. One channel d of D; window W
    y_t = bias_d + sum over w of weight_dw x_t-(W-1)+w,  then SiLU if asked;  state: the last W - 1 inputs, oldest first
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.statistics import of_states

# What a step needs of each input, and the state before, to the step's output and the state after.
Step = Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]


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
    """RWKV-6; shapes in :class:`statecheck_kernels.contract.Form`."""
    u = u.to(state.dtype)

    def step(now: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        r, k, v, log_w = now  # (B, H, K), v (B, H, V)
        written = k.unsqueeze(-1) * v.unsqueeze(-2)  # (B, H, K, V)
        y = (r.unsqueeze(-2) @ (state + u.unsqueeze(-1) * written)).squeeze(-2)  # (B, H, V)
        return y, log_w.exp().unsqueeze(-1) * state + written

    outputs, states, last = _run(step, (r, k, v, log_w), v, state, cu_seqlens)
    return outputs.to(r.dtype), last, None if observe is None else of_states(states, observe, cu_seqlens)


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
    """Mamba's scan; shapes in :class:`statecheck_kernels.contract.Form`."""
    rate = A.to(state.dtype)
    skip = None if D is None else D.to(state.dtype)

    def step(now: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, b, c = now  # (B, D) twice, (B, N) twice
        state = (dt.unsqueeze(-1) * rate).exp() * state + (dt * x).unsqueeze(-1) * b.unsqueeze(-2)  # (B, D, N)
        y = (state @ c.unsqueeze(-1)).squeeze(-1)  # (B, D)
        return y if skip is None else y + skip * x, state

    outputs, states, last = _run(step, (x, dt, B, C), x, state, cu_seqlens)
    return outputs.to(x.dtype), last, None if observe is None else of_states(states.unsqueeze(2), observe, cu_seqlens)


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
    """Mamba-2's recurrence; shapes in :class:`statecheck_kernels.contract.Form`."""
    rate = A.to(state.dtype)
    skip = None if D is None else D.to(state.dtype)
    share = x.shape[2] // B.shape[2]  # heads of a group

    def step(now: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, b, c = now  # (B, H, P), (B, H), (B, G, N) twice
        b, c = (y.repeat_interleave(share, 1) for y in (b, c))  # (B, H, N)
        written = (dt.unsqueeze(-1) * x).unsqueeze(-1) * b.unsqueeze(-2)  # (B, H, P, N)
        state = (dt * rate).exp()[..., None, None] * state + written
        y = (state @ c.unsqueeze(-1)).squeeze(-1)  # (B, H, P)
        return y if skip is None else y + skip.unsqueeze(-1) * x, state

    outputs, states, last = _run(step, (x, dt, B, C), x, state, cu_seqlens)
    return outputs.to(x.dtype), last, None if observe is None else of_states(states, observe, cu_seqlens)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """The convolution; shapes in :class:`statecheck_kernels.contract.Form`."""
    taps = weight.to(state.dtype)
    shift = None if bias is None else bias.to(state.dtype)

    def step(now: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat([state, now[0].unsqueeze(-1)], -1)  # (B, D, W)
        y = (window * taps).sum(-1)
        y = y if shift is None else y + shift
        return functional.silu(y) if silu else y, window[..., 1:]

    outputs, states, last = _run(step, (x,), x, state, cu_seqlens)
    return outputs.to(x.dtype), last, None if observe is None else of_states(states.unsqueeze(2), observe, cu_seqlens)


def _run(
    step: Step, along: Sequence[Tensor], shaped: Tensor, state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, T, ...) shaped as `shaped`, the state after every step (B, T, ...), the last states (rows, ...)."""
    along = [x.to(state.dtype) for x in along]
    if cu_seqlens is None:
        pieces = [(along, state)]
    else:
        ends = cu_seqlens.tolist()
        spans = enumerate(pairwise(ends))
        pieces = [([x[:, start:end] for x in along], state[row : row + 1]) for row, (start, end) in spans]
    outputs, states, last = [shaped[:, :0].to(state.dtype)], [state.new_zeros(shaped.shape[0], 0, *state.shape[1:])], []
    for inputs, before in pieces:
        for now in zip(*(x.unbind(1) for x in inputs), strict=True):
            output, before = step(now, before)
            outputs.append(output.unsqueeze(1))
            states.append(before.detach().unsqueeze(1))
        last.append(before)
    return torch.cat(outputs, 1), torch.cat(states, 1), torch.cat(last) if last else state
