"""The Mamba mixer: a selective state space model in which every channel and every unit forgets at a rate of its own.

Paper: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752: equation 2
(the recurrence), section 3.2 with algorithm 2 (what is selected), figure 3 (the block), section 3.6 (first values).

Glossary (our names -> the paper's symbols), one token; W width, E inner width, N units a channel, R rank of the step
---------------------------------------------------------------------------------------------------------------------
    inputs        (W)           what enters the layer
    gate          z_t   (E)     what of the answer passes: SiLU(z_t)
    x             x_t   (E)     what is written, after the convolution and its SiLU
    window        (E, 3)        the three inputs of the causal convolution before x_t             state `conv`
    write, read   B_t, C_t (N)  where it is written, where it is read; the same for all channels
    low           (R)           the step, before W_dt spreads it over the channels
    step          Delta_t (E)   softplus(W_dt low_t + bias): how much of the present is written
    rate          A     (E, N)  -exp(A_log), below 0
    log decay     Delta_t A (E, N)   what is kept is exp(Delta_t A)
    state         h_t   (E, N)  h_t = exp(Delta_t A) h_t-1 + (Delta_t x_t) B_t^T                  state `ssm`
    answer        y_t   (E)     y_t = h_t C_t + D x_t
    output        (W)           W_o (y_t * SiLU(z_t))

Parameters bear the names and shapes of the published code (`in_proj`, `conv1d`, `x_proj`, `dt_proj`, `A_log`, `D`,
`out_proj`), so that its state dict loads as it is: the rows of `in_proj` in its order x, z, those of `x_proj` in its
order low, B, C.

Departures: none in the formulas. B is discretised as the published code has it, Delta_t B_t, where equation 4 of the
paper has the exact integral. First values are published ones: A = -1 .. -N in every channel, steps log-uniform in
0.001..0.1, `dt_proj` uniform within R^-0.5, the rest torch's; what shrinks `out_proj` with depth is left to the model.

The recurrence and the convolution are those of `statecheck_kernels`, in the fastest form that the machine has.
"""

import math
from collections.abc import Mapping

import torch
from statecheck_kernels import Observe, StateStatistics, causal_conv1d, selective_scan
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference.mamba2 import CONVOLUTION


class Mamba1Mixer(nn.Module):
    """The Mamba layer: (B, T, W) and a state to (B, T, W) and the next state; see the glossary above.

    `rank` is that of the step's projection (`dt_rank`; published models have width / 16, rounded up).

    >>> layer = Mamba1Mixer(width=8, inner=16, state_size=3, rank=1)
    >>> outputs, conv, ssm = layer(torch.zeros(1, 5, 8), torch.zeros(1, 16, 3), torch.zeros(1, 16, 3))
    >>> outputs.shape, conv.shape, ssm.shape
    (torch.Size([1, 5, 8]), torch.Size([1, 16, 3]), torch.Size([1, 16, 3]))
    """

    def __init__(self, width: int, inner: int, state_size: int, rank: int) -> None:
        super().__init__()
        self.inner, self.state_size, self.rank = inner, state_size, rank
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CONVOLUTION, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state_size))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.statistics: dict[str, StateStatistics | None] = {}  # of the last call, by state
        self.form = ""  # of the recurrence that ran in the last call
        self._decay: tuple[Tensor, Tensor] | None = None  # of the last call: step (B, T, E) and rate (E, N)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.state_size + 1).log())
            step = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of this is `step`

    @property
    def log_decay(self) -> Tensor | None:
        """Of the last call (B, T, E, N): a signal to look at, N times as large as anything that the layer keeps."""
        if self._decay is None:
            return None
        step, rate = self._decay
        return step.unsqueeze(-1) * rate

    def forward(
        self, inputs: Tensor, conv: Tensor, ssm: Tensor, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `conv` (B, E, 3) and the next `ssm` (B, E, N).

        `observe` asks for :attr:`statistics` of "conv" and "ssm".
        """
        observe = observe or {}
        entering, z = self.in_proj(inputs).chunk(2, -1)  # (B, T, E) each
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        convolved = causal_conv1d(entering, weight, bias, conv, silu=True, statistics=observe.get("conv"))
        x = convolved.outputs  # (B, T, E)
        low, write, read = self.x_proj(x).split([self.rank, self.state_size, self.state_size], -1)
        with torch.autocast(inputs.device.type, enabled=False):  # in bfloat16 a bias of -5 has steps of 3 %
            step = functional.softplus(self.dt_proj(low.to(self.A_log.dtype)))  # (B, T, E)
        rate = -self.A_log.exp()  # (E, N)
        self._decay = step.detach(), rate.detach()
        scan = selective_scan(x, step, rate, write, read, self.D, ssm, statistics=observe.get("ssm"))  # (B, T, E)
        self.statistics = {"conv": convolved.statistics, "ssm": scan.statistics}
        self.form = scan.form
        return self.out_proj(scan.outputs * functional.silu(z)), convolved.state, scan.state
