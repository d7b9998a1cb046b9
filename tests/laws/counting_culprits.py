"""`Counting` with one fault each: what a law reads of them is known by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from law_models import Counting
from torch import Tensor, nn

from statecheck.protocol import Native


class RestartsInAStep(Counting):
    """A single element is always the first."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.n = None if x.shape[1] == 1 else self.n
        return super().forward(x, mask)


class RestartsInAChunk(Counting):
    """In a call of several elements the first is always the first."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.n = None if x.shape[1] > 1 else self.n
        return super().forward(x, mask)


class AddsTheLengthOfTheCall(Counting):
    """y = n + T: an earlier output knows how many come later."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + x.shape[1]


class TimesTheRows(Counting):
    """y = n B: a row knows how many others there are."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * len(x)


class CountsPads(Counting):
    """Pads are elements."""

    def real(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask)


class ForgetsAllButOne(Counting):
    """What was forgotten leaves a count of 1."""

    left = 0

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.left = 1 if states is None and self.n is not None else 0
        super().set_states(states)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.n is None and self.left:
            self.n = x.new_ones(len(x), 1)
        return super().forward(x, mask)


class CountsOutsideOfTheState(Counting):
    """y = all elements that the module has read since it last forgot, whatever state it is given."""

    clock = 0

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.clock = 0 if states is None else self.clock
        super().set_states(states)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        super().forward(x, mask)
        self.clock += x.shape[1]
        return torch.arange(self.clock - x.shape[1] + 1, self.clock + 1).to(x).expand(len(x), -1)[..., None]


class CountsInPlace(Counting):
    """The tensor that was given is written."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        given = self.n
        y = super().forward(x, mask)
        if given is not None and self.n is not None:
            self.n = given.copy_(self.n)
        return y


class Summing(Counting):
    """y = the sum of what its row has read; the library reorders its rows, or says so."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        sums = (x[:, :0].sum(1) if self.n is None else self.n)[:, None] + x.cumsum(1)
        self.n = sums[:, -1]
        return sums

    @property
    def native(self) -> Native:
        """A reordering that does nothing."""
        return Native(reorder=lambda rows: None)


class CropsNothing(Counting):
    """A roll-back that does nothing."""

    @property
    def native(self) -> Native:
        return Native(crop=lambda length: None)


class CountsOverBoundaries(Counting):
    """Segments are taken, and dropped."""

    def forward(self, x: Tensor, segments: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Scaled(nn.Module):
    """h grows by w an element, y = h; `kept` of its gradient goes through."""

    def __init__(self, kept: float = 1.0, carried: float = 1.0) -> None:
        super().__init__()
        self.width, self.kept, self.carried = 1, kept, carried
        self.w = nn.Parameter(torch.tensor([0.5]))
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 1) -> (B, T, 1)
        before = torch.zeros_like(x[:, 0]) if self.h is None else self.h
        y = before[:, None] + self.w * torch.arange(1, x.shape[1] + 1)[:, None]
        self.h = y[:, -1]
        return y.detach() + self.kept * (y - y.detach())

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        h = None if states is None else states["h"]
        self.h = None if h is None else h.detach() + self.carried * (h - h.detach())
