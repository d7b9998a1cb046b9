"""The causal convolution of both Mambas as kernels. Gu & Dao 2023, arXiv 2312.00752, section 3.4 (the block).

One channel d of D; window W. The input is extended: e_0 .. e_W-2 are the state, oldest first, then come x_0, x_1 ...

    z_t = bias + sum over w of weight_w e_t+w    y_t = z_t, or SiLU(z_t) = z_t / (1 + exp(-z_t))

Backward, with dz_t the gradient of z_t:

    de_i = sum over w of weight_w dz_i-w         dweight_w = sum_t dz_t e_t+w         dbias = sum_t dz_t

The last state is the last W - 1 of e. No step waits for another here: a program owns (row, every so many tiles of
steps, block of D). Sums over steps and rows are in parts: each program writes its own and torch adds them up, always
in the same order. Only the statistics of the state, the window, go step by step, in a kernel of their own.
"""

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
    block_of,
    bounds,
    lanes_of,
    place,
    power,
    triton_type,
    warps,
)
from statecheck_kernels.triton_form.observing import Watch, keep_peak, observe_state, peak_before, watch

STEPS = 16  # of a tile
PROGRAMS = 64  # that share the steps of a row, at most


@triton.jit
def extended(
    x: tl.tensor,
    state: tl.tensor,
    x_at: tl.tuple,
    state_at: tl.tuple,
    places: tl.tensor,
    batch: tl.tensor,
    row: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    W: tl.tensor,
    channels: tl.tensor,
    channel_in: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """The extended input at `places` (tile, channels), 0 where there is none."""
    old = places < W - 1
    t = start + places - (W - 1)
    before = ((places >= 0) & old)[:, None] & channel_in[None, :]
    now = ((t < stop) & (places >= W - 1))[:, None] & channel_in[None, :]
    lanes = row * state_at[0] + channels[None, :] * state_at[1] + places[:, None] * state_at[2]
    past = tl.load(state + lanes, mask=before, other=0.0).to(WIDE)
    lanes = batch * x_at[0] + t[:, None] * x_at[1] + channels[None, :] * x_at[2]
    return tl.where(old[:, None], past, tl.load(x + lanes, mask=now, other=0.0).to(WIDE))


@triton.jit
def gradient(
    dy: tl.tensor,
    z: tl.tensor,
    dy_at: tl.tuple,
    steps: tl.tensor,
    batch: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    T: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    channel_in: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """dz at `steps` of the row (tile, channels), 0 where there is no such step. `z` is None without SiLU."""
    t = start + steps
    inside = ((steps >= 0) & (t < stop))[:, None] & channel_in[None, :]
    lanes = batch * dy_at[0] + t[:, None] * dy_at[1] + channels[None, :] * dy_at[2]
    dz = tl.load(dy + lanes, mask=inside, other=0.0).to(WIDE)
    if z is not None:
        before = tl.load(z + (batch * T + t)[:, None] * width + channels[None, :], mask=inside, other=0.0)
        gate = 1 / (1 + tl.exp(-before))
        dz = dz * gate * (1 + before * (1 - gate))
    return dz


@triton.jit
def forward_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    state: tl.tensor,
    cu_seqlens: tl.tensor,
    y: tl.tensor,
    final: tl.tensor,
    z: tl.tensor,
    T: tl.tensor,
    width: tl.tensor,
    W: tl.tensor,
    x_at: tl.tuple,
    weight_at: tl.tuple,
    bias_at: tl.tensor,
    state_at: tl.tuple,
    SILU: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """Outputs, the last state, and what enters the SiLU (`z`, or None)."""
    row, turn, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    channels = lanes_of(block, BLOCK_D)
    channel_in = channels < width
    for first in range(turn * STEPS, stop - start, tl.num_programs(1) * STEPS):
        steps = first + tl.arange(0, STEPS)
        total = tl.zeros((STEPS, BLOCK_D), WIDE)
        for w in range(W):
            tap = tl.load(weight + channels * weight_at[0] + w * weight_at[1], mask=channel_in, other=0.0).to(WIDE)
            total += tap[None, :] * extended(
                x, state, x_at, state_at, steps + w, batch, row, start, stop, W, channels, channel_in, WIDE
            )
        if bias is not None:
            total += tl.load(bias + channels * bias_at, mask=channel_in, other=0.0).to(WIDE)[None, :]
        inside = (start + steps < stop)[:, None] & channel_in[None, :]
        lanes = (batch * T + start + steps)[:, None] * width + channels[None, :]
        if z is not None:
            tl.store(z + lanes, total, mask=inside)
        if SILU:
            total = total / (1 + tl.exp(-total))
        tl.store(y + lanes, total, mask=inside)
    if turn == 0:
        kept = lanes_of(turn, BLOCK_W)
        last = extended(
            x, state, x_at, state_at, stop - start + kept, batch, row, start, stop, W, channels, channel_in, WIDE
        )
        inside = (kept < W - 1)[:, None] & channel_in[None, :]
        tl.store(final + (row * width + channels[None, :]) * (W - 1) + kept[:, None], last, mask=inside)


@triton.jit
def backward_inputs_kernel(
    weight: tl.tensor,
    cu_seqlens: tl.tensor,
    z: tl.tensor,
    dy: tl.tensor,
    dfinal: tl.tensor,
    dx: tl.tensor,
    dstate: tl.tensor,
    T: tl.tensor,
    width: tl.tensor,
    W: tl.tensor,
    weight_at: tl.tuple,
    dy_at: tl.tuple,
    dfinal_at: tl.tuple,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """The gradient of the extended input, written to that of x and that of the state."""
    row, turn, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    length = stop - start
    channels = lanes_of(block, BLOCK_D)
    channel_in = channels < width
    for first in range(turn * STEPS, length + W - 1, tl.num_programs(1) * STEPS):
        places = first + tl.arange(0, STEPS)
        kept = ((places >= length) & (places < length + W - 1))[:, None] & channel_in[None, :]
        lanes = row * dfinal_at[0] + channels[None, :] * dfinal_at[1] + (places - length)[:, None] * dfinal_at[2]
        total = tl.load(dfinal + lanes, mask=kept, other=0.0).to(WIDE)
        for w in range(W):
            tap = tl.load(weight + channels * weight_at[0] + w * weight_at[1], mask=channel_in, other=0.0).to(WIDE)
            total += tap[None, :] * gradient(
                dy, z, dy_at, places - w, batch, start, stop, T, width, channels, channel_in, WIDE
            )
        old = (places < W - 1)[:, None] & channel_in[None, :]
        tl.store(dstate + (row * width + channels[None, :]) * (W - 1) + places[:, None], total, mask=old)
        t = start + places - (W - 1)
        new = ((places >= W - 1) & (t < stop))[:, None] & channel_in[None, :]
        tl.store(dx + (batch * T + t)[:, None] * width + channels[None, :], total, mask=new)


@triton.jit
def backward_weights_kernel(
    x: tl.tensor,
    state: tl.tensor,
    cu_seqlens: tl.tensor,
    z: tl.tensor,
    dy: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    T: tl.tensor,
    width: tl.tensor,
    W: tl.tensor,
    x_at: tl.tuple,
    state_at: tl.tuple,
    dy_at: tl.tuple,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Parts of the gradients of weight (rows, programs, D, W) and bias (rows, programs, D)."""
    row, turn, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    channels = lanes_of(block, BLOCK_D)
    channel_in = channels < width
    own = (row * tl.num_programs(1) + turn) * width + channels
    for w in range(W):
        tap, shift = tl.zeros((BLOCK_D,), WIDE), tl.zeros((BLOCK_D,), WIDE)
        for first in range(turn * STEPS, stop - start, tl.num_programs(1) * STEPS):
            steps = first + tl.arange(0, STEPS)
            dz = gradient(dy, z, dy_at, steps, batch, start, stop, T, width, channels, channel_in, WIDE)
            inputs = extended(
                x, state, x_at, state_at, steps + w, batch, row, start, stop, W, channels, channel_in, WIDE
            )
            tap += tl.sum(tl.where((start + steps < stop)[:, None], dz * inputs, 0.0), axis=0)
            shift += tl.sum(dz, axis=0)
        tl.store(dweight + own * W + w, tap, mask=channel_in)
        tl.store(dbias + own, shift, mask=channel_in)  # the same for every w


@triton.jit
def statistics_kernel(
    x: tl.tensor,
    state: tl.tensor,
    cu_seqlens: tl.tensor,
    watch: tl.tuple,
    T: tl.tensor,
    width: tl.tensor,
    W: tl.tensor,
    x_at: tl.tuple,
    state_at: tl.tuple,
    WIDE: tl.constexpr,
    COUNT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """Statistics of the window after each observed step."""
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    channels, kept = lanes_of(block, BLOCK_D), lanes_of(head, BLOCK_W)  # the only head is 0
    channel_in = channels < width
    inside = (kept < W - 1)[:, None] & channel_in[None, :]
    peak = peak_before(watch, row, head, 1)
    for t in range(start, stop):
        if (t + 1) % watch.every == 0:
            places = t + 1 - start + kept
            window = extended(x, state, x_at, state_at, places, batch, row, start, stop, W, channels, channel_in, WIDE)
            peak = observe_state(tl.where(inside, window, 0.0), peak, watch, t, batch, block, head, 1, COUNT, ENTROPY)
    keep_peak(watch, peak, row, tl.num_programs(0), block, head, 1)


class CausalConv1d(Function):
    """The convolution with its gradient. Statistics are given back as they are and carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        silu: bool,
        state: Tensor,
        cu_seqlens: Tensor | None,
        observe: Observe | None,
        save: bool,
    ) -> tuple[Tensor, Tensor, StateStatistics | None]:
        """Outputs (B, T, D), the last state (rows, D, W - 1), the statistics."""
        (width, W), T = weight.shape, x.shape[1]
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        final = torch.empty(state.shape, dtype=state.dtype, device=x.device)
        z = final.new_empty(x.shape) if save and silu else None
        strides = (x.stride(), weight.stride(), 0 if bias is None else bias.stride(0), state.stride())
        arguments = (x, weight, bias, state, cu_seqlens, y, final, z, T, width, W, *strides)
        constants = _constants(state.dtype, width) | {"SILU": silu, "BLOCK_W": power(W - 1)}
        launching.launch(forward_kernel, _grid(state, T), arguments, constants)
        ctx.save_for_backward(x, weight, bias, state, cu_seqlens, z)
        return y, final, None if observe is None else _statistics(x, state, cu_seqlens, observe)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and the first state."""
        x, weight, bias, state, cu_seqlens, z = ctx.saved_tensors
        (width, W), T = weight.shape, x.shape[1]
        grid, constants = _grid(state, T), _constants(state.dtype, width)
        dx, dstate = x.new_empty(x.shape), state.new_empty(state.shape)
        own = (weight, cu_seqlens, z, dy, dfinal, dx, dstate, T, width, W)
        strides = (weight.stride(), dy.stride(), dfinal.stride())
        launching.launch(backward_inputs_kernel, grid, (*own, *strides), constants)
        dweight, dbias = state.new_empty(*grid[:2], width, W), state.new_empty(*grid[:2], width)
        arguments = (x, state, cu_seqlens, z, dy, dweight, dbias, T, width, W)
        launching.launch(
            backward_weights_kernel, grid, (*arguments, x.stride(), state.stride(), dy.stride()), constants
        )
        shift = None if bias is None else dbias.sum((0, 1)).to(bias.dtype)
        return dx, dweight.sum((0, 1)).to(weight.dtype), shift, None, dstate, None, None, None


def _statistics(x: Tensor, state: Tensor, cu_seqlens: Tensor | None, observe: Observe) -> StateStatistics:
    rows, width, kept = state.shape
    block = block_of(width, kept, "channels")
    grid = (rows, 1, triton.cdiv(width, block))
    constants = {"WIDE": triton_type(state.dtype), "BLOCK_D": block, "BLOCK_W": power(kept)}
    constants["num_warps"] = warps(block * power(kept))

    def run(watching: Watch, counting: bool) -> None:
        arguments = (x, state, cu_seqlens, watching, x.shape[1], width, kept + 1, x.stride(), state.stride())
        launching.launch(statistics_kernel, grid, arguments, constants | launching.passes(observe, counting))

    watching = watch(observe, x, rows, 1, grid[2])
    run(watching, False)
    if watching.divided:
        run(watching.second(), True)
    return watching.statistics(width * kept)


def _grid(state: Tensor, T: int) -> tuple[int, int, int]:
    """Rows, programs that share a row's steps (at least one, which writes the last state), blocks of channels."""
    rows, width, _ = state.shape
    shared = min(PROGRAMS, max(1, T // STEPS))
    return rows, shared, triton.cdiv(width, block_of(width, STEPS, "forward"))


def _constants(dtype: torch.dtype, width: int) -> dict[str, Any]:
    block = block_of(width, STEPS, "forward")
    return {"WIDE": triton_type(dtype), "STEPS": STEPS, "BLOCK_D": block, "num_warps": warps(block * STEPS)}


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """See :meth:`statecheck_kernels.contract.Form.causal_conv1d`."""
    save = differentiable(x, weight, bias, state)
    return CausalConv1d.apply(x, weight, bias, silu, state, cu_seqlens, observe, save)
