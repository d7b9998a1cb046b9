"""The recurrence of Mamba-2 as two kernels. Dao & Gu 2024, arXiv 2405.21060, section 7.

One head; h_t (P, N) is the state after step t, a_t = exp(dt_t A); heads of a group share B_t and C_t:

    h_t = a_t h_t-1 + (dt_t x_t) B_t^T           y_t = h_t C_t + D x_t

Backward, with dy_t the gradient of y_t and G_t (P, N) that of h_t, dy_t C_t^T in it, from the last step to the first:

    dC_t = h_t^T dy_t                            dB_t  = dt_t G_t^T x_t
    dx_t = dt_t G_t B_t + D dy_t                 ddt_t = x_t . G_t B_t + A a_t sum(G_t h_t-1)
    dA   = sum_t dt_t a_t sum(G_t h_t-1)         dD    = sum_t x_t . dy_t
    G_t-1 = a_t G_t + dy_t-1 C_t-1^T

A program owns (row, head, block of P): rows of the state don't meet, so that sums over P, and over the heads of a
group, are in parts. Each program writes its part and torch adds them up, always in the same order.
"""

# ruff: noqa: SIM102  an `if` by itself is decided when the kernel is compiled, not when it runs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results, StateStatistics, differentiable
from statecheck_kernels.triton_form import launching
from statecheck_kernels.triton_form.launching import (
    CHUNK,
    block_of,
    bounds,
    first_slot,
    lanes_of,
    place,
    power,
    slots,
    take,
    triton_type,
    warps,
)
from statecheck_kernels.triton_form.observing import Watch, keep_peak, observe_state, peak_before, watch


@triton.jit
def next_state(
    h: tl.tensor, x: tl.tensor, dt: tl.tensor, rate: tl.tensor, B: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """h_t from h_t-1, and 0 outside the state even where a factor is infinite."""
    return tl.where(inside, tl.exp(dt * rate) * h + (dt * x)[:, None] * B[None, :], 0.0)


@triton.jit
def forward_kernel(
    x: tl.tensor,
    dt: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    state: tl.tensor,
    cu_seqlens: tl.tensor,
    y: tl.tensor,
    final: tl.tensor,
    saved: tl.tensor,
    watch: tl.tuple,
    T: tl.tensor,
    H: tl.tensor,
    P: tl.tensor,
    N: tl.tensor,
    share: tl.tensor,
    x_at: tl.tuple,
    dt_at: tl.tuple,
    B_at: tl.tuple,
    C_at: tl.tuple,
    A_at: tl.tensor,
    D_at: tl.tensor,
    state_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    COUNT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Outputs, the last state, states at chunk starts (`saved`, or None), statistics (`watch`, or None).

    `share` heads make a group. COUNT: the second pass over a divided head, which writes no more than how many units
    are near the largest.
    """
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    group = head // share
    channels, numbers = lanes_of(block, BLOCK_P), lanes_of(block * 0, BLOCK_N)
    channel_in, number_in = channels < P, numbers < N
    inside = channel_in[:, None] & number_in[None, :]
    tile = channels[:, None] * N + numbers[None, :]  # of one head of a contiguous state
    own = channels[:, None] * state_at[2] + numbers[None, :] * state_at[3]
    h = tl.load(state + row * state_at[0] + head * state_at[1] + own, mask=inside, other=0.0).to(WIDE)
    rate = tl.load(A + head * A_at).to(WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    peak = peak_before(watch, row, head, H)
    for t in range(start, stop):
        if saved is not None:
            if (t - start) % CHUNK == 0:
                tl.store(saved + ((slot + (t - start) // CHUNK) * H + head) * P * N + tile, h, mask=inside)
        x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
        B_t = take(B, B_at, batch, t, group, numbers, number_in, WIDE)
        dt_t = tl.load(dt + batch * dt_at[0] + t * dt_at[1] + head * dt_at[2]).to(WIDE)
        h = next_state(h, x_t, dt_t, rate, B_t, inside)
        if not COUNT:
            C_t = take(C, C_at, batch, t, group, numbers, number_in, WIDE)
            answer = tl.sum(h * C_t[None, :], axis=1)
            if D is not None:
                answer += tl.load(D + head * D_at).to(WIDE) * x_t
            tl.store(y + ((batch * T + t) * H + head) * P + channels, answer, mask=channel_in)
        if watch is not None:
            if (t + 1) % watch.every == 0:
                peak = observe_state(h, peak, watch, t, batch, block, head, H, COUNT, ENTROPY)
    if not COUNT:
        tl.store(final + (row * H + head) * P * N + tile, h, mask=inside)
    keep_peak(watch, peak, row, tl.num_programs(0), block, head, H)


@triton.jit
def backward_kernel(
    x: tl.tensor,
    dt: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    cu_seqlens: tl.tensor,
    saved: tl.tensor,
    scratch: tl.tensor,
    dy: tl.tensor,
    dfinal: tl.tensor,
    dx: tl.tensor,
    ddt: tl.tensor,
    dA: tl.tensor,
    dB: tl.tensor,
    dC: tl.tensor,
    dD: tl.tensor,
    dstate: tl.tensor,
    T: tl.tensor,
    H: tl.tensor,
    P: tl.tensor,
    N: tl.tensor,
    share: tl.tensor,
    tokens: tl.tensor,
    x_at: tl.tuple,
    dt_at: tl.tuple,
    B_at: tl.tuple,
    C_at: tl.tuple,
    A_at: tl.tensor,
    D_at: tl.tensor,
    dy_at: tl.tuple,
    dfinal_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Gradients; ddt, dB and dC are parts (blocks of P, B, T, H, 1 or N), dA and dD (blocks of P, rows, H)."""
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    group = head // share
    channels, numbers = lanes_of(block, BLOCK_P), lanes_of(block * 0, BLOCK_N)
    channel_in, number_in = channels < P, numbers < N
    inside = channel_in[:, None] & number_in[None, :]
    tile = channels[:, None] * N + numbers[None, :]
    own = channels[:, None] * dfinal_at[2] + numbers[None, :] * dfinal_at[3]
    G = tl.load(dfinal + row * dfinal_at[0] + head * dfinal_at[1] + own, mask=inside, other=0.0).to(WIDE)
    rate = tl.load(A + head * A_at).to(WIDE)
    skip = tl.zeros((), WIDE)
    if D is not None:
        skip = tl.load(D + head * D_at).to(WIDE)
    dA_sum, dD_sum = tl.zeros((), WIDE), tl.zeros((), WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    program = (row * H + head) * tl.num_programs(2) + block
    before = scratch + program * CHUNK * BLOCK_P * N + tl.arange(0, BLOCK_P)[:, None] * N + numbers[None, :]
    chunks = tl.cdiv(stop - start, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        begin = start + chunk * CHUNK
        end = tl.minimum(begin + CHUNK, stop)
        h = tl.load(saved + ((slot + chunk) * H + head) * P * N + tile, mask=inside, other=0.0)
        for t in range(begin, end):
            tl.store(before + (t - begin) * BLOCK_P * N, h, mask=inside)
            x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
            B_t = take(B, B_at, batch, t, group, numbers, number_in, WIDE)
            dt_t = tl.load(dt + batch * dt_at[0] + t * dt_at[1] + head * dt_at[2]).to(WIDE)
            h = next_state(h, x_t, dt_t, rate, B_t, inside)
        tl.debug_barrier()  # other threads of this program read what these wrote
        for back in range(end - begin):
            t = end - 1 - back
            h = tl.load(before + (t - begin) * BLOCK_P * N, mask=inside, other=0.0)  # h_t-1
            x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
            B_t = take(B, B_at, batch, t, group, numbers, number_in, WIDE)
            C_t = take(C, C_at, batch, t, group, numbers, number_in, WIDE)
            dt_t = tl.load(dt + batch * dt_at[0] + t * dt_at[1] + head * dt_at[2]).to(WIDE)
            dy_t = take(dy, dy_at, batch, t, head, channels, channel_in, WIDE)
            token = (batch * T + t) * H + head
            part = block * tokens + token
            a_t = tl.exp(dt_t * rate)
            h_t = next_state(h, x_t, dt_t, rate, B_t, inside)
            tl.store(dC + part * N + numbers, tl.sum(h_t * dy_t[:, None], axis=0), mask=number_in)
            G += dy_t[:, None] * C_t[None, :]
            tl.store(dB + part * N + numbers, dt_t * tl.sum(G * x_t[:, None], axis=0), mask=number_in)
            read = tl.sum(G * B_t[None, :], axis=1)
            tl.store(dx + token * P + channels, dt_t * read + skip * dy_t, mask=channel_in)
            decayed = a_t * tl.sum(G * h)
            tl.store(ddt + part, tl.sum(x_t * read) + rate * decayed)
            dA_sum += dt_t * decayed
            dD_sum += tl.sum(x_t * dy_t)
            G = a_t * G
        tl.debug_barrier()  # the next chunk writes over what was read
    own = (block * tl.num_programs(0) + row) * H + head
    tl.store(dA + own, dA_sum)
    tl.store(dD + own, dD_sum)
    tl.store(dstate + (row * H + head) * P * N + tile, G, mask=inside)


class Ssd(Function):
    """The recurrence with its gradient. Statistics are given back as they are and carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        state: Tensor,
        cu_seqlens: Tensor | None,
        observe: Observe | None,
        save: bool,
    ) -> tuple[Tensor, Tensor, StateStatistics | None]:
        """Outputs (B, T, H, P), the last state (rows, H, P, N), the statistics."""
        (rows, H, P, N), T, dtype = state.shape, x.shape[1], state.dtype
        block = block_of(P, N, "forward" if observe is None else "watched")
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        final = torch.empty(state.shape, dtype=dtype, device=x.device)
        saved = final.new_empty(slots(T, rows, cu_seqlens is not None), H, P, N) if save else None
        watching = None if observe is None else watch(observe, x, rows, H, triton.cdiv(P, block))
        inputs = (x, dt, A, B, C, D, state, cu_seqlens)

        def run(watching: Watch | None, saved: Tensor | None, counting: bool) -> None:
            sizes = (T, H, P, N, H // max(1, B.shape[2]))
            arguments = (*inputs, y, final, saved, watching, *sizes, *_strides(x, dt, A, B, C, D), state.stride())
            constants = _constants(dtype, block, N) | launching.passes(observe, counting)
            launching.launch(forward_kernel, (rows, H, triton.cdiv(P, block)), arguments, constants)

        run(watching, saved, False)
        if watching is not None and watching.divided:
            run(watching.second(), None, True)
        ctx.save_for_backward(x, dt, A, B, C, D, cu_seqlens, saved)
        return y, final, None if watching is None else watching.statistics(P * N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of x, dt, A, B, C, D and the first state."""
        x, dt, A, B, C, D, cu_seqlens, saved = ctx.saved_tensors
        (rows, H, P, N), (batches, T), G = dfinal.shape, x.shape[:2], B.shape[2]
        block = block_of(P, N, "backward")
        blocks = triton.cdiv(P, block)
        dx, dstate = x.new_empty(x.shape), dfinal.new_empty(dfinal.shape)
        ddt = saved.new_empty(blocks, batches, T, H)
        dB, dC = saved.new_empty(2, blocks, batches, T, H, N)
        dA, dD = saved.new_empty(2, blocks, rows, H)
        scratch = saved.new_empty(rows * H * blocks, CHUNK, block, N)
        inputs = (x, dt, A, B, C, D, cu_seqlens, saved, scratch, dy, dfinal)
        sizes = (T, H, P, N, H // max(1, G), batches * T * H)
        strides = (*_strides(x, dt, A, B, C, D), dy.stride(), dfinal.stride())
        arguments = (*inputs, dx, ddt, dA, dB, dC, dD, dstate, *sizes, *strides)
        launching.launch(backward_kernel, (rows, H, blocks), arguments, _constants(saved.dtype, block, N))
        dB, dC = (z.sum(0).unflatten(2, (G, H // max(1, G))).sum(3) for z in (dB, dC))  # (B, T, H, N) to (B, T, G, N)
        parts = (dx, ddt.sum(0).to(dt.dtype), dA.sum((0, 1)).to(A.dtype), dB.to(B.dtype), dC.to(C.dtype))
        return *parts, None if D is None else dD.sum((0, 1)).to(D.dtype), dstate, None, None, None


def _strides(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Any, ...]:
    own = (x.stride(), dt.stride(), B.stride(), C.stride())
    return *own, A.stride(0), 0 if D is None else D.stride(0)


def _constants(dtype: torch.dtype, block: int, N: int) -> dict[str, Any]:
    own = {"WIDE": triton_type(dtype), "CHUNK": CHUNK, "BLOCK_P": block, "BLOCK_N": power(N)}
    return own | {"num_warps": warps(block * power(N))}


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
    """See :meth:`statecheck_kernels.contract.Form.ssd`."""
    save = differentiable(x, dt, A, B, C, D, state)
    return Ssd.apply(x, dt, A, B, C, D, state, cu_seqlens, observe, save)
