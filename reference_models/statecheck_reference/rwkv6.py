"""RWKV-6 time mixing: linear attention whose memory, a matrix a head, decays channel by channel as the input says.

Paper: Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv 2404.05892,
section 4 (Finch is RWKV-6). Equation numbers below are the paper's sections' own formulas, written out.

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

Departures: none in the formulas. The initial values of decay, bonus and mu are shaped by channel as in the published
code, but one depth in 0..1 serves all of them: in the last block the token shift starts out as none, where that code
starts it at a share 1 / blocks of what it is in the first. Matrices start plainly normal; the width of the low-rank
maps is a setting; there is no channel mixing here, since the block around this layer has its feed-forward part. Where
exp(d) overflows (d above 88 in float32) outputs are right, and the gradient of d is NaN.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 32  # tokens whose answers are matrix products; a power of two
MIXED = ("receptance", "key", "value", "gate", "decay")  # r, k, v, g, d


def wkv6_by_token(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as the paper writes it, token by token: answers (B, T, H, V) and the last state (B, H, K, V).

    `receptance`, `key` and `log_decay` (below or at 0) are (B, T, H, K), `value` (B, T, H, V), `bonus` (H, K), `state`
    (B, H, K, V).

    >>> one = torch.ones(1, 2, 1, 1)
    >>> answers, state = wkv6_by_token(one, one, 3 * one, (0.5 * one).log(), 2 * one[0, 0], torch.zeros(1, 1, 1, 1))
    >>> answers.flatten().tolist(), state.item()  # 2 * 3, then 3 + 2 * 3; 0.5 * 3 + 3
    ([6.0, 9.0], 4.5)
    """
    answers = []
    for r, k, v, log_w in zip(receptance.unbind(1), key.unbind(1), value.unbind(1), log_decay.unbind(1), strict=True):
        written = k.unsqueeze(-1) * v.unsqueeze(-2)  # (B, H, K, V)
        answers.append((r.unsqueeze(-2) @ (state + bonus.unsqueeze(-1) * written)).squeeze(-2))  # (B, H, V)
        state = log_w.exp().unsqueeze(-1) * state + written  # (B, H, K, V)
    return torch.stack(answers, 1) if answers else torch.zeros_like(value), state


def wkv6(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as :func:`wkv6_by_token`, in chunks of 32 tokens, as matrix products; any length, any decay.

    No exponential here is of a positive number and no difference of two sums is taken: however small a decay is, a
    product of decays is computed as the exponential of the sum of just its own logarithms. So a log-decay of -100
    gives what the recurrence gives, 0, where dividing by a running product would overflow.
    """
    time = receptance.shape[1]
    if time <= 1:
        return wkv6_by_token(receptance, key, value, log_decay, bonus, state)
    r, k, v, log_w = (_in_chunks(x) for x in (receptance, key, value, log_decay))  # (B, H, n, C, K or V)
    scores, since_start, until_end, whole = _within_chunk(r, k, log_w)  # (..., C, C), (..., C, K) twice, (..., K)
    diagonal = (r * bonus[:, None, None, :] * k).sum(-1, keepdim=True)  # (B, H, n, C, 1): the current token's own
    writes = (k * until_end.exp()).transpose(-1, -2) @ v  # (B, H, n, K, V): what a chunk leaves in the state
    kept = whole.exp().unsqueeze(-1)  # (B, H, n, K, 1): what it keeps of what was there
    before = []
    for chunk in range(r.shape[2]):
        before.append(state)
        state = kept[:, :, chunk] * state + writes[:, :, chunk]
    answers = (r * since_start.exp()) @ torch.stack(before, 2) + scores @ v + diagonal * v  # (B, H, n, C, V)
    return answers.flatten(2, 3).transpose(1, 2)[:, :time], state


def _in_chunks(x: Tensor) -> Tensor:
    """(B, T, H, D) as (B, H, chunks, C, D). Zeros fill the last chunk: nothing written and, in logarithms, all kept."""
    padded = functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHUNK))
    return padded.transpose(1, 2).unflatten(2, (-1, CHUNK))


def _within_chunk(receptance: Tensor, key: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What tokens of a chunk ask of the ones before them, and the sums of log decays to and from the chunk's ends.

    Inputs are (..., C, K). Returns scores (..., C, C), where [i, j] = sum over channels of r_i k_j w_j+1 ... w_i-1 for
    j < i and 0 elsewhere; the log decay from the chunk's start to each token, itself not counted, (..., C, K); from
    after each token to the chunk's end, (..., C, K); and of the whole chunk (..., K).

    Blocks of 1, 2, 4 ... tokens are joined in pairs. A token of the second block asks one of the first across the
    border between them, and the product of decays falls apart there: exp(sum up to the border) on the key's side,
    exp(sum from the border on) on the receptance's, both at most 1.
    """
    pairs = (*log_decay.shape[:-2], log_decay.shape[-2], 1)
    since_start = until_end = log_decay.new_zeros(*pairs, log_decay.shape[-1])  # (..., blocks, tokens, K)
    whole = log_decay  # (..., blocks, K)
    scores = log_decay.new_zeros(*pairs, 1)  # (..., blocks, tokens, tokens)
    while whole.shape[-2] > 1:
        size = scores.shape[-1]
        asking = _second(receptance.unflatten(-2, (-1, size))) * _second(since_start).exp()
        asked = _first(key.unflatten(-2, (-1, size))) * _first(until_end).exp()
        upper, lower = _first(scores), _second(scores)
        scores = torch.cat(
            [functional.pad(upper, (0, size)), torch.cat([asking @ asked.transpose(-1, -2), lower], -1)], -2
        )
        first, second = whole[..., 0::2, :], whole[..., 1::2, :]
        since_start = torch.cat([_first(since_start), _second(since_start) + first.unsqueeze(-2)], -2)
        until_end = torch.cat([_first(until_end) + second.unsqueeze(-2), _second(until_end)], -2)
        whole = first + second
    return scores.squeeze(-3), since_start.squeeze(-3), until_end.squeeze(-3), whole.squeeze(-2)


def _first(blocks: Tensor) -> Tensor:
    """The first block of every pair: (..., blocks, tokens, D) -> (..., blocks / 2, tokens, D)."""
    return blocks[..., 0::2, :, :]


def _second(blocks: Tensor) -> Tensor:
    return blocks[..., 1::2, :, :]


class TimeMix(nn.Module):
    """The RWKV-6 layer: (B, T, W) and a state to (B, T, W) and the next state; see the glossary above.

    `depth` in 0..1 says how far up the stack the layer is: initial values depend on it.

    >>> layer = TimeMix(width=8, heads=2, low_rank=4, depth=0.0)
    >>> outputs, shift, wkv = layer(torch.zeros(1, 5, 8), torch.zeros(1, 8), torch.zeros(1, 2, 4, 4))
    >>> outputs.shape, shift.shape, wkv.shape
    (torch.Size([1, 5, 8]), torch.Size([1, 8]), torch.Size([1, 2, 4, 4]))
    """

    def __init__(self, width: int, heads: int, low_rank: int, depth: float) -> None:
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
        self.norm = nn.GroupNorm(heads, width, eps=64e-5)  # LayerNorm of each head; eps as published
        self.output = nn.Linear(width, width, bias=False)  # W_o
        self.log_decay: Tensor | None = None  # of the last call (B, T, H, K): a signal to look at
        self._initialise(depth)

    def _initialise(self, depth: float) -> None:
        width = self.decay.numel()
        channel = torch.arange(width) / width  # 0 .. 1
        late = 1 - depth
        with torch.no_grad():
            self.mu_x.copy_(1 - channel**late)
            powers = {"receptance": 0.5 * late, "key": late, "value": late, "gate": 0.5 * late, "decay": late}
            for mu, name in zip(self.mu, MIXED, strict=True):
                mu.copy_(1 - channel ** powers[name])
            self.mu[MIXED.index("value")] -= 0.3 * depth
            self.decay.copy_(-6 + 5 * (torch.arange(width) / max(width - 1, 1)) ** (0.7 + 1.3 * depth))
            zigzag = ((torch.arange(width) + 1) % 3 - 1) * 0.1
            self.bonus.copy_((depth * (1 - channel) + zigzag).view_as(self.bonus))
        for parameter in (self.mix_down, self.decay_down):
            nn.init.zeros_(parameter)
        for parameter in (self.mix_up, self.decay_up):
            nn.init.uniform_(parameter, -0.01, 0.01)
        for linear in (self.receptance, self.key, self.value, self.gate, self.output):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, inputs: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `shift` (B, W) and the next `wkv` (B, H, K, V)."""
        seen = torch.cat([shift.unsqueeze(1), inputs], 1)  # (B, 1 + T, W)
        before = seen[:, :-1]  # (B, T, W): x_t-1
        mixed = dict(zip(MIXED, self._lerp(inputs, before).unbind(0), strict=True))  # (B, T, W) each
        receptance = self._by_head(self.receptance(mixed["receptance"]))  # (B, T, H, K)
        key = self._by_head(self.key(mixed["key"]))  # (B, T, H, K)
        value = self._by_head(self.value(mixed["value"]))  # (B, T, H, V)
        d = self.decay + torch.tanh(mixed["decay"] @ self.decay_down) @ self.decay_up  # (B, T, W)
        log_decay = self._by_head(-d.exp())  # (B, T, H, K)
        self.log_decay = log_decay.detach()
        answers, wkv = wkv6(receptance, key, value, log_decay, self.bonus, wkv)  # (B, T, H, V), (B, H, K, V)
        normed = self.norm(answers.flatten(0, 1).flatten(1)).view_as(inputs)  # (B, T, W)
        return self.output(functional.silu(self.gate(mixed["gate"])) * normed), seen[:, -1], wkv

    def _lerp(self, inputs: Tensor, before: Tensor) -> Tensor:
        """ddlerp for r, k, v, g and d at once: (5, B, T, W)."""
        difference = before - inputs  # (B, T, W)
        low = torch.tanh((inputs + difference * self.mu_x) @ self.mix_down)  # (B, T, 5 R)
        low = low.unflatten(-1, (len(MIXED), -1)).permute(2, 0, 1, 3).flatten(1, 2)  # (5, B T, R)
        share = (low @ self.mix_up).unflatten(1, inputs.shape[:2]) + self.mu[:, None, None]  # (5, B, T, W)
        return inputs + difference * share  # (5, B, T, W)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))
