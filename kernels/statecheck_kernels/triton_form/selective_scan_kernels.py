"""The selective scan of Mamba as two kernels. Gu & Dao 2023, arXiv 2312.00752, section 3 and algorithm 2.

One channel d of D; h_t (N) is the state after step t, a_t = exp(dt_t A_d) (N):

    h_t = a_t h_t-1 + dt_t x_t B_t               y_t = h_t . C_t + D x_t

Backward, with dy_t the gradient of y_t and G_t (N) that of h_t, dy_t C_t in it, from the last step to the first:

    dC_t = sum_d dy_t h_t                        dB_t  = sum_d dt_t x_t G_t
    dx_t = dt_t (G_t . B_t) + D dy_t             ddt_t = x_t (G_t . B_t) + sum_n A a_t G_t h_t-1
    dA   = sum_t dt_t a_t G_t h_t-1              dD    = sum_t x_t dy_t
    G_t-1 = a_t G_t + dy_t-1 C_t-1

A program owns (row, block of D): channels don't meet, so that only sums over D are in parts. Each program writes its
part and torch adds them up, always in the same order. All channels count as one head in the statistics.
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
    return tl.where(inside, tl.exp(dt[:, None] * rate) * h + (dt * x)[:, None] * B[None, :], 0.0)


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
    width: tl.tensor,
    N: tl.tensor,
    x_at: tl.tuple,
    dt_at: tl.tuple,
    B_at: tl.tuple,
    C_at: tl.tuple,
    A_at: tl.tuple,
    D_at: tl.tensor,
    state_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    COUNT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Outputs, the last state, states at chunk starts (`saved`, or None), statistics (`watch`, or None).

    `width` channels. COUNT: the second pass, which writes no more than how many units are near the largest.
    """
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    channels, numbers = lanes_of(block, BLOCK_D), lanes_of(block * 0, BLOCK_N)
    channel_in, number_in = channels < width, numbers < N
    inside = channel_in[:, None] & number_in[None, :]
    tile = channels[:, None] * N + numbers[None, :]  # of one row of a contiguous state
    own = channels[:, None] * state_at[1] + numbers[None, :] * state_at[2]
    h = tl.load(state + row * state_at[0] + own, mask=inside, other=0.0).to(WIDE)
    rates = A + channels[:, None] * A_at[0] + numbers[None, :] * A_at[1]
    rate = tl.load(rates, mask=inside, other=0.0).to(WIDE)
    skip = tl.zeros((BLOCK_D,), WIDE)
    if D is not None:
        skip = tl.load(D + channels * D_at, mask=channel_in, other=0.0).to(WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    peak = peak_before(watch, row, head, 1)
    for t in range(start, stop):
        if saved is not None:
            if (t - start) % CHUNK == 0:
                tl.store(saved + (slot + (t - start) // CHUNK) * width * N + tile, h, mask=inside)
        x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
        dt_t = take(dt, dt_at, batch, t, head, channels, channel_in, WIDE)
        B_t = take(B, B_at, batch, t, head, numbers, number_in, WIDE)
        h = next_state(h, x_t, dt_t, rate, B_t, inside)
        if not COUNT:
            C_t = take(C, C_at, batch, t, head, numbers, number_in, WIDE)
            answer = tl.sum(h * C_t[None, :], axis=1)
            if D is not None:
                answer += skip * x_t
            tl.store(y + (batch * T + t) * width + channels, answer, mask=channel_in)
        if watch is not None:
            if (t + 1) % watch.every == 0:
                peak = observe_state(h, peak, watch, t, batch, block, head, 1, COUNT, ENTROPY)
    if not COUNT:
        tl.store(final + row * width * N + tile, h, mask=inside)
    keep_peak(watch, peak, row, tl.num_programs(0), block, head, 1)


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
    width: tl.tensor,
    N: tl.tensor,
    tokens: tl.tensor,
    x_at: tl.tuple,
    dt_at: tl.tuple,
    B_at: tl.tuple,
    C_at: tl.tuple,
    A_at: tl.tuple,
    D_at: tl.tensor,
    dy_at: tl.tuple,
    dfinal_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Gradients; dB and dC are parts (blocks of D, B, T, N), dA is (rows, D, N) and dD (rows, D)."""
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    channels, numbers = lanes_of(block, BLOCK_D), lanes_of(block * 0, BLOCK_N)
    channel_in, number_in = channels < width, numbers < N
    inside = channel_in[:, None] & number_in[None, :]
    tile = channels[:, None] * N + numbers[None, :]
    own = channels[:, None] * dfinal_at[1] + numbers[None, :] * dfinal_at[2]
    G = tl.load(dfinal + row * dfinal_at[0] + own, mask=inside, other=0.0).to(WIDE)
    rates = A + channels[:, None] * A_at[0] + numbers[None, :] * A_at[1]
    rate = tl.load(rates, mask=inside, other=0.0).to(WIDE)
    skip = tl.zeros((BLOCK_D,), WIDE)
    if D is not None:
        skip = tl.load(D + channels * D_at, mask=channel_in, other=0.0).to(WIDE)
    dA_sum, dD_sum = tl.zeros((BLOCK_D, BLOCK_N), WIDE), tl.zeros((BLOCK_D,), WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    program = row * tl.num_programs(2) + block
    before = scratch + program * CHUNK * BLOCK_D * N + tl.arange(0, BLOCK_D)[:, None] * N + numbers[None, :]
    chunks = tl.cdiv(stop - start, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        begin = start + chunk * CHUNK
        end = tl.minimum(begin + CHUNK, stop)
        h = tl.load(saved + (slot + chunk) * width * N + tile, mask=inside, other=0.0)
        for t in range(begin, end):
            tl.store(before + (t - begin) * BLOCK_D * N, h, mask=inside)
            x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
            dt_t = take(dt, dt_at, batch, t, head, channels, channel_in, WIDE)
            B_t = take(B, B_at, batch, t, head, numbers, number_in, WIDE)
            h = next_state(h, x_t, dt_t, rate, B_t, inside)
        tl.debug_barrier()  # other threads of this program read what these wrote
        for back in range(end - begin):
            t = end - 1 - back
            h = tl.load(before + (t - begin) * BLOCK_D * N, mask=inside, other=0.0)  # h_t-1
            x_t = take(x, x_at, batch, t, head, channels, channel_in, WIDE)
            dt_t = take(dt, dt_at, batch, t, head, channels, channel_in, WIDE)
            B_t = take(B, B_at, batch, t, head, numbers, number_in, WIDE)
            C_t = take(C, C_at, batch, t, head, numbers, number_in, WIDE)
            dy_t = take(dy, dy_at, batch, t, head, channels, channel_in, WIDE)
            token = batch * T + t
            part = (block * tokens + token) * N + numbers
            a_t = tl.exp(dt_t[:, None] * rate)
            h_t = next_state(h, x_t, dt_t, rate, B_t, inside)
            tl.store(dC + part, tl.sum(h_t * dy_t[:, None], axis=0), mask=number_in)
            G += dy_t[:, None] * C_t[None, :]
            tl.store(dB + part, tl.sum(G * (dt_t * x_t)[:, None], axis=0), mask=number_in)
            read = tl.sum(G * B_t[None, :], axis=1)
            tl.store(dx + token * width + channels, dt_t * read + skip * dy_t, mask=channel_in)
            decayed = a_t * G * h
            tl.store(ddt + token * width + channels, x_t * read + tl.sum(rate * decayed, axis=1), mask=channel_in)
            dA_sum += dt_t[:, None] * decayed
            dD_sum += x_t * dy_t
            G = a_t * G
        tl.debug_barrier()  # the next chunk writes over what was read
    tl.store(dA + row * width * N + tile, dA_sum, mask=inside)
    tl.store(dD + row * width + channels, dD_sum, mask=channel_in)
    tl.store(dstate + row * width * N + tile, G, mask=inside)


class SelectiveScan(Function):
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
        """Outputs (B, T, D), the last state (rows, D, N), the statistics."""
        (rows, width, N), T, dtype = state.shape, x.shape[1], state.dtype
        block = block_of(width, N, "channels")
        blocks = triton.cdiv(width, block)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        final = torch.empty(state.shape, dtype=dtype, device=x.device)
        saved = final.new_empty(slots(T, rows, cu_seqlens is not None), width, N) if save else None
        watching = None if observe is None else watch(observe, x, rows, 1, blocks)
        inputs = (x, dt, A, B, C, D, state, cu_seqlens)
        strides = (*_strides(x, dt, A, B, C, D), state.stride())

        def run(watching: Watch | None, saved: Tensor | None, counting: bool) -> None:
            arguments = (*inputs, y, final, saved, watching, T, width, N, *strides)
            launching.launch(
                forward_kernel,
                (rows, 1, blocks),
                arguments,
                _constants(dtype, block, N) | launching.passes(observe, counting),
            )

        run(watching, saved, False)
        if watching is not None and watching.divided:
            run(watching.second(), None, True)
        ctx.save_for_backward(x, dt, A, B, C, D, cu_seqlens, saved)
        return y, final, None if watching is None else watching.statistics(width * N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of x, dt, A, B, C, D and the first state."""
        x, dt, A, B, C, D, cu_seqlens, saved = ctx.saved_tensors
        (rows, width, N), (batches, T) = dfinal.shape, x.shape[:2]
        block = block_of(width, N, "channels")
        blocks = triton.cdiv(width, block)
        dx, ddt, dstate = x.new_empty(x.shape), dt.new_empty(dt.shape), dfinal.new_empty(dfinal.shape)
        dB, dC = saved.new_empty(2, blocks, batches, T, N)
        dA, dD = saved.new_empty(rows, width, N), saved.new_empty(rows, width)
        scratch = saved.new_empty(rows * blocks, CHUNK, block, N)
        inputs = (x, dt, A, B, C, D, cu_seqlens, saved, scratch, dy, dfinal)
        strides = (*_strides(x, dt, A, B, C, D), _steps_and_channels(dy), dfinal.stride())
        arguments = (*inputs, dx, ddt, dA, dB, dC, dD, dstate, T, width, N, batches * T, *strides)
        launching.launch(backward_kernel, (rows, 1, blocks), arguments, _constants(saved.dtype, block, N))
        parts = (dx, ddt, dA.sum(0).to(A.dtype), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype))
        return *parts, None if D is None else dD.sum(0).to(D.dtype), dstate, None, None, None


def _strides(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Any, ...]:
    own = tuple(_steps_and_channels(z) for z in (x, dt, B, C))
    return *own, A.stride(), 0 if D is None else D.stride(0)


def _steps_and_channels(x: Tensor) -> tuple[int, int, int, int]:
    """Strides as of a tensor with one head."""
    return x.stride(0), x.stride(1), 0, x.stride(2)


def _constants(dtype: torch.dtype, block: int, N: int) -> dict[str, Any]:
    own = {"WIDE": triton_type(dtype), "CHUNK": CHUNK, "BLOCK_D": block, "BLOCK_N": power(N)}
    return own | {"num_warps": warps(block * power(N))}


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
    """See :meth:`statecheck_kernels.contract.Form.selective_scan`."""
    save = differentiable(x, dt, A, B, C, D, state)
    return SelectiveScan.apply(x, dt, A, B, C, D, state, cu_seqlens, observe, save)
