"""Models whose answers are known by hand, and sequences that they can predict. All are plain nn.Modules.

Linear states: h(t) = a * h(t-1) + b * x(t), for which D1, G3.5, D2 and D4.reach have closed forms. The healthy models
of the culprit matrix: :class:`SelectiveCounter` (tokens, a diagonal selective recurrence) and :class:`GatedFilter`
(vectors, a torch.nn.GRU), both in two layers, both good predictors of the sequences made here, neither trained by
gradient descent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearState(nn.Module):
    """h(t) = a * h(t-1) + x(t), y = h: one channel of vectors for each retention in `retentions`, in one layer.

    Stationary under unit normal input: variance 1 / (1 - a^2), centred cosine a^k at lag k, reach a^L.
    """

    def __init__(self, retentions: Sequence[float]) -> None:
        super().__init__()
        self.retention = nn.Parameter(torch.tensor(retentions))  # (D,)
        self.h: Tensor | None = None  # (B, D)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        h = x.new_zeros(x.shape[0], x.shape[2]) if self.h is None else self.h
        outputs = []
        for x_t in x.unbind(1):
            h = self.retention * h + x_t
            outputs.append(h)
        self.h = h
        return torch.stack(outputs, 1) if outputs else x

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"layers.0.h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["layers.0.h"]


class Counter(LinearState):
    """A correct counter: h(t) = h(t-1) + x(t). It grows for ever, and is right to."""

    def __init__(self, width: int) -> None:
        super().__init__([1.0] * width)


class ShiftRegister(nn.Module):
    """The last `length` inputs, newest first: (B, length, features). y is the oldest. Reach is 1 within, 0 beyond."""

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.length, self.features = length, features
        self.line: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        line = x.new_zeros(x.shape[0], self.length, self.features) if self.line is None else self.line
        outputs = []
        for x_t in x.unbind(1):
            line = torch.cat([x_t[:, None], line[:, :-1]], 1)
            outputs.append(line[:, -1])
        self.line = line
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.line is None else {"layers.0.line": self.line}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.line = None if states is None else states["layers.0.line"]


class SelectiveCounter(nn.Module):
    """Predicts the next token from what was read: leaky counts at two time scales, which each token may let fade.

    Layer l: n_l(t) = a_l^rate(x_t) * n_l(t-1) + onehot(x_t), n (B, V); p = mean over l of n_l / |n_l|, smoothed. The
    recurrence is diagonal and selective: log(-log a) over tokens is log(rate) + log(-log a_l).
    """

    def __init__(self, vocabulary: int = 48, retentions: Sequence[float] = (0.9, 0.98), spread: float = 0.5) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        generator = torch.Generator().manual_seed(0)
        self.log_retention = nn.Parameter(torch.tensor(retentions).log())  # (layers,)
        self.rate = nn.Parameter((spread * torch.randn(vocabulary, generator=generator)).exp())  # (V,)
        self.counts: list[Tensor] | None = None  # (B, V) each

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        start = self.rate.new_zeros(tokens.shape[0], self.vocabulary)
        counts = [start] * len(self.log_retention) if self.counts is None else list(self.counts)
        logits = []
        for x_t in tokens.unbind(1):
            decay = torch.exp(self.log_retention[:, None] * self.rate[x_t])  # (layers, B)
            read = functional.one_hot(x_t, self.vocabulary).to(start)  # (B, V)
            counts = [decay[i, :, None] * n + read for i, n in enumerate(counts)]
            shares = [(n + 0.25) / (n + 0.25).sum(1, keepdim=True) for n in counts]
            logits.append(torch.stack(shares).mean(0).log())
        self.counts = counts
        return torch.stack(logits, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {f"layers.{i}.counts": n for i, n in enumerate(self.counts or [])}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.counts = None if states is None else [states[f"layers.{i}.counts"] for i in range(len(self.log_retention))]


class GatedFilter(nn.Module):
    """Predicts the next vector: a two-layer torch.nn.GRU as a bank of filters, with a least-squares readout.

    The update gates z are set by their biases to retentions from 0.5 to 0.995, a little moved by the input; the readout
    is fitted in closed form to :func:`drifting_vectors`, so that it is a good predictor of them without any training.
    """

    def __init__(self, width: int = 8, hidden: int = 48) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self.gru = nn.GRU(width, hidden, num_layers=2, batch_first=True)
        self.readout = nn.Linear(hidden + width, width)
        self.h: Tensor | None = None  # (layers, B, H)
        with torch.no_grad():
            self._set_gates(hidden, generator)
            self._fit_readout(drifting_vectors(32, 256, width, seed=1))

    def _set_gates(self, hidden: int, generator: torch.Generator) -> None:
        retention = torch.linspace(0.5, 0.995, hidden)
        for layer in range(2):
            w_in, w_hidden = getattr(self.gru, f"weight_ih_l{layer}"), getattr(self.gru, f"weight_hh_l{layer}")
            b_in, b_hidden = getattr(self.gru, f"bias_ih_l{layer}"), getattr(self.gru, f"bias_hh_l{layer}")
            for tensor in (w_in, w_hidden, b_in, b_hidden):
                tensor.zero_()
            scale = 0.3 if layer == 0 else 0.5
            mix = torch.randn(hidden, w_in.shape[1], generator=generator) / w_in.shape[1] ** 0.5
            w_in[2 * hidden :] = scale * mix  # n: the new value
            w_in[hidden : 2 * hidden] = 0.2 * torch.randn(hidden, w_in.shape[1], generator=generator)  # z, a little
            b_in[hidden : 2 * hidden] = torch.logit(retention)

    def _fit_readout(self, x: Tensor) -> None:
        features = torch.cat([self.gru(x)[0], x], 2)[:, 64:-1].flatten(0, 1)  # (N, H + D)
        ones = torch.ones(len(features), 1)
        design, targets = torch.cat([features, ones], 1).double(), x[:, 65:].flatten(0, 1).double()
        ridge = 1e-3 * len(design) * torch.eye(design.shape[1], dtype=torch.double)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ targets).float()
        self.readout.weight.copy_(solution[:-1].T)
        self.readout.bias.copy_(solution[-1])

    def forward(self, x: Tensor) -> Tensor:
        outputs, self.h = self.gru(x, self.h)
        return self.readout(torch.cat([outputs, x], 2))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {f"layers.{i}.h": h for i, h in enumerate(self.h)}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else torch.stack([states[f"layers.{i}.h"] for i in range(2)])


def topical_tokens(documents: int, length: int, vocabulary: int = 48, *, seed: int = 0) -> Tensor:
    """(documents, length) ids: each token is drawn from its document's own words or from a passing topic's, half each.

    A longer context knows the document's words better; topics change every 24 tokens on average.
    """
    generator = torch.Generator().manual_seed(seed)
    own = _word_shares(documents, vocabulary, generator)
    topics = _word_shares(64, vocabulary, generator)
    switch = torch.rand(documents, length, generator=generator) < 1 / 24
    topic = torch.randint(0, 64, (documents, length), generator=generator)
    rows = []
    current = topic[:, 0]
    for t in range(length):
        current = torch.where(switch[:, t], topic[:, t], current)
        shares = 0.5 * own + 0.5 * topics[current]
        rows.append(torch.multinomial(shares, 1, generator=generator)[:, 0])
    return torch.stack(rows, 1)


def _word_shares(rows: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    return functional.softmax(1.5 * torch.randn(rows, vocabulary, generator=generator), dim=1)


def drifting_vectors(documents: int, length: int, width: int = 8, *, seed: int = 0) -> Tensor:
    """(documents, length, width): a level of the document's own, a drift (retention 0.9) and white noise."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(documents, 1, width, generator=generator)
    pushes = torch.randn(documents, length, width, generator=generator) * (1 - 0.9**2) ** 0.5
    drift, steps = torch.zeros(documents, width), []
    for push in pushes.unbind(1):
        drift = 0.9 * drift + push
        steps.append(drift)
    return level + torch.stack(steps, 1) + torch.randn(documents, length, width, generator=generator)
