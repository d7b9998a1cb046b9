"""Models with one fault each, named for it. `LAWS` of the tests say which law must catch which.

Those of `Remembering` and `Packed` are in the shape of faults that were found in public libraries; nearly all give
finite, plausible outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from law_models import Looking, Memory, Packed, Remembering
from torch import Tensor

from statecheck.protocol import Native


class StaleWindowInASingleStep(Remembering):
    """A step on a warm state sees the window of the element before: the shift is made too late."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        if x.shape[1] > 1 or self.memory is None:
            return super().read(x, mask, memory)
        late = Memory(memory.h, memory.window.roll(1, 1))
        y, after = super().read(x, mask, late)
        return y, Memory(after.h, torch.cat([memory.window, x], 1)[:, 1:])


class ChunkStartsFromZero(Remembering):
    """A call of several elements starts a sequence, whatever was read before."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        return super().read(x, mask, memory if x.shape[1] == 1 else self.begin(x))


class ChunkTakesTheBranchOfAStep(Remembering):
    """A call of several elements on a warm state is read as its last element alone, in the state."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        warm = self.memory is not None and x.shape[1] > 1
        return y, self.step(x[:, -1], memory)[1] if warm else after


class SumsOverTheNextChunk(Remembering):
    """Beyond the first chunk of 8, the sum over a chunk reaches the elements before it: it is not causal."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        later = torch.zeros_like(y)
        later[:, :8] = 0.01 * x[:, 8:16].sum(1, keepdim=True)
        return y + later, after

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.read(x, mask, self.begin(x))[0]


class EveryRowGetsTheLastRowsWindow(Remembering):
    """The token shift of all rows is that of row -1."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        return super().read(x, mask, Memory(memory.h, memory.window[-1:].expand_as(memory.window)))


class BatchBroadcastsItself(Remembering):
    """A step of a batch brings (B, B, D): a dimension is added on the wrong side."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return (y.expand(len(x), len(x), -1) if x.shape[1] == 1 and self.memory is not None else y), after


class NormalisesOverTheBatch(Remembering):
    """The rows are centred on their mean, in every call, with a cache and without."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        return super().read(x - 0.1 * x.mean(0, keepdim=True), mask, memory)

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.read(x, mask, self.begin(x))[0]


class MaskIgnored(Remembering):
    """Pads are read like any element."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        return super().read(x, None, memory)

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().uncached(x, None)


class MaskIgnoredForOneRow(Remembering):
    """Pads are read if the batch has one row."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        return super().read(x, None if len(x) == 1 else mask, memory)


class PadsBehindEnterTheState(Remembering):
    """Pads before a row are left out, those behind it are read."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        begun = None if mask is None else mask.long().cumsum(1) > 0
        return super().read(x, begun, memory)


class ResetKeepsTheWindow(Remembering):
    """The library's own reset zeroes h and forgets about the window."""

    def reset(self) -> None:
        if self.memory is not None:
            self.memory = Memory(torch.zeros_like(self.memory.h), self.memory.window)

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        fits = len(memory.window) == len(x)
        return super().read(x, mask, memory if fits else self.begin(x))


class ForgettingKeepsTheWindow(Remembering):
    """Neither does set_states(None) forget the window: it is kept in an attribute of its own."""

    kept: Tensor | None = None

    def begin(self, x: Tensor) -> Memory:
        memory = super().begin(x)
        return memory if self.kept is None or len(self.kept) != len(x) else Memory(memory.h, self.kept)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        assert self.memory is not None
        self.kept = self.memory.window
        return y


class BatchSizeOutlivesTheReset(Remembering):
    """A batch of another size raises, although everything was forgotten."""

    rows: int | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.rows not in (None, len(x)) and self.memory is None:
            raise RuntimeError(f"the buffer holds {self.rows} rows, the inputs {len(x)}")
        self.rows = len(x)
        return super().forward(x, mask)


class Leaving(Memory):
    """A memory whose copies leave the window behind."""

    def __getstate__(self) -> dict[str, Tensor]:
        return {"h": self.h, "window": torch.zeros_like(self.window)}


class CopiesLeaveTheWindowBehind(Remembering):
    """Copying or saving the library's own memory loses a part of it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        assert self.memory is not None
        self.memory = Leaving(self.memory.h, self.memory.window)
        return y


class ClockOutsideOfTheState(Remembering):
    """How much was read is counted on the module, and get_states does not tell it."""

    clock = 0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask) + 0.01 * (self.clock + torch.arange(x.shape[1])[:, None])
        self.clock += x.shape[1]
        return y

    def reset(self) -> None:
        self.memory, self.clock = None, 0

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        super().set_states(states)
        self.clock = 0 if states is None else self.clock

    def hold(self, held: object) -> None:
        self.memory, self.clock = held  # type: ignore[assignment, misc]

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().uncached(x, mask) + 0.01 * torch.arange(x.shape[1])[:, None]

    @property
    def native(self) -> Native:
        return replace(super().native, held=lambda: (self.memory, self.clock))


class WritesIntoGivenStates(Remembering):
    """A call works in place on the tensors that set_states was given."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        memory.h.data.copy_(after.h.data)
        return y, Memory(memory.h, after.window)


class WritesIntoItsInputs(Remembering):
    """A call scales the inputs in place, and back again in all but the last element."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        x.data[:, -1] *= 2
        return y


class OneBufferForAllSequences(Remembering):
    """Every sequence's h lies in the same buffer of the module: who put one aside finds another there."""

    buffer: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        assert self.memory is not None
        if self.buffer is None or self.buffer.shape != self.memory.h.shape:
            self.buffer = torch.empty_like(self.memory.h)
        self.buffer.copy_(self.memory.h)
        self.memory = Memory(self.buffer, self.memory.window)
        return y


class ReordersHAlone(Remembering):
    """The rows of h are reordered, those of the window stay."""

    def reorder(self, rows: Tensor) -> None:
        assert self.memory is not None
        self.memory = Memory(self.memory.h[rows], self.memory.window[torch.arange(len(rows)) % len(self.memory.h)])


class RowNumbersOnTheModule(Remembering):
    """What each row started with is kept on the module: states that are reordered meet another row's."""

    first: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.memory is None:
            self.first = x[:, 0].detach()
        assert self.first is not None
        shown = self.first[torch.arange(len(x)) % len(self.first)]
        return super().forward(x, mask) + 0.1 * shown[:, None]

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().uncached(x, mask) + 0.1 * x[:, :1]


class CropLeavesTheSumBehind(Looking):
    """The keys are rolled back, the sum beside them is not."""

    def crop(self, length: int) -> None:
        assert self.keys is not None
        self.keys, self.sums = self.keys[:, :length], [self.sums[-1]] * length


class CropOffByOne(Looking):
    """One key too many is kept."""

    def crop(self, length: int) -> None:
        assert self.keys is not None
        self.keys, self.sums = self.keys[:, : length + 1], self.sums[:length]


class SegmentsIgnored(Packed):
    """Every sequence of a packed row goes on from the one before."""

    def kept(self, h: Tensor, same: Tensor, t: int) -> Tensor:
        return h


class BoundaryMissedAtAChunk(Packed):
    """A sequence that begins where a chunk of 8 does goes on from the one before."""

    def kept(self, h: Tensor, same: Tensor, t: int) -> Tensor:
        return h if t % 8 == 0 else super().kept(h, same, t)


class GradientLeaksOverBoundaries(Packed):
    """Outputs are right; the backward pass goes on into the sequence before."""

    def kept(self, h: Tensor, same: Tensor, t: int) -> Tensor:
        right = super().kept(h, same, t)
        return right + 0.5 * (h - h.detach())


class WritesItsOutputsAgain(Remembering):
    """Outputs are kept in one buffer, which the next call of the same shape overwrites."""

    buffer: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask).detach()
        if self.buffer is None or self.buffer.shape != y.shape:
            self.buffer = torch.empty_like(y)
        return self.buffer.copy_(y)
