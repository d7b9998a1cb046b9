"""`wkv6` and `ssd` on the compiled library: memories that are a matrix a head. Formulas: `src/outer.hpp`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.cpu.planning import Plan, widened
from statecheck_kernels.cpu.records import Shape, Ssd, Wkv6, constant, put, room, run

WORKERS = 8  # units of work that a backward pass of ssd is cut into where it may be


def fill(record: Wkv6 | Ssd, plan: Plan, sizes: Sequence[int], checkpoints: Tensor | None) -> None:
    """Put what both kernels have into the record of a call; `sizes` are heads, K and V."""
    record.sequences = plan.packing.record()
    record.shape = Shape(*sizes, constant("sk_outer_chunk", *sizes[1:]))
    record.checkpoints = None if checkpoints is None else checkpoints.data_ptr()


def checkpoints(plan: Plan, sizes: Sequence[int], like: Tensor) -> Tensor | None:
    """Room for the memory at the start of every chunk (chunks, H, K, V), where the backward pass will want it."""
    return like.new_empty(plan.packing.chunks, *sizes) if plan.training else None


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
    """RWKV-6, as :meth:`statecheck_kernels.contract.Form.wkv6` says."""
    inputs = widened(state, r, k, v, log_w, u)
    plan = Plan.of(inputs, state, cu_seqlens, observe, constant("sk_outer_chunk", *state.shape[2:]))
    outputs, last = Wkv6Function.apply(*inputs, state, plan)
    return outputs, last, plan.observer.statistics()


class Wkv6Function(torch.autograd.Function):
    """Forward and backward of `wkv6`."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state."""
        sizes = state.shape[1:]
        outputs, last, saved = room(v), room(state), checkpoints(plan, sizes, v)
        record = Wkv6(statistics=plan.observer.record())
        fill(record, plan, sizes, saved)
        put(record, r=r, k=k, v=v, log_w=log_w, u=u[None, None], initial=state, final=last, y=outputs)
        run("sk_wkv6_forward", record, v.dtype)
        if plan.training:
            ctx.plan = plan
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(r, k, v, log_w, u, saved)
            ctx.state = state.shape
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs and of the initial state."""
        r, k, v, log_w, u, saved = ctx.saved_tensors
        d_r, d_k, d_v, d_log_w = (room(x) for x in (r, k, v, log_w))
        d_state = v.new_empty(ctx.state)
        d_u = u.new_zeros(len(d_state), *u.shape)
        dy = torch.zeros_like(v) if d_outputs is None else d_outputs
        record = Wkv6()
        fill(record, ctx.plan, ctx.state[1:], saved)
        put(record, r=r, k=k, v=v, log_w=log_w, u=u[None, None], dy=dy, d_final=d_last)
        put(record, d_r=d_r, d_k=d_k, d_v=d_v, d_log_w=d_log_w, d_u=d_u[:, None], d_initial=d_state)
        run("sk_wkv6_backward", record, v.dtype)
        return d_r, d_k, d_v, d_log_w, d_u.sum(0), d_state, None


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
    """Mamba-2, as :meth:`statecheck_kernels.contract.Form.ssd` says."""
    inputs = widened(state, x, dt, A, B, C, D)
    plan = Plan.of(inputs, state, cu_seqlens, observe, constant("sk_outer_chunk", *state.mT.shape[2:]))
    outputs, last = SsdFunction.apply(*inputs, state, plan)
    return outputs, last, plan.observer.statistics()


class SsdFunction(torch.autograd.Function):
    """Forward and backward of `ssd`."""

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
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state."""
        sizes = state.mT.shape[1:]  # the memory is (N, P) there
        outputs, last, saved = room(x), room(state), checkpoints(plan, sizes, x)
        record = Ssd(statistics=plan.observer.record(), groups=B.shape[2])
        fill(record, plan, sizes, saved)
        put(record, x=x, dt=dt, A=A, B=B, C=C, D=D, initial=state.mT, final=last.mT, y=outputs)
        run("sk_ssd_forward", record, x.dtype)
        if plan.training:
            ctx.plan = plan
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, dt, A, B, C, D, saved)
            ctx.state = state.shape
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs and of the initial state."""
        x, dt, A, B, C, D, saved = ctx.saved_tensors
        heads, groups = x.shape[2], B.shape[2]
        d_x, d_dt, d_state = room(x), room(dt), x.new_empty(ctx.state)
        parts = _parts(heads // groups, groups * ctx.state[0])
        d_B, d_C = (y.new_empty(*y.shape[:2], groups * parts, y.shape[3]) for y in (B, C))
        d_A = A.new_zeros(len(d_state), heads)
        d_D = None if D is None else torch.zeros_like(d_A)
        dy = torch.zeros_like(x) if d_outputs is None else d_outputs
        record = Ssd(groups=groups, parts=parts)
        fill(record, ctx.plan, d_state.mT.shape[1:], saved)
        put(record, x=x, dt=dt, A=A, B=B, C=C, D=D, dy=dy, d_final=None if d_last is None else d_last.mT)
        put(record, d_x=d_x, d_dt=d_dt, d_A=d_A, d_B=d_B, d_C=d_C, d_D=d_D, d_initial=d_state.mT)
        run("sk_ssd_backward", record, x.dtype)
        d_B, d_C = (y.unflatten(2, (groups, -1)).sum(3) for y in (d_B, d_C))
        return d_x, d_dt, d_A.sum(0), d_B, d_C, None if d_D is None else d_D.sum(0), d_state, None


def _parts(heads: int, groups: int) -> int:
    """Into how many equal parts the heads of a group are cut, so that there is work for some threads.

    What is summed over the heads of a group, the gradients of B and C, takes a buffer a part. Not by the number of
    threads: the order of a sum may not depend on it.
    """
    return next(parts for parts in range(min(heads, max(1, WORKERS // max(1, groups))), 0, -1) if heads % parts == 0)
