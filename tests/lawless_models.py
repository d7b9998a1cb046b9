"""Small models that keep the laws of a state or break one: `statecheck conform lawless_models:NAME` from here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 4


class Carried(nn.Module):
    """A GRU that carries its state from call to call; its subclasses break one law each."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, 8, batch_first=True)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        outputs, h = self.rnn(x, None if self.h is None else self.h[None])
        self.h = h[0]
        return outputs

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h.clone()}

    def set_states(self, states: dict[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


class Restarts(Carried):
    """CHUNK: a call of several elements on a warm state starts from zero."""

    def forward(self, x: Tensor) -> Tensor:
        self.h = None if x.shape[1] > 1 else self.h
        return super().forward(x)


class TakesOneAtOnce(Carried):
    """STEP and others: it raises in a call of one element on a warm state."""

    def forward(self, x: Tensor) -> Tensor:
        if self.h is not None and x.shape[1] == 1:
            raise IndexError("no <step> & nothing else")
        return super().forward(x)


def seeded(kind: type[Carried]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def sound() -> nn.Module:
    return seeded(Carried)


def restarts() -> nn.Module:
    return seeded(Restarts)


def takes_one_at_once() -> nn.Module:
    return seeded(TakesOneAtOnce)
