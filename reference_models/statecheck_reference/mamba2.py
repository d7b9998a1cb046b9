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
1..16 and dt log-uniform in 0.001..0.1, as published; no initial state is learned.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 64  # tokens whose answers are matrix products
CONVOLUTION = 4  # tokens that the causal convolution sees


def ssd_by_token(x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as the paper writes it, token by token: answers (B, T, H, P) and the last state (B, H, P, N).

    `x` (B, T, H, P) is dt_t x_t, `log_decay` (B, T, H) is dt_t A, `write` and `read` are (B, T, G, N), H a multiple of
    G; `state` (B, H, P, N). The skip D x_t is not in it.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> answers, state = ssd_by_token(3 * one, (0.5 * one[..., 0]).log(), one, 2 * one, torch.zeros(1, 1, 1, 1))
    >>> answers.flatten().tolist(), state.item()  # 2 * 3, then 2 * (0.5 * 3 + 3)
    ([6.0, 9.0], 4.5)
    """
    answers = []
    write, read = (_to_heads(y, x.shape[2]) for y in (write, read))  # (B, T, H, N)
    for x_t, log_a, b, c in zip(x.unbind(1), log_decay.unbind(1), write.unbind(1), read.unbind(1), strict=True):
        state = log_a.exp()[..., None, None] * state + x_t.unsqueeze(-1) * b.unsqueeze(-2)  # (B, H, P, N)
        answers.append((state @ c.unsqueeze(-1)).squeeze(-1))  # (B, H, P)
    return torch.stack(answers, 1) if answers else torch.zeros_like(x), state


def ssd(x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same as :func:`ssd_by_token`, in chunks of 64 tokens, as matrix products; any length, any decay.

    Section 6 of the paper. Every product of decays is the exponential of the sum of just its own logarithms (a
    difference of running sums would lose its digits after a decay of exp(-100)).
    """
    time, heads = x.shape[1:3]
    if time <= 1:
        return ssd_by_token(x, log_decay, write, read, state)
    x, b, c = (_in_chunks(y) for y in (x, write, read))  # (B, H, n, C, P), (B, G, n, C, N) twice
    log_a = _in_chunks(log_decay.unsqueeze(-1)).squeeze(-1)  # (B, H, n, C)
    between = _segment_sums(log_a)  # (B, H, n, C, C): from after token j up to token i
    scores = _to_heads(c @ b.transpose(-1, -2), heads, axis=1) * between.exp()  # (B, H, n, C, C)
    b, c = (_to_heads(y, heads, axis=1) for y in (b, c))  # (B, H, n, C, N)
    until_end = between[..., -1, :].exp().unsqueeze(-1)  # (B, H, n, C, 1)
    since_start = log_a.cumsum(-1).exp().unsqueeze(-1)  # (B, H, n, C, 1)
    writes = (x * until_end).transpose(-1, -2) @ b  # (B, H, n, P, N): what a chunk leaves in the state
    before = []
    for chunk in range(x.shape[2]):
        before.append(state)
        state = since_start[:, :, chunk, -1:] * state + writes[:, :, chunk]
    answers = scores @ x + since_start * (c @ torch.stack(before, 2).transpose(-1, -2))  # (B, H, n, C, P)
    return answers.flatten(2, 3).transpose(1, 2)[:, :time], state


def _in_chunks(x: Tensor) -> Tensor:
    """(B, T, H, D) as (B, H, chunks, C, D). Zeros fill the last chunk: nothing written and, in logarithms, all kept."""
    padded = functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHUNK))
    return padded.transpose(1, 2).unflatten(2, (-1, CHUNK))


def _segment_sums(x: Tensor) -> Tensor:
    """(..., C) to (..., C, C): [i, j] = x_j+1 + ... + x_i for j <= i, minus infinity above the diagonal.

    >>> _segment_sums(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[0.0, -inf, -inf], [2.0, 0.0, -inf], [5.0, 3.0, 0.0]]
    """
    lower = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()
    columns = x.unsqueeze(-1).expand(*x.shape, x.shape[-1])  # [i, j] = x_i
    sums = columns.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf)


def _to_heads(x: Tensor, heads: int, axis: int = 2) -> Tensor:
    """Groups along `axis` repeated for their heads, neighbours first."""
    return x if x.shape[axis] == heads else x.repeat_interleave(heads // x.shape[axis], axis)


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

    >>> layer = Mamba2Mixer(width=8, inner=16, heads=4, groups=2, state_size=3)
    >>> outputs, conv, ssm = layer(torch.zeros(1, 5, 8), torch.zeros(1, 28, 3), torch.zeros(1, 4, 4, 3))
    >>> outputs.shape, conv.shape, ssm.shape
    (torch.Size([1, 5, 8]), torch.Size([1, 28, 3]), torch.Size([1, 4, 4, 3]))
    """

    def __init__(self, width: int, inner: int, heads: int, groups: int, state_size: int) -> None:
        super().__init__()
        self.inner, self.heads, self.groups, self.state_size = inner, heads, groups, state_size
        channels = inner + 2 * groups * state_size
        self.in_proj = nn.Linear(width, inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, CONVOLUTION, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, groups)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.log_decay: Tensor | None = None  # of the last call (B, T, H): a signal to look at
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

    def forward(self, inputs: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `conv` (B, E + 2 G N, 3) and the next `ssm` (B, H, P, N)."""
        states = self.groups * self.state_size
        z, convolved, dt = self.in_proj(inputs).split([self.inner, self.inner + 2 * states, self.heads], -1)
        seen = torch.cat([conv, convolved.transpose(1, 2)], -1)  # (B, E + 2 G N, 3 + T)
        convolved = functional.silu(self.conv1d(seen)).transpose(1, 2)  # (B, T, E + 2 G N)
        x, write, read = convolved.split([self.inner, states, states], -1)
        x = x.unflatten(-1, (self.heads, -1))  # (B, T, H, P)
        write, read = (y.unflatten(-1, (self.groups, -1)) for y in (write, read))  # (B, T, G, N)
        step = functional.softplus(dt + self.dt_bias)  # (B, T, H)
        log_decay = -step * self.A_log.exp()  # (B, T, H)
        self.log_decay = log_decay.detach()
        answers, ssm = ssd(x * step.unsqueeze(-1), log_decay, write, read, ssm)  # (B, T, H, P), (B, H, P, N)
        answers = (answers + self.D.unsqueeze(-1) * x).flatten(-2)  # (B, T, E)
        return self.out_proj(self.norm(answers, z)), seen[..., -(CONVOLUTION - 1) :], ssm
