"""Eager loops in plain torch: what one writes without a library. None builds a (B, L, D, N) tensor.

`index` reads `x[:, t]` in the loop: in a backward pass each such reading makes and adds a gradient of the full size, so
its time grows with the square of the length. `unbind` splits once. `checkpointed` keeps the state of every 32nd step
and computes the others again on the way back, with the gradient written by hand.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import Inputs

CHUNK = 32


def scan_by_index(i: Inputs) -> Tensor:
    """The selective scan, time step by time step, each read by its index: outputs (B, T, D)."""
    x, dt, A, B, C, D = (i[name] for name in ("x", "dt", "A", "B", "C", "D"))
    h = x.new_zeros(x.shape[0], *A.shape)  # (B, D, N)
    outputs = []
    for t in range(x.shape[1]):
        h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * x[:, t]).unsqueeze(-1) * B[:, t, None]
        outputs.append((h @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1) + D * x


def scan_by_unbind(i: Inputs) -> Tensor:
    """The same with the inputs split once: the best loop that needs no gradient by hand."""
    x, dt, A, B, C, D = (i[name] for name in ("x", "dt", "A", "B", "C", "D"))
    h = x.new_zeros(x.shape[0], *A.shape)  # (B, D, N)
    outputs = []
    for dt_t, dx, b, c in zip(dt.unbind(1), (dt * x).unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = (dt_t.unsqueeze(-1) * A).exp() * h + dx.unsqueeze(-1) * b.unsqueeze(1)
        outputs.append((h @ c.unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1) + D * x


def scan_checkpointed(i: Inputs) -> Tensor:
    """The same with a gradient by hand that keeps the state of every 32nd step."""
    outputs: Tensor = _Checkpointed.apply(i["x"], i["dt"], i["A"], i["B"], i["C"])
    return outputs + i["D"] * i["x"]


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], *A.shape)  # (B, D, N)
        outputs, kept = torch.empty_like(x), []
        dx = dt * x
        for t in range(x.shape[1]):
            if t % CHUNK == 0:
                kept.append(h)
            h = (dt[:, t, :, None] * A).exp_().mul_(h).addcmul_(dx[:, t, :, None], B[:, t, None])
            outputs[:, t] = (h @ C[:, t].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(x, dt, A, B, C, *kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, *kept = ctx.saved_tensors
        (g,) = upstream
        dx = dt * x
        d_dx, d_dt, d_A, d_B, d_C = (torch.zeros_like(y) for y in (x, dt, A, B, C))
        carried = torch.zeros_like(kept[0]) if kept else None  # (B, D, N): gradient of the state
        for number in reversed(range(len(kept))):
            start, end = number * CHUNK, min((number + 1) * CHUNK, x.shape[1])
            states, decays = [kept[number]], []
            for t in range(start, end):
                decays.append((dt[:, t, :, None] * A).exp_())
                states.append((decays[-1] * states[-1]).addcmul_(dx[:, t, :, None], B[:, t, None]))
            for t in reversed(range(start, end)):
                before, h = states[t - start], states[t - start + 1]
                d_C[:, t] = (g[:, t, None] @ h).squeeze(1)
                carried = carried.addcmul_(g[:, t, :, None], C[:, t, None])  # type: ignore[union-attr]
                d_B[:, t] = (dx[:, t, None] @ carried).squeeze(1)
                d_dx[:, t] = (carried @ B[:, t].unsqueeze(-1)).squeeze(-1)
                carried = carried.mul_(decays[t - start])
                d_exponent = carried * before  # of dt A
                d_A += torch.einsum("bdn,bd->dn", d_exponent, dt[:, t])
                d_dt[:, t] = (d_exponent * A).sum(-1)
        return d_dx * dt, d_dt + d_dx * x, d_A, d_B, d_C


def wkv_by_unbind(i: Inputs) -> Tensor:
    """RWKV-6's recurrence with the inputs split once: outputs (B, T, H, V)."""
    r, k, v, w = i["r"], i["k"], i["v"], i["log_w"].exp()
    u = i["u"].unsqueeze(-1)  # (H, K, 1)
    state = v.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[3])  # (B, H, K, V)
    outputs = []
    for r_t, k_t, v_t, w_t in zip(r.unbind(1), k.unbind(1), v.unbind(1), w.unbind(1), strict=True):
        written = k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append((r_t.unsqueeze(-2) @ (state + u * written)).squeeze(-2))
        state = w_t.unsqueeze(-1) * state + written
    return torch.stack(outputs, 1)


def ssd_by_unbind(i: Inputs) -> Tensor:
    """Mamba-2's recurrence, of one group, with the inputs split once: outputs (B, T, H, P)."""
    x, dt, B, C = i["x"], i["dt"], i["B"].squeeze(2), i["C"].squeeze(2)
    decay = (dt * i["A"]).exp()[..., None, None]  # (B, T, H, 1, 1)
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])  # (B, H, P, N)
    outputs = []
    written = (x * dt.unsqueeze(-1)).unbind(1)
    for dx, a, b, c in zip(written, decay.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = a * state + dx.unsqueeze(-1) * b[:, None, None]
        outputs.append((state @ c[:, None, :, None]).squeeze(-1))
    return torch.stack(outputs, 1) + i["D"].unsqueeze(-1) * x
