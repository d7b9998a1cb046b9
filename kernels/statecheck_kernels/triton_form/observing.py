"""Statistics of the state, taken while it is in registers: see `contract.StateStatistics` for what each of them is.

A program holds a block of a head, and writes the sums of its block after each observed step; torch adds the blocks up.
Which units are near the largest can be told by one pass only where a program holds a whole head, because the largest
of the head so far must be known at that step. Otherwise the recurrence runs a second time, with the largest of all
blocks at hand (`limits`), and writes nothing but the count. All statistics are computed in float64.
"""

# ruff: noqa: SIM108  an `if` by itself is decided when the kernel is compiled, not when it runs
from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from statecheck_kernels.contract import NEAR, Observe, StateStatistics

SHARE = tl.constexpr(NEAR)


class Watch(NamedTuple):
    """What a kernel needs to take statistics, passed to it as it is: sums are (blocks, B, observed steps, H).

    No field is ever None: triton 3.5 takes no None inside a tuple.
    """

    squares: Tensor  # float64
    largest: Tensor  # float64
    totals: Tensor  # float64
    finite: Tensor  # float64: largest finite magnitude of the block at the step
    near: Tensor  # int64
    nonfinite: Tensor  # int64
    logs: (
        Tensor  # float64: sum of e log e with e = h^2; `squares` again, and not written, where entropy isn't asked for
    )
    running: Tensor  # (rows, H) float64: largest finite magnitude before the call
    peaks: Tensor  # (blocks, rows, H) float64: the same after the call, of the block
    limits: Tensor  # (B, observed steps, H) float64: `finite` of the whole head, which the second pass reads
    every: int
    batches: int
    steps: int  # observed

    @property
    def divided(self) -> bool:
        """Whether heads are spread over programs, so that a second pass has to count what is near the largest."""
        return self.squares.shape[0] > 1

    @property
    def entropy(self) -> bool:
        """Whether it is asked for."""
        return self.logs is not self.squares

    def second(self) -> Watch:
        """For the second pass, once the first has run."""
        return self._replace(limits=self.finite.amax(0))

    def statistics(self, units: int) -> StateStatistics:
        """What the kernel wrote, of heads of so many units."""
        square_sum, nonfinite = self.squares.sum(0), self.nonfinite.sum(0)
        return StateStatistics(
            square_sum=square_sum,
            largest=self.largest.amax(0),
            mean=self.totals.sum(0) / max(1, units),
            near_largest=self.near.sum(0),
            nonfinite=nonfinite,
            entropy=_entropy(self.logs.sum(0), square_sum, nonfinite, units) if self.entropy else None,
            running=self.peaks.amax(0),
        )


def watch(observe: Observe, like: Tensor, rows: int, heads: int, blocks: int) -> Watch:
    """Room for the statistics of a call on inputs (B, T, ...) `like`."""
    blocks = max(1, blocks)
    batches, steps = like.shape[0], like.shape[1] // observe.every
    shape = (blocks, batches, steps, heads)
    squares, largest, totals, finite = like.new_zeros((4, *shape), dtype=torch.float64)
    near, nonfinite = like.new_zeros((2, *shape), dtype=torch.int64)
    logs = torch.zeros_like(squares) if observe.entropy else squares
    running = squares.new_zeros(rows, heads) if observe.running is None else observe.running.to(squares).contiguous()
    peaks = running.repeat(blocks, 1, 1)  # where no program runs they stay as they were
    sums = (squares, largest, totals, finite, near, nonfinite, logs)
    return Watch(*sums, running, peaks, finite[0], observe.every, batches, steps)


def _entropy(logs: Tensor, square_sum: Tensor, nonfinite: Tensor, units: int) -> Tensor:
    """-sum p log p / log n from sum e log e and sum e: log sum e - (sum e log e) / sum e."""
    if units <= 1:
        value = torch.zeros_like(square_sum)
    else:
        safe = torch.where(square_sum > 0, square_sum, 1.0)
        value = ((safe.log() - logs / safe) / math.log(units)).clamp(0, 1)
    value = torch.where(square_sum > 0, value, 0.0)
    return torch.where(nonfinite > 0, math.nan, value)


@triton.jit
def peak_before(watch: tl.tuple, row: tl.tensor, head: tl.tensor, H: tl.tensor) -> tl.tensor:
    """The largest finite magnitude that the row's head has held before the call."""
    if watch is not None:
        peak = tl.load(watch.running + row * H + head)
    else:
        peak = tl.zeros((), tl.float64)
    return peak


@triton.jit
def observe_state(
    h: tl.tensor,
    peak: tl.tensor,
    watch: tl.tuple,
    t: tl.tensor,
    batch: tl.tensor,
    block: tl.tensor,
    head: tl.tensor,
    H: tl.tensor,
    COUNT: tl.constexpr,
    ENTROPY: tl.constexpr,
) -> tl.tensor:
    """Write the statistics of the block h after step t (0 outside the state) and return the largest so far.

    COUNT: the second pass.
    """
    step = (t + 1) // watch.every - 1
    place = (batch * watch.steps + step) * H + head
    at = place + block * watch.batches * watch.steps * H
    wide = h.to(tl.float64)
    size = tl.abs(wide)
    finite = size < float("inf")  # false for NaN too
    if COUNT:
        peak = tl.maximum(peak, tl.load(watch.limits + place))
    else:
        highest = tl.max(tl.where(finite, size, 0.0))
        peak = tl.maximum(peak, highest)
        missing = tl.sum((wide != wide).to(tl.int64))
        energy = wide * wide
        tl.store(watch.squares + at, tl.sum(energy))
        tl.store(watch.largest + at, tl.where(missing > 0, float("nan"), tl.max(tl.where(wide == wide, size, 0.0))))
        tl.store(watch.totals + at, tl.sum(wide))
        tl.store(watch.finite + at, highest)
        tl.store(watch.nonfinite + at, tl.sum((size >= float("inf")).to(tl.int64)) + missing)
        if ENTROPY:
            tl.store(watch.logs + at, tl.sum(energy * tl.log(tl.where(energy > 0, energy, 1.0))))
    near = finite & (size >= tl.where(peak > 0, SHARE * peak, float("inf")))
    tl.store(watch.near + at, tl.sum(near.to(tl.int64)))
    return peak


@triton.jit
def keep_peak(
    watch: tl.tuple, peak: tl.tensor, row: tl.tensor, rows: tl.tensor, block: tl.tensor, head: tl.tensor, H: tl.tensor
) -> None:
    """Write the largest so far at the end of the call; torch takes the largest of all blocks."""
    if watch is not None:
        tl.store(watch.peaks + (block * rows + row) * H + head, peak)
