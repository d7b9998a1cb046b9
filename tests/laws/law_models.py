"""Small models that keep every law, as people write them; each culprit of `law_culprits` is one of them with one fault.

B  rows of the batch    T  elements of a call    D  features of an element    H  units of the state    K  kernel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from statecheck.protocol import Native

torch.set_num_threads(1)  # small models: threads only get in each other's way


@dataclass
class Memory:
    """What is carried from call to call."""

    h: Tensor  # (B, H)
    window: Tensor  # (B, K - 1, D): the last inputs


class Remembering(nn.Module):
    """A recurrence behind a convolution over the last inputs; a call takes a mask. The library keeps a `Memory`.

    u_t = sum over k of mix_k x_(t-k)      h_t = a h_(t-1) + u_t W      y_t = tanh(h_t) V + b      a = sigmoid(decay)
    """

    def __init__(self, width: int = 3, size: int = 6, kernel: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.width, self.size, self.kernel = width, size, kernel
        self.mix = nn.Parameter(torch.randn(kernel, width, generator=generator))
        self.inward = nn.Parameter(0.5 * torch.randn(width, size, generator=generator))
        self.decay = nn.Parameter(torch.linspace(0.0, 3.0, size))
        self.outward = nn.Parameter(torch.randn(size, width, generator=generator))
        self.bias = nn.Parameter(torch.randn(width, generator=generator))
        self.memory: Memory | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, D), (B, T) -> (B, T, D)
        memory = self.begin(x) if self.memory is None else self.memory
        y, self.memory = self.read(x, mask, memory)
        return y

    def begin(self, x: Tensor) -> Memory:
        """The memory before the first element."""
        return Memory(x.new_zeros(len(x), self.size), x.new_zeros(len(x), self.kernel - 1, self.width))

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        """Outputs and memory after a call."""
        outputs = []
        for t in range(x.shape[1]):
            y, after = self.step(x[:, t], memory)
            memory = after if mask is None else chosen(mask[:, t], after, memory)
            outputs.append(y)
        return torch.stack(outputs, 1), memory

    def step(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:  # (B, D)
        """One element."""
        seen = torch.cat([memory.window, x[:, None]], 1)  # (B, K, D)
        h = torch.sigmoid(self.decay) * memory.h + (seen * self.mix).sum(1) @ self.inward
        return torch.tanh(h) @ self.outward + self.bias, Memory(h, seen[:, 1:])

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.memory is None else {"h": self.memory.h, "window": self.memory.window}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.memory = None if states is None else Memory(states["h"], states["window"])

    @property
    def native(self) -> Native:
        """What this library offers of its own."""
        return Native(
            reorder=self.reorder,
            reset=self.reset,
            held=lambda: self.memory,
            hold=self.hold,
            uncached=self.uncached,
        )

    def reorder(self, rows: Tensor) -> None:
        assert self.memory is not None
        self.memory = Memory(self.memory.h[rows], self.memory.window[rows])

    def reset(self) -> None:
        self.memory = None

    def hold(self, held: object) -> None:
        assert isinstance(held, Memory)
        self.memory = held

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return Remembering.read(self, x, mask, self.begin(x))[0]


def chosen(real: Tensor, after: Memory, before: Memory) -> Memory:  # (B,)
    """The memory after an element in rows where it is real, the one before it elsewhere."""
    h = torch.where(real[:, None], after.h, before.h)
    return Memory(h, torch.where(real[:, None, None], after.window, before.window))


class Packed(nn.Module):
    """A decaying sum whose calls take the number of each element's sequence: at a new number it starts from zero."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.decay = nn.Parameter(torch.linspace(0.5, 2.0, width))
        self.scale = nn.Parameter(torch.linspace(-1.0, 1.5, width))
        self.h: Tensor | None = None  # (B, D)

    def forward(self, x: Tensor, segments: Tensor | None = None) -> Tensor:  # (B, T, D), (B, T) -> (B, T, D)
        h = torch.zeros_like(x[:, 0]) if self.h is None else self.h
        outputs = []
        for t in range(x.shape[1]):
            if segments is not None and t:
                h = self.kept(h, segments[:, t] == segments[:, t - 1], t)
            h = torch.sigmoid(self.decay) * h + self.scale * x[:, t]
            outputs.append(h)
        self.h = h
        return torch.stack(outputs, 1)

    def kept(self, h: Tensor, same: Tensor, t: int) -> Tensor:
        """What of h goes on to element t: nothing in the first element of a sequence."""
        return torch.where(same[:, None], h, torch.zeros_like(h))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


class Counting(nn.Module):
    """y = n, the elements that its row has read, by 1, 2, 3 ... whatever they hold: all it says is known by hand.

    It has no parameters, so that its noise floor is the assumed one: 16 units in the last place of float32.
    """

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.n: Tensor | None = None  # (B, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, 1), (B, T) -> (B, T, 1)
        before = x.new_zeros(len(x), 1) if self.n is None else self.n
        real = torch.ones_like(x[..., 0]) if mask is None else self.real(mask).to(x)
        counts = before + real.cumsum(1)
        self.n = counts[:, -1:]
        return counts[..., None]

    def real(self, mask: Tensor) -> Tensor:
        """Which elements are counted."""
        return mask

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.n is None else {"n": self.n}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.n = None if states is None else states["n"]


class Looking(nn.Module):
    """One attention over all keys that were read, beside a decaying sum; both are rolled back from what was kept."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self.query, self.value = (nn.Parameter(torch.randn(width, width, generator=generator)) for _ in range(2))
        self.decay = nn.Parameter(torch.linspace(0.5, 2.0, width))
        self.keys: Tensor | None = None  # (B, T, D): the inputs themselves
        self.sums: list[Tensor] = []  # (B, D) after each element

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        past = 0 if self.keys is None else self.keys.shape[1]
        self.keys = x if self.keys is None else torch.cat([self.keys, x], 1)
        hidden = torch.arange(self.keys.shape[1]) > torch.arange(past, self.keys.shape[1])[:, None]
        scores = (x @ self.query @ self.keys.transpose(1, 2)).masked_fill(hidden, -torch.inf)
        h = self.sums[-1] if self.sums else torch.zeros_like(x[:, 0])
        for x_t in x.unbind(1):
            h = torch.sigmoid(self.decay) * h + x_t
            self.sums.append(h)
        return scores.softmax(-1) @ self.keys @ self.value + torch.stack(self.sums[-x.shape[1] :], 1)

    def crop(self, length: int) -> None:
        assert self.keys is not None
        self.keys, self.sums = self.keys[:, :length], self.sums[:length]

    @property
    def native(self) -> Native:
        """It offers a roll-back, and nothing else."""
        return Native(crop=self.crop)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.keys is None else {"keys": self.keys, "h": self.sums[-1]}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.keys = None if states is None else states["keys"]
        self.sums = [] if states is None else [states["h"]] * states["keys"].shape[1]
