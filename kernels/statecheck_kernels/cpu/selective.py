"""`selective_scan` on the compiled library. Formulas: `src/selective.hpp`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.cpu.records import MOMENTS, Observer, Packing, SelectiveScan, constant, put, room, run


@dataclass(frozen=True)
class Plan:
    """What a call needs beside its tensors."""

    packing: Packing
    blocks: int
    observer: Observer
    training: bool

    def record(self, A: Tensor, checkpoints: Tensor | None) -> SelectiveScan:
        """The record of a call, without its tensors."""
        channels, units = A.shape
        saved = None if checkpoints is None else checkpoints.data_ptr()
        return SelectiveScan(sequences=self.packing.record(), channels=channels, N=units, checkpoints=saved)


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
    """Mamba-1, as :meth:`statecheck_kernels.contract.Form.selective_scan` says."""
    inputs = tuple(None if y is None else y.to(state.dtype) for y in (x, dt, A, B, C, D))
    packing = Packing(x.shape[1], len(state), cu_seqlens, constant("sk_scan_chunk"))
    training = torch.is_grad_enabled() and any(y.requires_grad for y in (*inputs, state) if y is not None)
    plan = Plan(packing, constant("sk_blocks", x.shape[2]), Observer(observe, packing, heads=1), training)
    outputs, last = SelectiveScanFunction.apply(*inputs, state, plan)
    return outputs, last, plan.observer.statistics()


class SelectiveScanFunction(torch.autograd.Function):
    """Forward and backward of `selective_scan`."""

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
        outputs, last = room(x), room(state)
        observing = plan.observer.observe is not None
        wanted = plan.training or observing
        room_for = (plan.packing.chunks, plan.blocks, A.shape[1], constant("sk_saved_width", len(A)))
        saved = x.new_empty(room_for) if wanted else None
        record = plan.record(A, saved)
        work = [x.new_zeros(n, dtype=torch.float64) for n in _work(plan)] if observing else []
        if observing:
            record.statistics = plan.observer.record()
            record.moments, record.counts, record.thresholds = (y.data_ptr() for y in work)
        put(record, x=x, dt=dt, A=A, B=B, C=C, D=D, initial=state, final=last, y=outputs)
        run("sk_selective_forward", record, x.dtype)
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
        plan: Plan = ctx.plan
        d_x, d_dt, d_state = room(x), room(dt), x.new_empty(ctx.state)
        d_B, d_C = (y.new_empty(*y.shape[:2], plan.blocks, y.shape[2]) for y in (B, C))
        d_A = A.new_zeros(len(d_state), *A.shape)
        d_D = None if D is None else A.new_zeros(len(d_state), len(A))
        record = plan.record(A, saved)
        dy = torch.zeros_like(x) if d_outputs is None else d_outputs
        put(record, x=x, dt=dt, A=A, B=B, C=C, D=D, dy=dy, d_final=d_last)
        put(record, d_x=d_x, d_dt=d_dt, d_A=d_A, d_B=d_B, d_C=d_C, d_D=d_D, d_initial=d_state)
        run("sk_selective_backward", record, x.dtype)
        return d_x, d_dt, d_A.sum(0), d_B.sum(2), d_C.sum(2), None if d_D is None else d_D.sum(0), d_state, None


def _work(plan: Plan) -> tuple[int, int, int]:
    """Numbers of the moments, the counts and the thresholds of the observed steps."""
    assert plan.observer.observe is not None
    packing = plan.packing
    steps = (1 if packing.packed else packing.count) * (packing.steps // plan.observer.observe.every)
    return steps * plan.blocks * MOMENTS, steps * plan.blocks, steps
