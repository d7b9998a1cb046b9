"""A healthy model of two branches of different kinds, and sequences that need both: the second subject of the culprits.

    fast    a torch.nn.GRU (nonlinear, dense) whose hidden state turns: it follows rotations
    slow    a selective leaky average (linear, diagonal): it follows a level
    fusion  g(t) = sigmoid(W x(t) + b) in 0..1, channel by channel: y(t) = g(t) * fast(t) + (1 - g(t)) * slow(t)

Nothing is trained by gradient descent: the recurrences are set by hand, and both readouts are fitted together in closed
form, within a second. An average that forgets rotations can't follow them, and states that turn hold no level, so that
each branch is needed; what they take over from each other is what the fit found cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

WIDTH = 8  # features of a vector: four pairs, each turning by its own angle
ANGLES = (0.3, 0.5, 0.7, 0.9)  # radians an element


class TurningBranch(nn.Module):
    """A GRU that turns its state: x (B, T, D) and h (B, H) or None to outputs (B, T, D) and the next h.

    With the reset gate near 1 and the update gate z at 1/2, h(t) = z h(t-1) + (1 - z) tanh(W x + U h(t-1)) is about
    p R h(t-1) + (1 - z) W x with a rotation R, for U = (p R - z) / (1 - z): a rotation damped by p, one for each p.
    """

    def __init__(self, retentions: Sequence[float], generator: torch.Generator) -> None:
        super().__init__()
        hidden = WIDTH * len(retentions)
        self.gru = nn.GRU(WIDTH, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, WIDTH)
        with torch.no_grad():
            self._turn(retentions, generator)

    def _turn(self, retentions: Sequence[float], generator: torch.Generator) -> None:
        hidden = self.gru.hidden_size
        w, u, bias, other_bias = self.gru.parameters()  # of the input, of the state; rows in the order r, z, n
        w.copy_(0.04 * torch.randn(w.shape, generator=generator))
        u.copy_(0.02 * torch.randn(u.shape, generator=generator) / hidden**0.5)
        bias.zero_()
        other_bias.zero_()
        bias[:hidden] = 4.0  # r = sigmoid(4), near 1
        turns = torch.block_diag(*(p * rotation(angle) for p in retentions for angle in ANGLES))
        u[2 * hidden :] += 2 * turns - torch.eye(hidden)
        w[2 * hidden :] += 0.04 * torch.eye(WIDTH).repeat(len(retentions), 1)

    def states(self, x: Tensor, h: Tensor | None) -> Tensor:
        """h(t) after each element, (B, T, H)."""
        return self.gru(x, None if h is None else h[None].contiguous())[0]

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        states = self.states(x, h)
        return self.readout(states), states[:, -1]


class LeakyBranch(nn.Module):
    """A selective leaky average: x (B, T, D) and h (B, H) or None to outputs (B, T, D) and the next h.

    h(t) = a(t) h(t-1) + (1 - a(t)) W x(t), a(t) = exp(-exp(rate + S x(t))): what a unit keeps depends on what is read.
    """

    def __init__(self, half_lives: Sequence[float], generator: torch.Generator) -> None:
        super().__init__()
        hidden = WIDTH * len(half_lives)
        rates = math.log(2) / torch.tensor(half_lives)
        self.rate = nn.Parameter(rates.log().repeat_interleave(WIDTH))  # (H,)
        self.selection = nn.Linear(WIDTH, hidden, bias=False)  # S
        self.entrance = nn.Linear(WIDTH, hidden, bias=False)  # W
        self.readout = nn.Linear(hidden, WIDTH)
        with torch.no_grad():
            self.selection.weight.copy_(0.05 * torch.randn(hidden, WIDTH, generator=generator))
            self.entrance.weight.copy_(0.2 * torch.eye(WIDTH).repeat(len(half_lives), 1))

    def states(self, x: Tensor, h: Tensor | None) -> Tensor:
        """h(t) after each element, (B, T, H)."""
        h = x.new_zeros(len(x), len(self.rate)) if h is None else h
        retention = torch.exp(-torch.exp(self.rate + self.selection(x)))  # (B, T, H)
        written = (1 - retention) * self.entrance(x)  # (B, T, H)
        seen = []
        for a, w in zip(retention.unbind(1), written.unbind(1), strict=True):
            h = a * h + w
            seen.append(h)
        return torch.stack(seen, 1)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        states = self.states(x, h)
        return self.readout(states), states[:, -1]


class TwoBranch(nn.Module):
    """Predicts the next vector: (B, T, D) to (B, T, D); states `fast.h` and `slow.h`, (B, H) each.

    >>> model = TwoBranch()
    >>> model(torch.zeros(2, 3, 8)).shape, {name: tuple(h.shape) for name, h in model.get_states().items()}
    (torch.Size([2, 3, 8]), {'fast.h': (2, 24), 'slow.h': (2, 24)})
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fast = TurningBranch((0.93, 0.96, 0.985), generator)
        self.slow = LeakyBranch((6.0, 24.0, 96.0), generator)
        self.fusion = nn.Linear(WIDTH, WIDTH)
        self.held: dict[str, Tensor] = {}
        with torch.no_grad():
            self.fusion.weight.copy_(0.1 * torch.randn(WIDTH, WIDTH, generator=generator))
            self.fusion.bias.zero_()
            self._fit(turning_levels(64, 320, seed=1))

    def _fit(self, x: Tensor) -> None:
        """Both readouts by least squares: whatever the gate is, the output is linear in them."""
        branches: tuple[TurningBranch | LeakyBranch, ...] = (self.fast, self.slow)
        features = [branch.states(x, None)[:, 64:-1].flatten(0, 1) for branch in branches]
        gates = torch.sigmoid(self.fusion(x))[:, 64:-1].flatten(0, 1)  # (N, D)
        for channel, (gate, target) in enumerate(zip(gates.T, x[:, 65:].flatten(0, 1).T, strict=True)):
            shares = (gate[:, None], 1 - gate[:, None])
            parts = [
                share * torch.cat([h, torch.ones_like(share)], 1) for h, share in zip(features, shares, strict=True)
            ]
            design = torch.cat(parts, 1).double()
            ridge = 1e-6 * len(design) * torch.eye(design.shape[1], dtype=torch.double)
            solution = torch.linalg.solve(design.T @ design + ridge, design.T @ target.double()).float()
            for branch, row in zip(branches, solution.chunk(2), strict=True):
                branch.readout.weight[channel], branch.readout.bias[channel] = row[:-1], row[-1]

    def forward(self, x: Tensor) -> Tensor:
        fast, fast_state = self.fast(x, self.held.get("fast.h"))
        slow, slow_state = self.slow(x, self.held.get("slow.h"))
        self.held = {"fast.h": fast_state, "slow.h": slow_state}
        gate = torch.sigmoid(self.fusion(x))
        return gate * fast + (1 - gate) * slow

    def get_states(self) -> dict[str, Tensor]:
        return dict(self.held)

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.held = dict(states or {})


def rotation(angle: float) -> Tensor:
    """The matrix (2, 2) that turns by `angle` radians."""
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def turning_levels(documents: int, length: int, *, seed: int = 0) -> Tensor:
    """(documents, length, 8): a level that drifts about the document's own (retention 0.95), rotations damped by 0.99
    and pushed at random, and white noise.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = 0.99 * torch.block_diag(*map(rotation, ANGLES))
    own, level, turning = torch.randn(3, documents, WIDTH, generator=generator)
    drifts, pushes, noise = torch.randn(3, length, documents, WIDTH, generator=generator)
    rows = []
    for drift, push, white in zip(drifts, pushes, noise, strict=True):
        level = 0.95 * level + (1 - 0.95**2) ** 0.5 * drift
        turning = turning @ turn.T + (1 - 0.99**2) ** 0.5 * push
        rows.append(0.55 * own + 0.65 * level + 0.85 * turning + 1.5 * white)
    return torch.stack(rows, 1)
