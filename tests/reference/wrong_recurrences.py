"""Recurrences and convolutions that are wrong in one place, to stand where a layer calls those of the kernels."""

from collections.abc import Callable

import torch
from statecheck_kernels import Observe, Scan, causal_conv1d, ssd, wkv6
from torch import Tensor
from torch.nn import functional

Change = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def decay_after_the_write(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, *, statistics: Observe | None = None
) -> Scan:
    """S_t = diag(w_t) (S_t-1 + k_t^T v_t): the current token's own decay is on what it writes."""
    answers, last = [], state
    for t in range(r.shape[1]):
        now = slice(t, t + 1)
        answers.append(wkv6(r[:, now], k[:, now], v[:, now], log_w[:, now], u, last).outputs)
        last = log_w[:, t].exp().unsqueeze(-1) * (last + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2))
    return Scan(torch.cat(answers, 1), last, None, "wrong")


def with_bonus(value: float) -> Callable[..., Scan]:
    """0: no bonus; 1: the current token counts as it does in plain linear attention."""

    def mutant(
        r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, *, statistics: Observe | None = None
    ) -> Scan:
        return wkv6(r, k, v, log_w, torch.full_like(u, value), state)

    return mutant


def ssd_of(change: Change) -> Callable[..., Scan]:
    """The recurrence on other x, dt, A, B, C than were given."""

    def mutant(*arguments: Tensor, statistics: Observe | None = None) -> Scan:
        x, dt, A, B, C, D, state = arguments
        other_x, dt, A, B, C = change(x, dt, A, B, C)
        scan = ssd(other_x, dt, A, B, C, None, state)
        return scan._replace(outputs=scan.outputs + D.unsqueeze(-1) * x)  # the skip is what it was

    return mutant


def decayed(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """h_t = a_t (h_t-1 + dt_t x_t B_t^T)."""
    return x * (dt * A).exp().unsqueeze(-1), dt, A, B, C


def tiled(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """Groups repeated as a whole, 0 1 0 1, not neighbours first, 0 0 1 1."""
    times = x.shape[2] // B.shape[2]
    return x, dt, A, torch.cat([B] * times, 2), torch.cat([C] * times, 2)


def read_before_the_write(*arguments: Tensor, statistics: Observe | None = None) -> Scan:
    """y_t = h_t-1 C_t, as RWKV reads, with no bonus."""
    x, dt, A, B, C, D, state = arguments
    answers, heads = [], x.shape[2]
    for t in range(x.shape[1]):
        read = C[:, t].repeat_interleave(heads // C.shape[2], 1)  # (B, H, N)
        answers.append((state @ read.unsqueeze(-1)).squeeze(-1) + D.unsqueeze(-1) * x[:, t])
        now = slice(t, t + 1)
        state = ssd(x[:, now], dt[:, now], A, B[:, now], C[:, now], None, state).state
    return Scan(torch.stack(answers, 1), state, None, "wrong")


def late_by_one(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, *, silu: bool, statistics: Observe | None = None
) -> Scan:
    """A convolution that sees the tokens before the current one, so one less."""
    return causal_conv1d(x, functional.pad(weight, (-1, 1)), bias, state, silu=silu)


def without_silu(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, *, silu: bool, statistics: Observe | None = None
) -> Scan:
    return causal_conv1d(x, weight, bias, state)


def scan_by(slip: str) -> Callable[..., Scan]:
    """Mamba's recurrence as a loop, with one of these slips, or with "no slip"."""

    def mutant(*arguments: Tensor, statistics: Observe | None = None) -> Scan:
        x, dt, A, B, C, D, state = arguments
        answers = []
        for t in range(x.shape[1]):
            step = dt[:, t].unsqueeze(-1)  # (B, D, 1)
            decay, read = (step * A).exp(), C[:, t].unsqueeze(1)  # (B, D, N), (B, 1, N)
            weight = torch.expm1(step * A) / A if slip == "exact integral" else step
            if slip == "decay on the write":
                weight = weight * decay
            before, written = state, weight * x[:, t].unsqueeze(-1) * B[:, t].unsqueeze(1)
            state = decay * state + written
            answers.append(((before if slip == "read before the write" else state) * read).sum(-1) + D * x[:, t])
        return Scan(torch.stack(answers, 1), state, None, "wrong")

    return mutant
