"""What a trace holds while it streams: a bounded table of lines, sums of cosines, and a ring of the last states."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statecheck.observing import COLUMNS, KEYS, combined, units_of_a_head
from statecheck.protocol import ModelFacts, States, Statistics
from statecheck.recording import Group, groups, values
from statecheck.verdict import Series

LAGS = (1, 2, 4, 8, 16, 32)  # in units of `apart`
CENTRED_FROM = 4  # rows from which cosines are taken after the mean over rows is removed
PENDING, PENDING_CALLS = 512, 32  # observations, and calls that brought them, that are put together at once

Line = dict[str, float | int | str]


@dataclass
class Table:
    """Lines of statistics, thinned by halves so that there are fewer than `points` observations.

    `stride` observations make a kept one. Which are kept depends on their number alone, not on how they came in.
    """

    facts: ModelFacts
    every: int
    points: int
    stride: int = 1
    seen: int = 0
    first_nonfinite: int | None = None
    pending: list[Statistics] = field(default_factory=list)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.groups = groups(self.facts)
        self.index: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.rows = [np.empty((0, len(COLUMNS))) for _ in self.groups]

    def add(self, found: Statistics, observations: int) -> None:
        """Take in the statistics of the next observations, (batch, observations, heads) each."""
        self.pending.append(found)
        self.waiting += observations
        if self.waiting >= PENDING or len(self.pending) >= PENDING_CALLS:
            self.put_together()

    def put_together(self) -> None:
        """Turn what is pending into lines; only those that stay are computed."""
        index = self.seen + 1 + np.arange(self.waiting)
        self.seen += self.waiting
        while self.seen // self.stride >= self.points:
            self.stride *= 2
        stays, new = self.index % self.stride == 0, index[index % self.stride == 0]
        chosen = torch.from_numpy(new - index[0]) if len(index) else torch.empty(0, dtype=torch.int64)
        for place, group in enumerate(self.groups):
            parts = [(self._joined(name), units_of_a_head(self.facts.states[name])) for name in group.names]
            self._note_nonfinite([found["nonfinite"] for found, _ in parts], index)
            kept = [({key: of[key].index_select(1, chosen.to(of[key].device)) for key in KEYS}, n) for of, n in parts]
            lines = combined(kept).numpy(force=True) if len(new) else self.rows[place][:0]
            self.rows[place] = np.concatenate([self.rows[place][stays], lines])
        self.index = np.concatenate([self.index[stays], new])
        self.pending, self.waiting = [], 0

    def _joined(self, name: str) -> dict[str, Tensor]:
        return {key: torch.cat([found[name][key] for found in self.pending], dim=1) for key in KEYS}

    def _note_nonfinite(self, counts: Sequence[Tensor], index: NDArray[np.int64]) -> None:
        broken = torch.stack([count.sum(dim=(0, 2)) for count in counts]).sum(dim=0).nonzero()
        if len(broken):
            first = int(index[int(broken[0])]) * self.every
            self.first_nonfinite = min(first, self.first_nonfinite or first)

    def lines(self) -> list[Line]:
        """One an observation and group, in the order that they were read."""
        if self.waiting:
            self.put_together()
        found: list[Line] = []
        for at, position in enumerate(self.index * self.every):
            for group, rows in zip(self.groups, self.rows, strict=True):
                where: Line = {"position": int(position), "component": group.component, "layer": group.layer}
                found.append(where | dict(zip(COLUMNS, rows[at].tolist(), strict=True)))
        return found


class Cosines:
    """Running means of the cosines between states `apart` elements, and multiples of that, away from each other."""

    def __init__(self, facts: ModelFacts, apart: int) -> None:
        self.facts = facts
        self.apart = apart
        self.groups = groups(facts)
        self.ring: deque[list[Tensor]] = deque(maxlen=max(LAGS))
        self.sums = np.zeros((len(self.groups), len(LAGS)))
        self.counts = np.zeros((len(self.groups), len(LAGS)), dtype=int)
        self.centred = False

    def look(self, states: States) -> None:
        """Take in the states after another `apart` elements."""
        now = [_directions(values(states, self.facts, group)) for group in self.groups]
        self.centred = bool(now) and now[0].shape[0] >= CENTRED_FROM
        lags = [lag for lag in LAGS if lag <= len(self.ring)]
        if lags and now:
            found = [[_mean_cosine(h, self.ring[-lag][g]) for lag in lags] for g, h in enumerate(now)]
            table = torch.stack([torch.stack(row) for row in found]).numpy(force=True)
            finite = np.isfinite(table)
            self.sums[:, : len(lags)] += np.where(finite, table, 0.0)
            self.counts[:, : len(lags)] += finite
        self.ring.append(now)

    def curves(self) -> tuple[Series, ...]:
        """Cosine against lag in elements, one curve a group; lags that were never seen are left out."""
        kind = "centred cosine against lag" if self.centred else "cosine against lag"
        return tuple(
            self._curve(kind, group, sums, counts)
            for group, sums, counts in zip(self.groups, self.sums, self.counts, strict=True)
            if counts.any()
        )

    def _curve(self, kind: str, group: Group, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> Series:
        seen = [i for i, count in enumerate(counts) if count]
        x = tuple(float(LAGS[i] * self.apart) for i in seen)
        y = tuple(float(sums[i] / counts[i]) for i in seen)
        label = f"{group.component}, layer {group.layer}"
        return Series(kind, label, x, y, x_unit="tokens of lag", where=group.where)


def _directions(h: Tensor) -> Tensor:
    """Rows of length 1, centred by the mean over rows where there are enough of them; NaN for a row without length."""
    if h.shape[0] >= CENTRED_FROM:
        h = h - h.mean(dim=0)
    return h / h.norm(dim=1, keepdim=True)


def _mean_cosine(now: Tensor, earlier: Tensor) -> Tensor:
    """Mean over the rows that have a direction both times."""
    return (now * earlier).sum(dim=1).nanmean()
