"""The WKV recurrence of RWKV-6 as two kernels. Peng et al. 2024, arXiv 2404.05892, section 4.

One head; S_t (K, V) is the state after step t, w_t = exp(log_w_t):

    y_t = r_t (S_t-1 + diag(u) k_t^T v_t)        S_t = diag(w_t) S_t-1 + k_t^T v_t

Backward, with dy_t the gradient of y_t and G_t (K, V) that of S_t, from the last step to the first:

    dr_t = S_t-1 dy_t + u k_t (v_t . dy_t)       dv_t = k_t G_t + (r_t . u k_t) dy_t
    dk_t = G_t v_t + u r_t (v_t . dy_t)          du   = sum_t r_t k_t (v_t . dy_t)
    dlog_w_t = w_t rowsum(G_t S_t-1)             G_t-1 = diag(w_t) G_t + r_t^T dy_t

A program owns (row, head, block of V): columns of the state don't meet, so that only sums over V are in parts. Each
program writes its part and torch adds them up, always in the same order.
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
def next_state(S: tl.tensor, log_w: tl.tensor, written: tl.tensor) -> tl.tensor:
    """S_t from S_t-1."""
    return tl.exp(log_w)[:, None] * S + written


@triton.jit
def outer(k: tl.tensor, v: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """k^T v, and 0 outside the state even where k or v is infinite."""
    return tl.where(inside, k[:, None] * v[None, :], 0.0)


@triton.jit
def forward_kernel(
    r: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    log_w: tl.tensor,
    u: tl.tensor,
    state: tl.tensor,
    cu_seqlens: tl.tensor,
    y: tl.tensor,
    final: tl.tensor,
    saved: tl.tensor,
    watch: tl.tuple,
    T: tl.tensor,
    H: tl.tensor,
    K: tl.tensor,
    V: tl.tensor,
    r_at: tl.tuple,
    k_at: tl.tuple,
    v_at: tl.tuple,
    w_at: tl.tuple,
    u_at: tl.tuple,
    state_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    COUNT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Outputs, the last state, states at chunk starts (`saved`, or None), statistics (`watch`, or None).

    COUNT: the second pass over a divided head, which writes no more than how many units are near the largest.
    """
    row, head, block = place()
    batch, start, stop = bounds(cu_seqlens, row, T)
    keys, values = lanes_of(block * 0, BLOCK_K), lanes_of(block, BLOCK_V)
    key_in, value_in = keys < K, values < V
    inside = key_in[:, None] & value_in[None, :]
    tile = keys[:, None] * V + values[None, :]  # of one head of a contiguous state
    own = keys[:, None] * state_at[2] + values[None, :] * state_at[3]
    S = tl.load(state + row * state_at[0] + head * state_at[1] + own, mask=inside, other=0.0).to(WIDE)
    bonus = tl.load(u + head * u_at[0] + keys * u_at[1], mask=key_in, other=0.0).to(WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    peak = peak_before(watch, row, head, H)
    for t in range(start, stop):
        if saved is not None:
            if (t - start) % CHUNK == 0:
                tl.store(saved + ((slot + (t - start) // CHUNK) * H + head) * K * V + tile, S, mask=inside)
        k_t = take(k, k_at, batch, t, head, keys, key_in, WIDE)
        v_t = take(v, v_at, batch, t, head, values, value_in, WIDE)
        w_t = take(log_w, w_at, batch, t, head, keys, key_in, WIDE)
        written = outer(k_t, v_t, inside)
        if not COUNT:
            r_t = take(r, r_at, batch, t, head, keys, key_in, WIDE)
            answer = tl.sum(r_t[:, None] * (S + bonus[:, None] * written), axis=0)
            tl.store(y + ((batch * T + t) * H + head) * V + values, answer, mask=value_in)
        S = next_state(S, w_t, written)
        if watch is not None:
            if (t + 1) % watch.every == 0:
                peak = observe_state(S, peak, watch, t, batch, block, head, H, COUNT, ENTROPY)
    if not COUNT:
        tl.store(final + (row * H + head) * K * V + tile, S, mask=inside)
    keep_peak(watch, peak, row, tl.num_programs(0), block, head, H)


@triton.jit
def backward_kernel(
    r: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    log_w: tl.tensor,
    u: tl.tensor,
    cu_seqlens: tl.tensor,
    saved: tl.tensor,
    scratch: tl.tensor,
    dy: tl.tensor,
    dfinal: tl.tensor,
    dr: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    dw: tl.tensor,
    du: tl.tensor,
    dstate: tl.tensor,
    T: tl.tensor,
    H: tl.tensor,
    K: tl.tensor,
    V: tl.tensor,
    tokens: tl.tensor,
    r_at: tl.tuple,
    k_at: tl.tuple,
    v_at: tl.tuple,
    w_at: tl.tuple,
    u_at: tl.tuple,
    dy_at: tl.tuple,
    dfinal_at: tl.tuple,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Gradients; dr, dk, dw are parts (blocks of V, B, T, H, K), du is (blocks of V, rows, H, K)."""
    row, head, block = place()
    rows = tl.num_programs(0)
    batch, start, stop = bounds(cu_seqlens, row, T)
    keys, values = lanes_of(block * 0, BLOCK_K), lanes_of(block, BLOCK_V)
    key_in, value_in = keys < K, values < V
    inside = key_in[:, None] & value_in[None, :]
    tile = keys[:, None] * V + values[None, :]
    bonus = tl.load(u + head * u_at[0] + keys * u_at[1], mask=key_in, other=0.0).to(WIDE)
    own = keys[:, None] * dfinal_at[2] + values[None, :] * dfinal_at[3]
    G = tl.load(dfinal + row * dfinal_at[0] + head * dfinal_at[1] + own, mask=inside, other=0.0).to(WIDE)
    du_sum = tl.zeros((BLOCK_K,), WIDE)
    slot = first_slot(cu_seqlens, row, start, T, CHUNK)
    program = (row * H + head) * tl.num_programs(2) + block
    before = scratch + program * CHUNK * K * BLOCK_V + keys[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    chunks = tl.cdiv(stop - start, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        begin = start + chunk * CHUNK
        end = tl.minimum(begin + CHUNK, stop)
        S = tl.load(saved + ((slot + chunk) * H + head) * K * V + tile, mask=inside, other=0.0)
        for t in range(begin, end):
            tl.store(before + (t - begin) * K * BLOCK_V, S, mask=inside)
            k_t = take(k, k_at, batch, t, head, keys, key_in, WIDE)
            v_t = take(v, v_at, batch, t, head, values, value_in, WIDE)
            w_t = take(log_w, w_at, batch, t, head, keys, key_in, WIDE)
            S = next_state(S, w_t, outer(k_t, v_t, inside))
        tl.debug_barrier()  # other threads of this program read what these wrote
        for back in range(end - begin):
            t = end - 1 - back
            S = tl.load(before + (t - begin) * K * BLOCK_V, mask=inside, other=0.0)  # S_t-1
            r_t = take(r, r_at, batch, t, head, keys, key_in, WIDE)
            k_t = take(k, k_at, batch, t, head, keys, key_in, WIDE)
            v_t = take(v, v_at, batch, t, head, values, value_in, WIDE)
            w_t = tl.exp(take(log_w, w_at, batch, t, head, keys, key_in, WIDE))
            dy_t = take(dy, dy_at, batch, t, head, values, value_in, WIDE)
            token = (batch * T + t) * H + head
            part = (block * tokens + token) * K + keys
            agreed = tl.sum(v_t * dy_t)
            tl.store(dr + part, tl.sum(S * dy_t[None, :], axis=1) + bonus * k_t * agreed, mask=key_in)
            tl.store(dk + part, tl.sum(G * v_t[None, :], axis=1) + bonus * r_t * agreed, mask=key_in)
            tl.store(dw + part, w_t * tl.sum(G * S, axis=1), mask=key_in)
            dv_t = tl.sum(G * k_t[:, None], axis=0) + tl.sum(r_t * bonus * k_t) * dy_t
            tl.store(dv + token * V + values, dv_t, mask=value_in)
            du_sum += r_t * k_t * agreed
            G = w_t[:, None] * G + r_t[:, None] * dy_t[None, :]
        tl.debug_barrier()  # the next chunk writes over what was read
    tl.store(du + ((block * rows + row) * H + head) * K + keys, du_sum, mask=key_in)
    tl.store(dstate + (row * H + head) * K * V + tile, G, mask=inside)


class Wkv6(Function):
    """The recurrence with its gradient. Statistics are given back as they are and carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        log_w: Tensor,
        u: Tensor,
        state: Tensor,
        cu_seqlens: Tensor | None,
        observe: Observe | None,
        save: bool,
    ) -> tuple[Tensor, Tensor, StateStatistics | None]:
        """Outputs (B, T, H, V), the last state (rows, H, K, V), the statistics."""
        (rows, H, K, V), T, dtype = state.shape, r.shape[1], state.dtype
        block = block_of(V, K, "forward" if observe is None else "watched")
        y = torch.empty(v.shape, dtype=r.dtype, device=r.device)
        final = torch.empty(state.shape, dtype=dtype, device=r.device)
        saved = final.new_empty(slots(T, rows, cu_seqlens is not None), H, K, V) if save else None
        watching = None if observe is None else watch(observe, r, rows, H, triton.cdiv(V, block))
        inputs = (r, k, v, log_w, u, state)

        def run(watching: Watch | None, saved: Tensor | None, counting: bool) -> None:
            arguments = (*inputs, cu_seqlens, y, final, saved, watching, T, H, K, V, *(z.stride() for z in inputs))
            constants = _constants(dtype, K, block) | launching.passes(observe, counting)
            launching.launch(forward_kernel, (rows, H, triton.cdiv(V, block)), arguments, constants)

        run(watching, saved, False)
        if watching is not None and watching.divided:
            run(watching.second(), None, True)
        ctx.save_for_backward(r, k, v, log_w, u, cu_seqlens, saved)
        return y, final, None if watching is None else watching.statistics(K * V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of r, k, v, log_w, u and the first state."""
        r, k, v, log_w, u, cu_seqlens, saved = ctx.saved_tensors
        (rows, H, K, V), (batches, T) = dfinal.shape, r.shape[:2]
        block = block_of(V, K, "backward")
        blocks = triton.cdiv(V, block)
        dr, dk, dw = saved.new_empty(3, blocks, batches, T, H, K)
        dv, dstate = v.new_empty(v.shape), dfinal.new_empty(dfinal.shape)
        du = saved.new_empty(blocks, rows, H, K)
        scratch = saved.new_empty(rows * H * blocks, CHUNK, K, block)
        inputs = (r, k, v, log_w, u, cu_seqlens, saved, scratch, dy, dfinal)
        strides = (z.stride() for z in (r, k, v, log_w, u, dy, dfinal))
        arguments = (*inputs, dr, dk, dv, dw, du, dstate, T, H, K, V, batches * T * H, *strides)
        launching.launch(backward_kernel, (rows, H, blocks), arguments, _constants(saved.dtype, K, block))
        parts = (dr.sum(0).to(r.dtype), dk.sum(0).to(k.dtype), dv, dw.sum(0).to(log_w.dtype))
        return *parts, du.sum((0, 1)).to(u.dtype), dstate, None, None, None


def _constants(dtype: torch.dtype, K: int, block: int) -> dict[str, Any]:
    own = {"WIDE": triton_type(dtype), "CHUNK": CHUNK, "BLOCK_K": power(K), "BLOCK_V": block}
    return own | {"num_warps": warps(power(K) * block)}


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
    """See :meth:`statecheck_kernels.contract.Form.wkv6`."""
    save = differentiable(r, k, v, log_w, u, state)
    return Wkv6.apply(r, k, v, log_w, u, state, cu_seqlens, observe, save)
