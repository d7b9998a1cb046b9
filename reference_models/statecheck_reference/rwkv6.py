"""RWKV-6 time mixing: linear attention whose memory, a matrix a head, decays channel by channel as the input says.

Paper: Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv 2404.05892,
section 4: Finch, which is RWKV-6, its token shift and its time mixing. Their formulas stand in the glossary.

Glossary (our names -> the paper's symbols), one head, one token; W = width, H heads, K = V = W / H
---------------------------------------------------------------------------------------------------
    inputs        x_t   (W)     what enters the layer
    shift         x_t-1 (W)     the input before, state `shift`: the token shift
    receptance    r_t   (K)     what is asked of the memory (a query)
    key, value    k_t, v_t (K), (V)     what is written under which address
    gate          g_t   (V)     what of the answer passes: SiLU(g_t)
    log decay     log w_t = -exp(d_t)   (K) below 0; w_t in (0, 1) is what each row of the memory keeps
    bonus         u     (K)     what the current token counts for, in place of a decay
    state         S_t   (K, V)  S_t = diag(w_t) S_t-1 + k_t^T v_t                        state `wkv`
    answer        y_t   (V)     y_t = r_t (S_t-1 + diag(u) k_t^T v_t)
    output        o_t   (W)     W_o concat over heads of SiLU(g_t) * LayerNorm(y_t)

    lerp          ddlerp_q(x_t, x_t-1) = x_t + (x_t-1 - x_t) * (mu_q + tanh((x_t + (x_t-1 - x_t) mu_x) A_q) B_q)
                  the data-dependent token shift; q stands for r, k, v, g and d, each with its mu_q, A_q, B_q
    d_t           decay + tanh(ddlerp_d(x_t, x_t-1) A) B

Departures: none in the formulas. Decay, bonus and mu start by channel and depth as in the published code. Matrices
start plainly normal, W_o too, which starts at zero there, and the scale of the LayerNorm at 1, which starts there at
((1 + layer) / layers)^0.7. The width of the low-rank maps is a setting; there is no channel mixing here, since the
block around this layer has its feed-forward part. Where exp(d) overflows (d above 88 in float32) outputs are right, and
the gradient of d is NaN.

The recurrence and the token shift are those of `statecheck_kernels`, in the fastest form that the machine has.
"""

from collections.abc import Mapping

import torch
from statecheck_kernels import Observe, StateStatistics, causal_conv1d, wkv6
from torch import Tensor, nn
from torch.nn import functional

MIXED = ("receptance", "key", "value", "gate", "decay")  # r, k, v, g, d


class TimeMix(nn.Module):
    """The RWKV-6 layer: (B, T, W) and a state to (B, T, W) and the next state; see the glossary above.

    It is number `layer`, from 0, of `layers` in the stack: initial values depend on it. `norm_groups` other than 0
    stands in for the heads in the norm of the answer.

    >>> layer = TimeMix(width=8, heads=2, low_rank=4, layer=0, layers=1)
    >>> outputs, shift, wkv = layer(torch.zeros(1, 5, 8), torch.zeros(1, 8), torch.zeros(1, 2, 4, 4))
    >>> outputs.shape, shift.shape, wkv.shape
    (torch.Size([1, 5, 8]), torch.Size([1, 8]), torch.Size([1, 2, 4, 4]))
    """

    def __init__(self, width: int, heads: int, low_rank: int, layer: int, layers: int, norm_groups: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.mu_x = nn.Parameter(torch.empty(width))  # mu_x
        self.mu = nn.Parameter(torch.empty(len(MIXED), width))  # mu_q, in the order of MIXED
        self.mix_down = nn.Parameter(torch.empty(width, len(MIXED) * low_rank))  # A_q side by side
        self.mix_up = nn.Parameter(torch.empty(len(MIXED), low_rank, width))  # B_q
        self.decay = nn.Parameter(torch.empty(width))
        self.decay_down = nn.Parameter(torch.empty(width, 2 * low_rank))  # A
        self.decay_up = nn.Parameter(torch.empty(2 * low_rank, width))  # B
        self.bonus = nn.Parameter(torch.empty(heads, width // heads))  # u
        self.receptance, self.key, self.value, self.gate = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = nn.GroupNorm(norm_groups or heads, width, eps=64e-5)  # LayerNorm of each head; eps as published
        self.output = nn.Linear(width, width, bias=False)  # W_o
        self.log_decay: Tensor | None = None  # of the last call (B, T, H, K): a signal to look at
        self.statistics: dict[str, StateStatistics | None] = {}  # of the last call, by state
        self.form = ""  # of the recurrence that ran in the last call
        self._initialise(layer, layers)

    def _initialise(self, layer: int, layers: int) -> None:
        width = self.decay.numel()
        channel = torch.arange(width)
        share, place = channel / width, channel / max(width - 1, 1)  # 0 .. almost 1, 0 .. 1
        depth, late = layer / max(layers - 1, 1), 1 - layer / layers  # 0 .. 1, 1 .. almost 0
        with torch.no_grad():
            self.mu_x.copy_(1 - share**late)
            powers = {"receptance": 0.5 * late, "key": late, "value": late, "gate": 0.5 * late, "decay": late}
            for mu, name in zip(self.mu, MIXED, strict=True):
                mu.copy_(1 - share ** powers[name])
            self.mu[MIXED.index("value")] -= 0.3 * depth
            self.decay.copy_(-6 + 5 * place ** (0.7 + 1.3 * depth))
            zigzag = ((channel + 1) % 3 - 1) * 0.1
            self.bonus.copy_((depth * (1 - place) + zigzag).view_as(self.bonus))
        for parameter in (self.mix_down, self.decay_down):
            nn.init.zeros_(parameter)
        for parameter in (self.mix_up, self.decay_up):
            nn.init.uniform_(parameter, -0.01, 0.01)
        for linear in (self.receptance, self.key, self.value, self.gate, self.output):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(
        self, inputs: Tensor, shift: Tensor, wkv: Tensor, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `shift` (B, W) and the next `wkv` (B, H, K, V).

        `observe` asks for :attr:`statistics` of "shift" and "wkv".
        """
        observe = observe or {}
        earlier = inputs.new_tensor([1.0, 0.0]).expand(self.decay.numel(), 2)  # the token shift as a convolution
        shifted = causal_conv1d(inputs, earlier, state=shift.unsqueeze(-1), statistics=observe.get("shift"))
        before = shifted.outputs  # (B, T, W): x_t-1
        mixed = dict(zip(MIXED, self._lerp(inputs, before).unbind(0), strict=True))  # (B, T, W) each
        receptance = self._by_head(self.receptance(mixed["receptance"]))  # (B, T, H, K)
        key = self._by_head(self.key(mixed["key"]))  # (B, T, H, K)
        value = self._by_head(self.value(mixed["value"]))  # (B, T, H, V)
        d = self.decay + torch.tanh(mixed["decay"] @ self.decay_down) @ self.decay_up  # (B, T, W)
        log_decay = self._by_head(-d.exp())  # (B, T, H, K)
        self.log_decay = log_decay.detach()
        scan = wkv6(receptance, key, value, log_decay, self.bonus, wkv, statistics=observe.get("wkv"))  # (B, T, H, V)
        self.statistics = {"shift": shifted.statistics, "wkv": scan.statistics}
        self.form = scan.form
        normed = self.norm(scan.outputs.flatten(0, 1).flatten(1)).view_as(inputs)  # (B, T, W)
        return self.output(functional.silu(self.gate(mixed["gate"])) * normed), shifted.state.squeeze(-1), scan.state

    def _lerp(self, inputs: Tensor, before: Tensor) -> Tensor:
        """ddlerp for r, k, v, g and d at once: (5, B, T, W)."""
        difference = before - inputs  # (B, T, W)
        low = torch.tanh((inputs + difference * self.mu_x) @ self.mix_down)  # (B, T, 5 R)
        low = low.unflatten(-1, (len(MIXED), -1)).permute(2, 0, 1, 3).flatten(1, 2)  # (5, B T, R)
        share = (low @ self.mix_up).unflatten(1, inputs.shape[:2]) + self.mu[:, None, None]  # (5, B, T, W)
        return inputs + difference * share  # (5, B, T, W)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))
