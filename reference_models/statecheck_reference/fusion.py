"""How the two branches of a parallel block become one: five ways to join what RWKV and Mamba say of the same input.

One block, one token; n_t (W) the normed input, r_t (W) RWKV's answer, m_t (W) Mamba's, b the blend at the start:

    gate           f_t = g_t r_t + (1 - g_t) m_t    g_t = sigmoid(w . n_t + b_g), one number a token; b_g = logit(b)
    channel-gate   the same, with g_t = sigmoid(W_g n_t + b_g) of W numbers
    sum            f_t = a r_t + (1 - a) m_t        a = sigmoid(p), one number a block, learned or fixed at b
    residual       f_t = r_t + c * m_t              c (W) is learned: Mamba corrects RWKV; starts at (1 - b) / b
    project        f_t = W_f [r_t; m_t]             starts as b r_t + (1 - b) m_t

Two branches side by side: Dong et al. 2024, arXiv 2411.13676 (Hymba), whose weighted mean of normed branches is "sum"
with `branch_norm`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Joined = tuple[Tensor, Tensor | None]  # fused (B, T, W); the gate (B, T, 1 or W), None where there is none


@dataclass(frozen=True)
class Fusion:
    """One way: `layer(width, blend, learned)` makes its parameters, `join(layer, n, r, m)` uses them."""

    layer: Callable[[int, float, bool], nn.Module]
    join: Callable[[nn.Module, Tensor, Tensor, Tensor], Joined]


class Weights(nn.Module):
    """`size` numbers that all start at `value`; learned or fixed."""

    def __init__(self, size: int, value: float, learned: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), value), requires_grad=learned)


def _numbers(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")


def _gate(gates: int) -> Callable[[int, float, bool], nn.Module]:
    def layer(width: int, blend: float, learned: bool) -> nn.Module:
        linear = nn.Linear(width, gates or width)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.constant_(linear.bias, math.log(blend / (1 - blend)))
        return linear

    return layer


def _projection(width: int, blend: float, learned: bool) -> nn.Module:
    linear = nn.Linear(2 * width, width, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.cat([blend * torch.eye(width), (1 - blend) * torch.eye(width)], dim=1))
    return linear


def _join_by_gate(layer: nn.Module, normed: Tensor, by_rwkv: Tensor, by_mamba: Tensor) -> Joined:
    gate = torch.sigmoid(layer(normed))  # (B, T, W or 1)
    return torch.lerp(by_mamba, by_rwkv, gate), gate


def _join_by_sum(layer: nn.Module, normed: Tensor, by_rwkv: Tensor, by_mamba: Tensor) -> Joined:
    share = torch.sigmoid(_numbers(layer))  # (1)
    return torch.lerp(by_mamba, by_rwkv, share.to(by_mamba)), share.expand(*normed.shape[:2], 1)


def _join_by_residual(layer: nn.Module, normed: Tensor, by_rwkv: Tensor, by_mamba: Tensor) -> Joined:
    return by_rwkv + _numbers(layer) * by_mamba, None


def _join_by_projection(layer: nn.Module, normed: Tensor, by_rwkv: Tensor, by_mamba: Tensor) -> Joined:
    return layer(torch.cat([by_rwkv, by_mamba], dim=-1)), None


FUSIONS: dict[str, Fusion] = {
    "gate": Fusion(_gate(1), _join_by_gate),
    "channel-gate": Fusion(_gate(0), _join_by_gate),
    "sum": Fusion(
        lambda width, blend, learned: Weights(1, math.log(blend / (1 - blend)), learned),
        _join_by_sum,
    ),
    "residual": Fusion(lambda width, blend, learned: Weights(width, (1 - blend) / blend, learned), _join_by_residual),
    "project": Fusion(_projection, _join_by_projection),
}
