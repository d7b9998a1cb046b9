"""`causal_conv1d` on the compiled library. Formulas: `src/convolution.hpp`."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statecheck_kernels.contract import Observe, Results
from statecheck_kernels.cpu.planning import Plan, widened
from statecheck_kernels.cpu.records import Convolution, put, room, run


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """The causal convolution, as :meth:`statecheck_kernels.contract.Form.causal_conv1d` says."""
    inputs = widened(state, x, weight, bias)
    plan = Plan.of(inputs, state, cu_seqlens, observe, chunk=1)
    outputs, last = ConvolutionFunction.apply(*inputs, state, plan, silu)
    return outputs, last, plan.observer.statistics()


def _record(plan: Plan, weight: Tensor, silu: bool) -> Convolution:
    """The record of a call, without its tensors."""
    channels, taps = weight.shape
    return Convolution(sequences=plan.packing.record(), channels=channels, taps=taps, silu=int(silu))


class ConvolutionFunction(torch.autograd.Function):
    """Forward and backward of `causal_conv1d`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, plan: Plan, silu: bool
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last W - 1 inputs."""
        outputs, last = room(x), room(state)
        record = _record(plan, weight, silu)
        record.statistics = plan.observer.record()
        put(record, x=x, weight=weight, bias=bias, initial=state, final=last, y=outputs)
        run("sk_convolution_forward", record, x.dtype)
        if plan.training:
            ctx.plan, ctx.silu = plan, silu
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, weight, bias, state)
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs and of the initial state."""
        x, weight, bias, state = ctx.saved_tensors
        d_x, d_state = room(x), room(state)
        d_weight = weight.new_zeros(len(state), *weight.shape)
        d_bias = None if bias is None else weight.new_zeros(len(state), len(weight))
        record = _record(ctx.plan, weight, ctx.silu)
        dy = torch.zeros_like(x) if d_outputs is None else d_outputs
        put(record, x=x, weight=weight, bias=bias, initial=state, dy=dy, d_final=d_last)
        put(record, d_x=d_x, d_weight=d_weight, d_bias=d_bias, d_initial=d_state)
        run("sk_convolution_backward", record, x.dtype)
        return d_x, d_weight.sum(0), None if d_bias is None else d_bias.sum(0), d_state, None, None
