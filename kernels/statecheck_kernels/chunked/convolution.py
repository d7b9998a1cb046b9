"""The causal convolution as a sum of W shifted products. Formula: :mod:`statecheck_kernels.reference`."""

import torch
from torch import Tensor
from torch.nn import functional

from statecheck_kernels.contract import Observe, Results, StateStatistics
from statecheck_kernels.layout import Layout
from statecheck_kernels.statistics import Observer

CHUNK = 64  # steps whose windows are in memory at once, for their statistics


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    state: Tensor,
    cu_seqlens: Tensor | None,
    observe: Observe | None,
) -> Results:
    """Shapes in :class:`statecheck_kernels.contract.Form`."""
    layout = Layout.of(x, cu_seqlens)
    wide = layout.lay(x.to(state.dtype))
    seen = torch.cat([state.transpose(1, 2), wide], 1)  # (rows, W - 1 + T, D)
    outputs = torch.zeros_like(wide) if bias is None else bias.to(state.dtype).expand_as(wide)
    for shift, tap in enumerate(weight.to(state.dtype).unbind(1)):
        outputs = torch.addcmul(outputs, tap, seen[:, shift : shift + layout.longest])
    outputs = layout.pack(functional.silu(outputs) if silu else outputs).to(x.dtype)
    return outputs, _last(seen, layout), None if observe is None else _statistics(seen.detach(), layout, observe)


def _last(seen: Tensor, layout: Layout) -> Tensor:
    """The last inputs of each row: (rows, D, W - 1)."""
    lengths = layout.lengths()
    if lengths is None:
        return seen[:, layout.longest :].transpose(1, 2).contiguous()
    width = seen.shape[1] - layout.longest
    column = lengths.unsqueeze(1) + torch.arange(width, device=seen.device)  # (rows, W - 1)
    return seen[torch.arange(layout.rows, device=seen.device).unsqueeze(1), column].transpose(1, 2).contiguous()


def _statistics(seen: Tensor, layout: Layout, observe: Observe) -> StateStatistics:
    """Of the window after every step, a stretch of steps at a time."""
    observer = Observer(layout, observe, 1, seen.device)
    width = seen.shape[1] - layout.longest
    for start in range(0, layout.longest, CHUNK):
        stop = min(start + CHUNK, layout.longest)
        windows = [seen[:, t + 1 : t + 1 + width] for t in range(start, stop)]  # the state after step t
        observer.take(torch.stack(windows, 1).unsqueeze(2))
    return observer.statistics()
