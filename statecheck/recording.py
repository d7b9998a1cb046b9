"""One pass over the documents that all state probes share: what S1, S2, G3.5, D1, D2 and health are computed from.

The documents are a batch of n rows. The model reads them from no history in chunks; states are looked at at chosen
positions only, so that memory is a few numbers a channel and row, whatever the length. Positions count tokens read.

A *group* is a (component, layer): its recurrent states after division by a declared normaliser, flattened and put side
by side into (n, D). A *part* of a group is one head of one of its state tensors (the whole tensor if no head axis is
declared).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statecheck import dynamics
from statecheck import states as functions
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.protocol import Capability, ModelFacts, StateFacts, StatefulModel, States, fresh
from statecheck.verdict import Where

Array = NDArray[np.float64]
SAMPLE_BYTES = 256 * 2**20  # what the samples for pinned units may take


@dataclass(frozen=True)
class Part:
    """One head of one state tensor, and the channels of its group that it owns."""

    state: str
    head: int | None
    start: int
    stop: int

    def owns(self, channel: int) -> bool:
        """True if the group's channel lies in this part."""
        return self.start <= channel < self.stop


@dataclass(frozen=True)
class Group:
    """A (component, layer) with the recurrent states in it. `parts` tile the channels 0 .. size - 1."""

    component: str
    layer: int
    names: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Channels (units) of the group."""
        return self.parts[-1].stop

    @property
    def where(self) -> Where:
        """The place, for a measurement."""
        return Where(component=self.component, layer=self.layer)

    def place(self, part: Part) -> Where:
        """The place of one part."""
        return Where(component=self.component, layer=self.layer, state=part.state, head=part.head)

    def channel(self, index: int) -> Where:
        """The place of one channel: its state, head, and index inside that head."""
        part = next(part for part in self.parts if part.owns(index))
        inside = index - part.start
        return Where(component=self.component, layer=self.layer, state=part.state, head=part.head, channel=inside)


def groups(facts: ModelFacts) -> list[Group]:
    """All (component, layer) with recurrent states, in the order of the facts."""
    keys = dict.fromkeys((s.component, s.layer) for s in facts.states.values() if s.kind.recurrent)
    return [_group(facts, component, layer) for component, layer in keys]


def _group(facts: ModelFacts, component: str, layer: int) -> Group:
    names = tuple(facts.names(component=component, layer=layer))
    parts: list[Part] = []
    for name in names:
        state = facts.states[name]
        heads = state.heads
        numbers = 2 if state.dtype.startswith("complex") else 1
        width = numbers * int(np.prod(state.shape, dtype=int)) // heads
        start = parts[-1].stop if parts else 0
        for head in range(heads):
            label = None if state.head_axis is None else head
            parts.append(Part(name, label, start + head * width, start + (head + 1) * width))
    return Group(component, layer, names, tuple(parts))


def values(states: Mapping[str, Tensor], facts: ModelFacts, group: Group) -> Tensor:
    """The group's state as (n, D) float64: normalised, heads first, tensors side by side; complex units as pairs."""
    return torch.cat([real(units(states, name, facts.states[name])) for name in group.names], dim=1)


def real(value: Tensor) -> Tensor:
    """(n, units) with complex units as pairs of numbers side by side."""
    return torch.view_as_real(value).flatten(1) if value.is_complex() else value


def units(states: Mapping[str, Tensor], name: str, state: StateFacts) -> Tensor:
    """One state tensor as (n, units), float64 or complex128: normalised, heads first."""
    value = functions.wide(states[name].detach())
    if state.normaliser is not None:
        value = value / _aligned(functions.wide(states[state.normaliser].detach()), value)
    if state.head_axis is not None:
        value = value.movedim(state.head_axis, 1)
    return value.reshape(value.shape[0], -1)


def _aligned(normaliser: Tensor, value: Tensor) -> Tensor:
    """The normaliser with trailing axes of 1 until it broadcasts; not under the smallest normal number."""
    tiny = torch.finfo(normaliser.dtype).tiny
    safe = torch.where(normaliser.abs() < tiny, torch.full_like(normaliser, tiny), normaliser)
    return safe.reshape(safe.shape + (1,) * (value.dim() - safe.dim()))


def walk(
    model: StatefulModel, inputs: Tensor, stops: Sequence[int], *, chunk: int = 64, states: States | None = None
) -> Iterator[tuple[int, States, Tensor]]:
    """(position, states, outputs since the last stop) after exactly each of `stops` tokens (ascending, from 1).

    Starts from no history, or from `states`. Calls are at most `chunk` tokens long, one token where the model can't
    take more on a warm state. `model` is left with its last states.
    """
    if Capability.CHUNKS not in model.facts.capabilities:
        chunk = 1
    if states is None:
        model = fresh(model)
    else:
        model.facts.require(Capability.SET_STATES)
        model.set_states(functions.clone(states))
    position = 0
    for stop in stops:
        outputs = []
        while position < stop:
            length = min(chunk, stop - position)
            outputs.append(model(inputs[:, position : position + length]))
            position += length
        yield stop, model.get_states(), torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class Schedule:
    """Which positions are looked at. T0 = `baseline`, T = `final`, windows (T0 - W, T0] and (T - W, T]."""

    baseline: int
    final: int
    window: int
    lag: int
    start: int  # cosines and pinned units from here on

    @staticmethod
    def of(training_length: int, *, baseline: float, final: float, window: float, lag: int, start: float) -> Schedule:
        """The schedule of phase 3.9: lengths are multiples of the training length."""
        return Schedule(
            baseline=max(2, round(baseline * training_length)),
            final=max(3, round(final * training_length)),
            window=max(2, round(window * training_length)),
            lag=max(1, min(lag, training_length // 4)),
            start=max(1, round(start * training_length)),
        )

    def windows(self) -> tuple[list[int], list[int]]:
        """Positions of the baseline window and of the final window."""
        first = range(max(1, self.baseline - self.window + 1), self.baseline + 1)
        last = range(max(self.baseline + 1, self.final - self.window + 1), self.final + 1)
        return list(first), list(last)

    def grid(self) -> list[int]:
        """Positions for cosines: half a lag apart, the first a lag before `start`, and those a lag before each."""
        step = max(1, self.lag // 2)
        regular = range(max(step, (self.start - self.lag) // step * step), self.final + 1, step)
        return sorted({t for at in regular for t in (at, at - self.lag) if t >= 1})

    def dependence(self) -> list[int]:
        """Four positions at the end of the baseline window, for the dependence on the input."""
        first = self.windows()[0]
        return first[:: -max(1, len(first) // 4)][:4]


@dataclass
class GroupRecord:
    """What was accumulated for one group. n rows, D channels."""

    group: Group
    baseline_square: Array  # (n, D) mean of h^2 over the baseline window
    final_square: Array  # (n, D) over the final window
    grams: list[Array] = field(default_factory=list)  # (n, n) each: h h^T at the positions of `dependence`
    cosines: list[Array] = field(default_factory=list)  # (n,) each: centred, at the lag
    raw: list[Array] = field(default_factory=list)  # (n,) each: raw cosine at lag 1
    samples: list[NDArray[np.float32]] = field(default_factory=list)  # (n, D) each
    rms: list[Array] = field(default_factory=list)  # (n,) each, at the record's positions
    largest: float = 0.0

    @property
    def moves(self) -> bool:
        """True if the rows differ somewhere, so that a centred cosine exists."""
        return bool(self.cosines)

    def cosine(self) -> Array:
        """Mean over positions of the centred cosine at the lag, (n,)."""
        return np.mean(self.cosines, axis=0)

    def growth(self) -> Array:
        """RMS at the end over RMS at the baseline, of each part, (n, parts)."""
        spans = [(part.start, part.stop) for part in self.group.parts]
        return dynamics.growth(self.baseline_square, self.final_square, spans)

    def channel_growth(self) -> Array:
        """The same for each channel, (n, D)."""
        return dynamics.growth(self.baseline_square, self.final_square, [(i, i + 1) for i in range(self.group.size)])

    def pinned(self) -> tuple[Array, NDArray[np.bool_], int]:
        """What :func:`statecheck.dynamics.pinned_share` asks for: near (n, D), alive (D,), positions."""
        near, alive = dynamics.near_largest(self.samples)
        return near, alive, len(self.samples)


@dataclass
class Record:
    """The shared trace. `nonfinite` is (first position, what), `ended` where and why the model stopped taking input."""

    facts: ModelFacts
    schedule: Schedule
    n: int
    groups: list[GroupRecord]
    positions: list[int] = field(default_factory=list)
    nonfinite: tuple[int, tuple[str, ...]] | None = None
    ended: tuple[int, str] | None = None

    @property
    def reached(self) -> int:
        """The last position with finite states."""
        return self.positions[-1] if self.positions else 0


@torch.no_grad()
def record(model: StatefulModel, inputs: Tensor, schedule: Schedule) -> Record:
    """Read `inputs` (n, >= schedule.final) from no history and accumulate. One forward pass over the documents.

    Stops at the first non-finite state or output, and where the model raises beyond its trained length; what was seen
    before stays. Raises :class:`ModelRaised` when the model raises within the baseline length.
    """
    kept = groups(model.facts)
    n = inputs.shape[0]
    shapes = [(n, group.size) for group in kept]
    result = Record(
        model.facts, schedule, n, [GroupRecord(g, np.zeros(s), np.zeros(s)) for g, s in zip(kept, shapes, strict=True)]
    )
    observer = _Observer(result, sum(group.size for group in kept))
    previous: States | None = None
    try:
        for position, states, outputs in walk(model, inputs, observer.stops):
            broken = functions.nonfinite(states) or ([] if bool(torch.isfinite(outputs).all()) else ["the output"])
            if broken:
                result.nonfinite = _first_nonfinite(model, inputs, result.reached, previous, position, broken)
                break
            _require_rows(states, n)
            observer.look(position, states)
            previous = states
    except ModelRaised as error:
        if result.reached < schedule.baseline:
            raise
        result.ended = (result.reached, str(error))
    return result


def _require_rows(states: States, n: int) -> None:
    """Raise :class:`CapabilityMissing` for a state that has not one row a document: S0 reports it as a fault."""
    for name, value in states.items():
        if value.shape[:1] != (n,):
            found = f"state {name!r} has shape {tuple(value.shape)} for a batch of {n}"
            raise CapabilityMissing(f"{found}: nothing can be told of single documents; see S0")


def _first_nonfinite(
    model: StatefulModel, inputs: Tensor, before: int, states: States | None, at: int, broken: list[str]
) -> tuple[int, tuple[str, ...]]:
    """The very token after which something is not finite: the last stretch again, one token a call."""
    if states is None and before:
        return at, tuple(broken)
    if Capability.SET_STATES not in model.facts.capabilities:
        return at, tuple(broken)
    for step, now, outputs in walk(model, inputs[:, before:at], range(1, at - before + 1), states=states):
        found = functions.nonfinite(now) or ([] if bool(torch.isfinite(outputs).all()) else ["the output"])
        if found:
            return before + step, tuple(found)
    return at, tuple(broken)


class _Observer:
    """Adds the states at one position to the record; keeps the few states that a lag needs."""

    def __init__(self, result: Record, size: int) -> None:
        self.result = result
        self.schedule = result.schedule
        first, last = self.schedule.windows()
        grid = self.schedule.grid()
        self.first, self.last, self.grid = set(first), set(last), set(grid)
        self.dependence = set(self.schedule.dependence())
        self.stops = sorted(self.first | self.last | self.grid)
        self.past: dict[int, list[Tensor]] = {}
        self.sampled = self._thinned(grid, size)

    def _thinned(self, grid: list[int], size: int) -> set[int]:
        wanted = [t for t in grid if t >= self.schedule.start]
        room = max(4, SAMPLE_BYTES // (4 * self.result.n * max(1, size)))
        return set(wanted[:: max(1, -(-len(wanted) // room))])

    def look(self, position: int, states: States) -> None:
        now = [values(states, self.result.facts, item.group) for item in self.result.groups]
        self.result.positions.append(position)
        for item, h in zip(self.result.groups, now, strict=True):
            item.largest = max(item.largest, float(h.abs().max()))
            item.rms.append(h.square().mean(dim=1).sqrt().numpy(force=True))
            self._windows(position, item, h)
        self._lags(position, now)
        self.past[position] = now
        for old in [t for t in self.past if t <= position - self.schedule.lag]:
            del self.past[old]

    def _windows(self, position: int, item: GroupRecord, h: Tensor) -> None:
        if position in self.first:
            item.baseline_square += h.square().numpy(force=True) / len(self.first)
        if position in self.last:
            item.final_square += h.square().numpy(force=True) / len(self.last)
        if position in self.dependence:
            item.grams.append((h @ h.T).numpy(force=True))
        if position in self.sampled:
            item.samples.append(h.float().numpy(force=True))

    def _lags(self, position: int, now: list[Tensor]) -> None:
        earlier = self.past.get(position - self.schedule.lag)
        before = self.past.get(position - 1)
        for i, (item, h) in enumerate(zip(self.result.groups, now, strict=True)):
            if earlier is not None and position in self.grid and position >= self.schedule.start:
                cosine = _centred_cosine(h, earlier[i])
                if cosine is not None:
                    item.cosines.append(cosine)
            if before is not None:
                item.raw.append(torch.cosine_similarity(h, before[i], dim=1).numpy(force=True))


def _centred_cosine(now: Tensor, earlier: Tensor) -> Array | None:
    """Cosine of each row after each side lost its mean over rows; None where the rows do not differ."""
    a, b = now - now.mean(dim=0), earlier - earlier.mean(dim=0)
    noise = 1e-7 * torch.stack([now.norm(dim=1), earlier.norm(dim=1)]).max()
    if bool((torch.stack([a.norm(dim=1), b.norm(dim=1)]) <= noise).any()):
        return None
    return torch.cosine_similarity(a, b, dim=1, eps=0.0).numpy(force=True)
