"""What memories are worth: documents are cut, states exchanged with a donor's, and the loss of what follows compared.

v(S) is minus the mean loss after a cut when the components in S keep their states and the others have a donor's. What
a component is worth is its Shapley value in this game (Shapley 1953): what it adds to v, over all orders of joining.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from torch import Tensor

from statecheck import states as functions
from statecheck.dynamics import Array
from statecheck.experiments import (
    Donors,
    credited,
    document_losses,
    draw_donors,
    loss_scale,
    loss_unit,
    of_donors,
    states_of,
    transplanted,
)
from statecheck.protocol import ModelFacts, StatefulModel, States
from statecheck.recording import walk
from statecheck.statistics import Index

Place = tuple[str, int]  # (component, layer)
HeadPlace = tuple[str, int, int]  # and head
Key = TypeVar("Key")


@dataclass(frozen=True)
class Worth:
    """What memories are worth to each of n documents, in `unit`.

    `values` (n, 2^players) holds v(S), bit b of the column set where component b keeps its state. `layers` and `heads`
    hold, (n,) each, the rise of the loss when that place alone has a donor's state, at the last of the `boundaries`.
    """

    players: tuple[str, ...]
    values: Array
    layers: Mapping[Place, Array]
    heads: Mapping[HeadPlace, Array]
    boundaries: tuple[int, ...]
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.values)

    def memory(self) -> Array:
        """v(all) - v(none), (n,)."""
        return self.values[:, -1] - self.values[:, 0]

    def tables(self) -> dict[str, Array]:
        """By their names: Shapley, first-in and last-in values, and redundancy, (n, players) each."""
        everyone = 2 ** len(self.players) - 1
        alone = [1 << b for b in range(len(self.players))]
        first = self.values[:, alone] - self.values[:, :1]
        last = self.values[:, -1:] - self.values[:, [everyone ^ b for b in alone]]
        phi = shapley(self.values)
        return {"Shapley value": phi, "first-in value": first, "last-in value": last, "redundancy": phi - last}

    def shares(self, index: Index) -> Array:
        """(resamples, n) -> (resamples, players): max(phi, 0) / sum of them; all 0 where no component adds anything."""
        added = np.maximum(shapley(self.values)[index].mean(axis=1), 0.0)
        total = added.sum(axis=1, keepdims=True)
        return np.divide(added, total, out=0 * added, where=total > 0)


def shapley(values: Array) -> Array:
    """Shapley values (n, players) of v(S) (n, 2^players), in the order of the bits of S.

    phi_b = sum over S without b of |S|! (players - |S| - 1)! / players! (v(S with b) - v(S)): exactly 0 for a player
    that never changes v.

    >>> shapley(np.array([[0.0, 1.0, 2.0, 5.0]]))  # v(none), v(first), v(second), v(both)
    array([[2., 3.]])
    """
    players = values.shape[1].bit_length() - 1
    found = np.zeros((len(values), players))
    for b in range(players):
        others = [1 << other for other in range(players) if other != b]
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for subset in map(sum, combinations(others, size)):
                found[:, b] += weight * (values[:, subset | 1 << b] - values[:, subset])
    return found


def players_of(facts: ModelFacts) -> tuple[str, ...]:
    """The components that have states."""
    return tuple(name for name in facts.components if states_of(facts, name))


def worth_of_memories(
    model: StatefulModel,
    windows: Tensor,
    boundaries: Sequence[int],
    after: int,
    generator: np.random.Generator,
    *,
    heads: bool = False,
) -> Worth:
    """What each component's memory is worth for the `after` elements that follow each of the ascending `boundaries`.

    `windows` (n, at least last boundary + after + 1) are read from no history; each boundary has other donors. The
    model needs SET_STATES. Losses of each set of components, of each layer alone, and of each head with `heads`.
    """
    players, donors = players_of(model.facts), draw_donors(len(windows), len(boundaries), generator)
    exchanged = [_states_without(model.facts, players, kept) for kept in range(2 ** len(players))]
    tables = np.empty((len(exchanged), *donors.shape))
    layers: dict[Place, Array] = {}
    single: dict[HeadPlace, Array] = {}
    for row, cut in enumerate(_cuts(model, windows, boundaries, after, donors)):
        tables[:, row] = [cut.without(names) for names in exchanged]
        if row == len(donors) - 1:
            layers = cut.rises({place: cut.without(names) for place, names in _by_layer(model.facts).items()})
            own = _by_head(model.facts) if heads else {}
            single = cut.rises({place: cut.without_head(names, place[2]) for place, names in own.items()})
    values = np.stack([credited(-table, donors) for table in tables], axis=1)
    return Worth(players, values, layers, single, tuple(boundaries), loss_unit(model.facts))


def _states_without(facts: ModelFacts, players: Sequence[str], kept: int) -> list[str]:
    """All states of the components that are not in the set `kept`."""
    return [name for b, player in enumerate(players) if not kept >> b & 1 for name in states_of(facts, player)]


@dataclass(frozen=True)
class Cut:
    """Documents cut at a boundary: their states there, those of their donors (n,), and what comes after.

    `rest` (n, after + 1) begins with the first element that is read on; losses are divided by `scale`.
    """

    model: StatefulModel
    own: States
    foreign: States
    donors: Donors
    rest: Tensor
    scale: float

    def losses(self, states: States) -> Array:
        """Mean loss of each document after the boundary when it goes on from `states`, (n,)."""
        self.model.set_states(states)
        return document_losses(self.model, self.rest).numpy(force=True) / self.scale

    def without(self, names: Iterable[str]) -> Array:
        """The same when the states `names` are the donor's."""
        return self.losses(transplanted(self.own, self.foreign, names))

    def without_head(self, names: Iterable[str], head: int) -> Array:
        """The same when one head of the states `names` is the donor's."""
        mixed = functions.clone(self.own)
        for name in names:
            axis = self.model.facts.states[name].head_axis
            assert axis is not None
            mixed[name].select(axis, head).copy_(self.foreign[name].select(axis, head))
        return self.losses(mixed)

    def rises(self, found: Mapping[Key, Array]) -> dict[Key, Array]:
        """Losses less those of documents that keep all their states, as credited."""
        kept = self.without(())
        return {place: credited((losses - kept)[None], self.donors[None]) for place, losses in found.items()}


def _cuts(
    model: StatefulModel, windows: Tensor, boundaries: Sequence[int], after: int, donors: Donors
) -> Iterator[Cut]:
    """The documents cut at each boundary. The model may be used until the next is asked for."""
    scale = loss_scale(windows, model.facts)
    for rows, (at, own, _) in zip(donors, walk(model, windows, boundaries), strict=True):
        yield Cut(model, own, of_donors(own, rows), rows, windows[:, at : at + after + 1], scale)
        model.set_states(functions.clone(own))  # the walk goes on from where it was


def _by_layer(facts: ModelFacts) -> dict[Place, list[str]]:
    """The states of each (component, layer)."""
    places = dict.fromkeys((state.component, state.layer) for state in facts.states.values())
    return {(component, layer): states_of(facts, component, layer) for component, layer in sorted(places)}


def _by_head(facts: ModelFacts) -> dict[HeadPlace, list[str]]:
    """The states of each (component, layer) that have this head."""
    found: dict[HeadPlace, list[str]] = {}
    for name, state in facts.states.items():
        if state.head_axis is not None:
            for head in range(state.shape[state.head_axis - 1]):
                found.setdefault((state.component, state.layer, head), []).append(name)
    return dict(sorted(found.items()))
