"""`wkv6` and `ssd` on the compiled library: memories that are a matrix a head. Formulas: `src/outer.hpp`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.cpu.records import Observer, Packing, Shape, Ssd, Wkv6, constant, put, room, run

WORKERS = 8  # units of work that a backward pass of ssd is cut into where it may be


@dataclass(frozen=True)
class Plan:
    """What a call needs beside its tensors."""

    packing: Packing
    shape: Shape
    observer: Observer
    training: bool  # whether a gradient will be asked for

    def checkpoints(self, like: Tensor) -> Tensor | None:
        """Room for the memory at the start of every chunk (chunks, H, K, V), where the backward pass will want it."""
        if not self.training:
            return None
        return like.new_empty(self.packing.chunks, self.shape.heads, self.shape.K, self.shape.V)

    def fill(self, record: Wkv6 | Ssd, checkpoints: Tensor | None) -> None:
        """Put what both kernels have into the record of a call."""
        record.sequences, record.shape = self.packing.record(), self.shape
        record.checkpoints = None if checkpoints is None else checkpoints.data_ptr()


def plan(
    inputs: tuple[Tensor | None, ...],
    sizes: tuple[int, int, int, int],
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Plan:
    """The plan of a call with `inputs`; `sizes` are steps, heads, K and V."""
    steps, heads, K, V = sizes
    chunk = constant("sk_outer_chunk", K, V)
    packing = Packing(steps, len(state), cu_seqlens, chunk)
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, state) if x is not None)
    return Plan(packing, Shape(heads, K, V, chunk), Observer(observe, packing, heads), training)


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
    inputs = tuple(x.to(state.dtype) for x in (r, k, v, log_w, u))
    found = plan(inputs, (*r.shape[1:], v.shape[3]), state, cu_seqlens, observe)
    outputs, last = Wkv6Function.apply(*inputs, state, found)
    return outputs, last, found.observer.statistics()


class Wkv6Function(torch.autograd.Function):
    """Forward and backward of `wkv6`."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state."""
        outputs, last, saved = room(v), room(state), plan.checkpoints(v)
        record = Wkv6(statistics=plan.observer.record())
        plan.fill(record, saved)
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
        ctx.plan.fill(record, saved)
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
    inputs = tuple(None if y is None else y.to(state.dtype) for y in (x, dt, A, B, C, D))
    steps, heads, P = x.shape[1:]
    found = plan(inputs, (steps, heads, B.shape[3], P), state, cu_seqlens, observe)
    outputs, last = SsdFunction.apply(*inputs, state, found)
    return outputs, last, found.observer.statistics()


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
        outputs, last, saved = room(x), room(state), plan.checkpoints(x)
        record = Ssd(statistics=plan.observer.record(), groups=B.shape[2])
        plan.fill(record, saved)
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
        ctx.plan.fill(record, saved)
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
