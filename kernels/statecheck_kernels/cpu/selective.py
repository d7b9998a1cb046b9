"""`selective_scan` on the compiled library. Formulas: `src/selective.hpp`."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.cpu.planning import Plan, widened
from statecheck_kernels.cpu.records import MOMENTS, SelectiveScan, constant, put, room, run


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
    inputs = widened(state, x, dt, A, B, C, D)
    plan = Plan.of(inputs, state, cu_seqlens, observe, constant("sk_scan_chunk"))
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
        channels, units = A.shape
        blocks = constant("sk_blocks", channels)
        room_for = (plan.packing.chunks, blocks, units, constant("sk_saved_width", channels))
        saved = x.new_empty(room_for) if plan.training or plan.observing else None
        record = _record(plan, A, saved)
        work = [x.new_zeros(n, dtype=torch.float64) for n in _work(plan, blocks)]
        if plan.observing:
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
        blocks = constant("sk_blocks", len(A))
        d_x, d_dt, d_state = room(x), room(dt), x.new_empty(ctx.state)
        d_B, d_C = (y.new_empty(*y.shape[:2], blocks, y.shape[2]) for y in (B, C))
        d_A = A.new_zeros(len(d_state), *A.shape)
        d_D = None if D is None else A.new_zeros(len(d_state), len(A))
        record = _record(ctx.plan, A, saved)
        dy = torch.zeros_like(x) if d_outputs is None else d_outputs
        put(record, x=x, dt=dt, A=A, B=B, C=C, D=D, dy=dy, d_final=d_last)
        put(record, d_x=d_x, d_dt=d_dt, d_A=d_A, d_B=d_B, d_C=d_C, d_D=d_D, d_initial=d_state)
        run("sk_selective_backward", record, x.dtype)
        return d_x, d_dt, d_A.sum(0), d_B.sum(2), d_C.sum(2), None if d_D is None else d_D.sum(0), d_state, None


def _record(plan: Plan, A: Tensor, checkpoints: Tensor | None) -> SelectiveScan:
    """The record of a call, without its tensors."""
    channels, units = A.shape
    saved = None if checkpoints is None else checkpoints.data_ptr()
    return SelectiveScan(sequences=plan.packing.record(), channels=channels, N=units, checkpoints=saved)


def _work(plan: Plan, blocks: int) -> tuple[int, ...]:
    """Numbers of the moments, the counts and the thresholds of the observed steps; none if there are none."""
    if plan.observer.observe is None:
        return ()
    packing = plan.packing
    steps = (1 if packing.packed else packing.count) * (packing.steps // plan.observer.observe.every)
    return steps * blocks * MOMENTS, steps * blocks, steps
