"""Models of several components whose shares are known by hand. All are plain nn.Modules, none is trained.

:class:`AdditiveBranches` (vectors) has closed forms for the effects of ablation and for the shares of memory;
:class:`MemoryInOne` (tokens) remembers in one of its two components alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeakyBranch(nn.Module):
    """h(t) = retention * h(t-1) + x(t); its output is scale * weight * h(t).

    `scale` and `carried` are for culprits: an output that is multiplied by `scale` in 0 .. 1, and a state that is not
    carried on from call to call, though it can be read and written.
    """

    def __init__(self, retention: float, weight: float) -> None:
        super().__init__()
        self.retention = nn.Parameter(torch.tensor(retention))
        self.weight = nn.Parameter(torch.tensor(weight))
        self.scale, self.carried = 1.0, True
        self.h: Tensor | None = None  # (B, D)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        h = torch.zeros_like(x[:, 0]) if self.h is None or not self.carried else self.h
        outputs = []
        for x_t in x.unbind(1):
            h = self.retention * h + x_t
            outputs.append(h)
        self.h = h
        return self.scale * self.weight * torch.stack(outputs, 1)


class AdditiveBranches(nn.Module):
    """y = the sum of leaky branches of the input: a prediction of the next vector.

    `branches` has (retention a, weight w) for each component and layer; all layers read the input. On documents from
    :meth:`sample` the error is white noise, so that squared errors have closed forms in A = the variance of one
    component's output and C = the covariance of two: ablating the first by a donor's output costs 2 A, and by Shapley
    it owns (A + C) / (A + B + 2 C) of what both are worth. After k more tokens a state's difference has become a^k of
    itself, whatever is read.

    >>> model = AdditiveBranches({"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025)]}, width=2)
    >>> model.sample(3, 8).shape
    torch.Size([3, 8, 2])
    """

    def __init__(self, branches: Mapping[str, Sequence[tuple[float, float]]], width: int = 16) -> None:
        super().__init__()
        self.width = width
        depth = max(len(layers) for layers in branches.values())
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: LeakyBranch(*own[layer]) for name, own in branches.items() if layer < len(own)})
            for layer in range(depth)
        )

    def branch(self, component: str, layer: int = 0) -> LeakyBranch:
        """One branch, to plant a fault in."""
        return self.layers[layer][component]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self._named().values()]).sum(0)

    def get_states(self) -> dict[str, Tensor]:
        return {f"{name}.h": branch.h for name, branch in self._named().items() if branch.h is not None}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        for name, branch in self._named().items():
            branch.h = None if states is None else states[f"{name}.h"]

    def _named(self) -> dict[str, LeakyBranch]:
        return {name: child for name, child in self.named_modules() if isinstance(child, LeakyBranch)}

    @torch.no_grad()
    def sample(self, documents: int, time: int, *, seed: int = 0) -> Tensor:
        """(documents, time, width) that the model predicts up to unit white noise: x(t+1) = y(t) + noise.

        Make it before a fault is planted. The spectral radius of diag(a) + 1 w^T must be under 1.
        """
        branches = list(self._named().values())
        a, w = (torch.stack([getattr(b, name).double() for b in branches]) for name in ("retention", "weight"))
        noise = torch.randn(
            documents, time, self.width, generator=torch.Generator().manual_seed(seed), dtype=torch.double
        )
        h, drawn = noise.new_zeros(documents, len(branches), self.width), []
        for e in noise.unbind(1):
            drawn.append((w[:, None] * h).sum(1) + e)
            h = a[:, None] * h + drawn[-1][:, None]
        return torch.stack(drawn, 1).to(branches[0].weight.dtype)


class MemoryInOne(nn.Module):
    """Two components with states, of which one is used: shares of memory 1 and 0 exactly.

    "counts" has n(t) = retention * n(t-1) + onehot(x(t)), and log((n + 1/4) / |n + 1/4|) is its output; "echo" keeps
    the mean of what it has read and adds `boost` to the logit of the current token, whatever it keeps. On
    :func:`stuttering_tokens` ablating the output of either raises the loss.
    """

    def __init__(self, vocabulary: int = 48, retention: float = 0.98, boost: float = 2.5) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.counts = Counts(vocabulary, retention)
        self.echo = Echo(vocabulary, boost)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        return self.counts(tokens) + self.echo(tokens)

    def get_states(self) -> dict[str, Tensor]:
        held = {"counts.n": self.counts.n, "echo.mean": self.echo.mean}
        return {name: value for name, value in held.items() if value is not None}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.counts.n = None if states is None else states["counts.n"]
        self.echo.mean = None if states is None else states["echo.mean"]


class Counts(nn.Module):
    """Leaky counts of tokens as log shares."""

    def __init__(self, vocabulary: int, retention: float) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.retention = nn.Parameter(torch.tensor(retention))
        self.n: Tensor | None = None  # (B, V)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        read = functional.one_hot(tokens, self.vocabulary).to(self.retention.dtype)  # (B, T, V)
        n = torch.zeros_like(read[:, 0]) if self.n is None else self.n
        shares = []
        for read_t in read.unbind(1):
            n = self.retention * n + read_t
            shares.append((n + 0.25) / (n + 0.25).sum(1, keepdim=True))
        self.n = n
        return torch.stack(shares, 1).log()


class Echo(nn.Module):
    """A logit for the token that was just read. It keeps a running mean that nobody reads."""

    def __init__(self, vocabulary: int, boost: float) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.boost = nn.Parameter(torch.tensor(boost))
        self.mean: Tensor | None = None  # (B, V)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        read = functional.one_hot(tokens, self.vocabulary).to(self.boost.dtype)  # (B, T, V)
        mean = torch.zeros_like(read[:, 0]) if self.mean is None else self.mean
        for read_t in read.unbind(1):
            mean = 0.9 * mean + 0.1 * read_t
        self.mean = mean
        return self.boost * read


def stuttering_tokens(documents: int, length: int, vocabulary: int = 48, *, stay: float = 0.4, seed: int = 0) -> Tensor:
    """(documents, length) ids: each token is the one before with probability `stay`, else one of its document's own."""
    generator = torch.Generator().manual_seed(seed)
    words = functional.softmax(1.5 * torch.randn(documents, vocabulary, generator=generator), dim=1)
    drawn = torch.multinomial(words, length, replacement=True, generator=generator)  # (documents, length)
    stays = torch.rand(documents, length, generator=generator) < stay
    rows = [drawn[:, 0]]
    for t in range(1, length):
        rows.append(torch.where(stays[:, t], rows[-1], drawn[:, t]))
    return torch.stack(rows, 1)
