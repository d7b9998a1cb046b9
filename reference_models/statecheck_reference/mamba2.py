"""The Mamba-2 mixer: a selective state space model whose heads each forget at one rate a token.

Paper: Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", arXiv 2405.21060, sections 6 (the chunked form) and 7 (the block).

Glossary (our names -> the paper's symbols), one head, one token; E inner width, H heads of P = E / H channels, G groups
------------------------------------------------------------------------------------------------------------------------
    inputs        u_t   (W)      what enters the layer
    gate          z_t   (E)      what of the answer passes: SiLU(z_t)
    x             x_t   (P)      what is written, after the convolution
    write, read   B_t, C_t (N)   where it is written, where it is read; shared by the H / G heads of a group
    window        (E + 2 G N, 3) the three inputs of the causal convolution before x_t, B_t, C_t       state `conv`
    step          dt_t           softplus(dt_t + dt_bias): how much of the present is written
    log decay     dt_t A         A = -exp(A_log) below 0: what is kept is exp(dt_t A)
    state         h_t   (P, N)   h_t = exp(dt_t A) h_t-1 + dt_t x_t B_t^T                              state `ssm`
    answer        y_t   (P)      y_t = h_t C_t + D x_t
    output        o_t   (W)      W_o RMSNorm(y_t * SiLU(z_t)), the mean square taken over each group's channels

Parameters bear the names of the published code (`in_proj`, `conv1d`, `dt_bias`, `A_log`, `D`, `norm`, `out_proj`), the
rows of `in_proj` in its order z, x, B, C, dt.

Departures: none in the formulas. Steps are not clamped (the published limits are 0 and infinity); A starts uniform in
1..16 and dt log-uniform in 0.001..0.1, as published; no initial state is learned. `in_proj` starts normal with a
standard deviation of W^-0.5, 1.7 times that of the published code (torch's default), and the bias of the convolution at
zero, which is uniform there.

The recurrence and the convolution are those of `statecheck_kernels`, in the fastest form that the machine has.
"""

import math
from collections.abc import Mapping

import torch
from statecheck_kernels import Observe, StateStatistics, causal_conv1d, ssd
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTION = 4  # tokens that the causal convolution sees


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * SiLU(z)) with the mean square over each of `groups` equal parts of the channels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups = groups

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """(..., E) twice to (..., E)."""
        parts = (x * functional.silu(z)).unflatten(-1, (self.groups, -1))  # (..., G, E / G)
        return self.weight * functional.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(-2)


class Mamba2Mixer(nn.Module):
    """The Mamba-2 layer: (B, T, W) and a state to (B, T, W) and the next state; see the glossary above.

    `norm_groups` other than 0 stands in for the groups in the norm of the answer.

    >>> layer = Mamba2Mixer(width=8, inner=16, heads=4, groups=2, state_size=3)
    >>> outputs, conv, ssm = layer(torch.zeros(1, 5, 8), torch.zeros(1, 28, 3), torch.zeros(1, 4, 4, 3))
    >>> outputs.shape, conv.shape, ssm.shape
    (torch.Size([1, 5, 8]), torch.Size([1, 28, 3]), torch.Size([1, 4, 4, 3]))
    """

    def __init__(self, width: int, inner: int, heads: int, groups: int, state_size: int, norm_groups: int = 0) -> None:
        super().__init__()
        self.inner, self.heads, self.groups, self.state_size = inner, heads, groups, state_size
        channels = inner + 2 * groups * state_size
        self.in_proj = nn.Linear(width, inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, CONVOLUTION, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, norm_groups or groups)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.log_decay: Tensor | None = None  # of the last call (B, T, H): a signal to look at
        self.statistics: dict[str, StateStatistics | None] = {}  # of the last call, by state
        self.form = ""  # of the recurrence that ran in the last call
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.in_proj.weight, std=self.in_proj.in_features**-0.5)
        nn.init.normal_(self.out_proj.weight, std=self.out_proj.in_features**-0.5)
        nn.init.uniform_(self.conv1d.weight, -(CONVOLUTION**-0.5), CONVOLUTION**-0.5)
        nn.init.zeros_(self.conv1d.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of this is `step`

    def forward(
        self, inputs: Tensor, conv: Tensor, ssm: Tensor, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `conv` (B, E + 2 G N, 3) and the next `ssm` (B, H, P, N).

        `observe` asks for :attr:`statistics` of "conv" and "ssm".
        """
        observe = observe or {}
        states = self.groups * self.state_size
        z, entering, dt = self.in_proj(inputs).split([self.inner, self.inner + 2 * states, self.heads], -1)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        convolved = causal_conv1d(entering, weight, bias, conv, silu=True, statistics=observe.get("conv"))
        x, write, read = convolved.outputs.split([self.inner, states, states], -1)
        x = x.unflatten(-1, (self.heads, -1))  # (B, T, H, P)
        write, read = (y.unflatten(-1, (self.groups, -1)) for y in (write, read))  # (B, T, G, N)
        step, rate = functional.softplus(dt + self.dt_bias), -self.A_log.exp()  # (B, T, H), (H)
        self.log_decay = (step * rate).detach()
        scan = ssd(x, step, rate, write, read, self.D, ssm, statistics=observe.get("ssm"))  # (B, T, H, P)
        self.statistics = {"conv": convolved.statistics, "ssm": scan.statistics}
        self.form = scan.form
        return self.out_proj(self.norm(scan.outputs.flatten(-2), z)), convolved.state, scan.state
