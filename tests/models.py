"""Small models as strangers write them: each a plain nn.Module with its own conventions for states.

Healthy unless the name says otherwise. Initialisations give memories of tens to hundreds of tokens, as trained models
have; none is trained unless `fitted` is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)  # small models: threads only get in each other's way


class TinyMamba(nn.Module):
    """A selective state space layer (Gu & Dao 2023): matrix states (B, D, N) and a convolution window (B, D, K-1)."""

    def __init__(self, vocabulary: int = 32, width: int = 16, order: int = 4, window: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.ModuleList(nn.Conv1d(width, width, window, groups=width) for _ in range(layers))
        self.project = nn.ModuleList(nn.Linear(width, width + 2 * order) for _ in range(layers))
        self.log_a = nn.ParameterList(torch.arange(1.0, order + 1).log().repeat(width, 1) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)
        self.order = order
        with torch.no_grad():
            for project in self.project:  # step sizes from 0.002 to 0.1: half-lives from 2 to 350 tokens
                project.bias[:width] = torch.linspace(math.log(0.002), math.log(0.1), width).exp().expm1().log()
        self.cache: dict[str, Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for i in range(len(self.mix)):
            x = x + self._layer(i, x)
        return self.head(x)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        width, window = x.shape[2], self.mix[i].kernel_size[0]
        past = self.cache.get(f"blocks.{i}.conv", x.new_zeros(x.shape[0], width, window - 1))
        padded = torch.cat([past, x.transpose(1, 2)], 2)
        u = functional.silu(self.mix[i](padded)).transpose(1, 2)
        step, b, c = self.project[i](u).split([width, self.order, self.order], 2)
        step = functional.softplus(step)
        a = -self.log_a[i].exp()
        h = self.cache.get(f"blocks.{i}.ssm", x.new_zeros(x.shape[0], width, self.order))
        outputs = []
        for t in range(x.shape[1]):
            decay = torch.exp(step[:, t, :, None] * a)
            h = decay * h + (step[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
            outputs.append((h * c[:, t, None, :]).sum(2))
        self.cache |= {f"blocks.{i}.conv": padded[:, :, 1 - window :], f"blocks.{i}.ssm": h}
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return dict(self.cache)

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.cache = dict(states or {})


class TinyRWKV(nn.Module):
    """Heads of matrix states (B, H, K, V) with a decay that the input chooses (RWKV-6), and the last token's input."""

    def __init__(self, vocabulary: int = 32, heads: int = 4, size: int = 4, layers: int = 2) -> None:
        super().__init__()
        width = heads * size
        self.heads, self.size, self.layers = heads, size, layers
        self.embedding = nn.Embedding(vocabulary, width)
        self.rkv = nn.ModuleList(nn.Linear(2 * width, 3 * width) for _ in range(layers))
        self.decay = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)
        with torch.no_grad():
            for decay in self.decay:
                decay.bias.copy_(torch.linspace(-5.5, -1.5, width))
        self.state: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        after = []
        for i in range(self.layers):
            y, held = self._layer(i, functional.layer_norm(x, x.shape[2:]), self.state[i] if self.state else None)
            x = x + y
            after.append(held)
        self.state = after
        return self.head(x)

    def _layer(self, i: int, x: Tensor, held: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, time, width = x.shape
        shape = (rows, self.heads, self.size)
        last, wkv = held or (x.new_zeros(rows, width), x.new_zeros(*shape, self.size))
        shifted = torch.cat([last[:, None], x[:, :-1]], 1)
        r, k, v = self.rkv[i](torch.cat([x, shifted], 2)).chunk(3, 2)
        w = torch.exp(-torch.exp(self.decay[i](shifted)))
        outputs = []
        for t in range(time):
            r_t, k_t, v_t, w_t = (z[:, t].view(shape) for z in (r, k, v, w))
            outputs.append((r_t[..., None] * wkv).sum(2).flatten(1))
            wkv = w_t[..., None] * wkv + k_t[..., None] * v_t[..., None, :]
        read = torch.stack(outputs, 1).view(rows, time, *shape[1:])
        return functional.layer_norm(read, read.shape[3:]).flatten(2), (x[:, -1], wkv)

    def get_states(self) -> dict[str, Any]:
        return {f"blocks.{i}": {"shift": last, "wkv": wkv} for i, (last, wkv) in enumerate(self.state or [])}

    def set_states(self, states: Mapping[str, Any] | None) -> None:
        self.state = None if states is None else [(s["shift"], s["wkv"]) for s in states.values()]


class TinyXLSTM(nn.Module):
    """An sLSTM (Beck et al. 2024): cell c, normaliser n and stabiliser m; h = o * c / n. Exponential gates."""

    def __init__(self, vocabulary: int = 32, width: int = 24) -> None:
        super().__init__()
        self.vocab_size = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.gates = nn.Linear(2 * width, 4 * width)
        self.head = nn.Linear(width, vocabulary)
        with torch.no_grad():
            self.gates.bias[width : 2 * width] = torch.linspace(2.0, 6.0, width)
        self.state: tuple[Tensor, ...] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        zero = x.new_zeros(x.shape[0], x.shape[2])
        c, n, m, h = self.state or (zero, zero, zero, zero)
        outputs = []
        for x_t in x.unbind(1):
            i, f, z, o = self.gates(torch.cat([x_t, h], 1)).chunk(4, 1)
            keep = functional.logsigmoid(f) + m
            m = torch.maximum(keep, i)
            inward, forget = torch.exp(i - m), torch.exp(keep - m)
            c, n = forget * c + inward * torch.tanh(z), forget * n + inward
            h = torch.sigmoid(o) * c / n
            outputs.append(h)
        self.state = (c, n, m, h)
        return self.head(torch.stack(outputs, 1))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.state is None else dict(zip(("cell", "norm", "max", "hidden"), self.state, strict=True))

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.state = None if states is None else tuple(states[name] for name in ("cell", "norm", "max", "hidden"))


class Elman(nn.Module):
    """A tanh RNN of vectors that predicts the next one; an orthogonal recurrence, a little contracting."""

    def __init__(self, width: int = 4, hidden: int = 24, retention: float = 0.97) -> None:
        super().__init__()
        self.cell = nn.RNNCell(width, hidden)
        self.readout = nn.Linear(hidden, width)
        nn.init.orthogonal_(self.cell.weight_hh, gain=retention)
        nn.init.normal_(self.cell.weight_ih, std=0.03)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for x_t in x.unbind(1):
            self.hidden = self.cell(x_t, self.hidden)
            outputs.append(self.hidden)
        return self.readout(torch.stack(outputs, 1))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.hidden is None else {"hidden": self.hidden}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.hidden = None if states is None else states["hidden"]


class RecurrentLM(nn.Module):
    """Embedding, a torch RNN, a head. States as torch has them (layers, B, H) are split, one tensor a layer."""

    def __init__(self, kind: str = "GRU", vocabulary: int = 48, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.rnn: nn.RNNBase = getattr(nn, kind)(width, width, num_layers=layers, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, vocabulary)
        self.held: Any = None

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, self.held = self.rnn(self.embedding(tokens), self.held)
        return self.head(outputs)

    def get_states(self) -> dict[str, Any]:
        if self.held is None:
            return {}
        if isinstance(self.held, Tensor):
            return {"h": list(self.held)}
        return {"lstm": [tuple(pair) for pair in zip(*self.held, strict=True)]}

    def set_states(self, states: Mapping[str, Any] | None) -> None:
        if states is None:
            self.held = None
        elif "h" in states:
            self.held = torch.stack(list(states["h"]))
        else:
            self.held = tuple(torch.stack(list(part)) for part in zip(*states["lstm"], strict=True))


def fitted(model: nn.Module, documents: Tensor, *, steps: int, length: int = 64, seed: int = 0) -> nn.Module:
    """The model after some steps of Adam on random windows of token documents."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        rows = torch.randint(len(documents), (16,), generator=generator)
        start = int(torch.randint(documents.shape[1] - length, (1,), generator=generator))
        window = documents[rows, start : start + length + 1]
        model.set_states(None)  # type: ignore[operator]
        loss = functional.cross_entropy(model(window[:, :-1]).transpose(1, 2), window[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.set_states(None)  # type: ignore[operator]
    return model.eval()


class Integrator(nn.Module):
    """h(t) = 0.9 h(t-1) + x(t), y = h, float64: the smallest healthy model of vectors. The base of odd conventions."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.retention = nn.Parameter(torch.full((width,), 0.9, dtype=torch.float64))
        self.h: Tensor | None = None  # (B, D)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for x_t in x.unbind(1):
            self.h = x_t if self.h is None else self.retention * self.h + x_t
            outputs.append(self.h)
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Any]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Any] | None) -> None:
        self.h = None if states is None else states["h"]


class ViewsOfABuffer(nn.Module):
    """Leaky integrators whose states are views into one buffer that every call writes in place."""

    def __init__(self, width: int = 8, rows: int = 1024) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(0.8, 0.95, width))
        self.register_buffer("memory", torch.zeros(2, rows, width), persistent=False)
        self.memory: Tensor
        self.used = 0

    def forward(self, x: Tensor) -> Tensor:
        self.used = len(x)
        outputs = []
        for x_t in x.unbind(1):
            self.memory[0, : self.used].mul_(self.decay).add_(x_t)
            self.memory[1, : self.used].mul_(self.decay).add_(self.memory[0, : self.used], alpha=0.1)
            outputs.append(self.memory[1, : self.used].clone())
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {f"layers.{i}": self.memory[i, : self.used] for i in range(2)} if self.used else {}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.memory.zero_()
        self.used = 0
        for i, value in enumerate((states or {}).values()):
            self.used = len(value)
            self.memory[i, : self.used] = value


class LinearRecurrentUnit(nn.Module):
    """An LRU (Orvieto et al. 2023): a complex diagonal state h = a h + B x, y = Re(C h)."""

    def __init__(self, width: int = 4, size: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        radius, angle = torch.linspace(0.9, 0.995, size), torch.linspace(0.05, 3.0, size)
        self.a = nn.Parameter(torch.polar(radius, angle))
        self.b = nn.Parameter(torch.randn(width, size, dtype=torch.cfloat, generator=generator))
        self.c = nn.Parameter(torch.randn(size, width, dtype=torch.cfloat, generator=generator))
        self.width = width
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a.new_zeros(len(x), len(self.a)) if self.h is None else self.h
        outputs = []
        for x_t in x.unbind(1):
            h = self.a * h + x_t.to(self.b.dtype) @ self.b
            outputs.append((h @ self.c).real)
        self.h = h
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"lru.h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["lru.h"]


class TinyTransformer(nn.Module):
    """One attention layer with a cache of keys and values, and learned positions up to `longest`."""

    def __init__(self, vocabulary: int = 32, width: int = 16, longest: int = 4096) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, vocabulary)
        self.cache: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        past = 0 if self.cache is None else self.cache[0].shape[1]
        at = torch.arange(past, past + tokens.shape[1])
        x = self.embedding(tokens) + self.positions(at)
        q, k, v = self.qkv(x).chunk(3, 2)
        if self.cache is not None:
            k, v = torch.cat([self.cache[0], k], 1), torch.cat([self.cache[1], v], 1)
        self.cache = (k, v)
        mask = torch.arange(k.shape[1]) <= at[:, None]
        return self.head(x + functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.cache is None else {"layers.0.k": self.cache[0], "layers.0.v": self.cache[1]}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.cache = None if states is None else (states["layers.0.k"], states["layers.0.v"])


class TinyDeltaNet(nn.Module):
    """A delta rule (Schlag et al. 2021) with decay: S <- g S + beta (v - g S k) k^T, units of S mix. Vectors."""

    def __init__(self, width: int = 6, size: int = 6) -> None:
        super().__init__()
        self.width = width
        self.qkv = nn.Linear(width, 3 * size)
        self.gate = nn.Linear(width, 2)
        self.readout = nn.Linear(size, width)
        nn.init.constant_(self.gate.bias, 4.0)
        with torch.no_grad():
            self.gate.bias[1] = -2.0
        self.matrix: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        k = functional.normalize(k, dim=2)
        keep, write = torch.sigmoid(self.gate(x)).unbind(2)
        s = x.new_zeros(len(x), v.shape[2], k.shape[2]) if self.matrix is None else self.matrix
        outputs = []
        for t in range(x.shape[1]):
            s = keep[:, t, None, None] * s
            error = v[:, t] - (s @ k[:, t, :, None])[..., 0]
            s = s + write[:, t, None, None] * error[:, :, None] * k[:, t, None, :]
            outputs.append((s @ q[:, t, :, None])[..., 0])
        self.matrix = s
        return self.readout(torch.stack(outputs, 1))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.matrix is None else {"delta": self.matrix}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.matrix = None if states is None else states["delta"]


class Declines(nn.Module):
    """A wrapper that takes away what a model can do: `hides` names methods, `raises_beyond` a length in tokens."""

    def __init__(self, inner: nn.Module, *, hides: Sequence[str] = (), raises_beyond: int | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.raises_beyond = raises_beyond
        self.read = 0
        if "set_states" not in hides:
            self.set_states = self._set_states

    def forward(self, x: Tensor) -> Tensor:
        self.read += x.shape[1]
        if self.raises_beyond is not None and self.read > self.raises_beyond:
            raise IndexError(f"position {self.read} is out of range: {self.raises_beyond} positions")
        return self.inner(x)

    def get_states(self) -> dict[str, Tensor]:
        states = self.inner.get_states()  # type: ignore[operator]
        return {**states, "read": torch.full((len(next(iter(states.values()))),), self.read)} if states else {}

    def _set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.read = 0 if states is None else int(states["read"][0])
        rest = None if states is None else {name: value for name, value in states.items() if name != "read"}
        self.inner.set_states(rest)  # type: ignore[operator]


class TinyHybrid(nn.Module):
    """Leaky counts of tokens beside an attention with a cache, and the position as a Python number."""

    def __init__(self, vocabulary: int = 32, width: int = 16) -> None:
        super().__init__()
        self.attention = TinyTransformer(vocabulary, width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.retention = nn.Parameter(torch.linspace(0.9, 0.99, width))
        self.head = nn.Linear(width, vocabulary)
        self.h: Tensor | None = None
        self.position = 0

    def forward(self, tokens: Tensor) -> Tensor:
        x, outputs = self.embedding(tokens), []
        h = torch.zeros_like(x[:, 0]) if self.h is None else self.h
        for x_t in x.unbind(1):
            h = self.retention * h + x_t
            outputs.append(h)
        self.h, self.position = h, self.position + tokens.shape[1]
        return self.head(torch.stack(outputs, 1)) + self.attention(tokens)

    def get_states(self) -> dict[str, Any]:
        if self.h is None:
            return {}
        return {"leak": self.h, "cache": self.attention.get_states(), "position": self.position}

    def set_states(self, states: Mapping[str, Any] | None) -> None:
        self.attention.set_states(None if states is None else states["cache"])
        self.h, self.position = (None, 0) if states is None else (states["leak"], states["position"])
