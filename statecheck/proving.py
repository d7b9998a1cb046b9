"""Are the statistics that a model tells of its states those of its states? Found by trying, before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from statecheck import states as functions
from statecheck.errors import StatecheckError
from statecheck.observing import KEYS, NEAR, measured, misfit, near_largest
from statecheck.protocol import Capability, ModelFacts, States, Statistics
from statecheck.recording import real, units

WARM = 3  # elements read before the first observed call
CALLS = ((4, 2, True), (2, 1, False))  # elements of an observed call, every, entropy
ELEMENTS = WARM + sum(call[0] for call in CALLS)  # what a trial reads


class Reader(Protocol):
    """What a trial asks of a model: it reads, with statistics or without, and shows its states."""

    def __call__(self, inputs: Tensor) -> Tensor: ...
    def get_states(self) -> States: ...
    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Statistics]: ...


def with_statistics(make: Callable[[], Reader], module: object, facts: ModelFacts, inputs: Tensor) -> ModelFacts:
    """`facts` with the capability STATISTICS, or with the reason why it is missing; `inputs` as :func:`flaw` wants."""
    if not callable(getattr(module, "forward_with_statistics", None)):
        reason: str | None = "the module has no forward_with_statistics: traces read its states"
    else:
        try:
            reason = flaw(make, facts, inputs)
        except StatecheckError as error:
            reason = str(error)
    if reason is None:
        return replace(facts, capabilities=facts.capabilities | {Capability.STATISTICS})
    return replace(facts, missing={**facts.missing, Capability.STATISTICS: reason})


def flaw(make: Callable[[], Reader], facts: ModelFacts, inputs: Tensor) -> str | None:
    """Why the statistics that a model tells of itself can't be used; None if they are those of its states.

    `make` gives the model without history; `inputs` are ELEMENTS long. One copy is asked and another only read:
    outputs, states and every statistic must agree to the square root of the precision of the dtype.
    """
    if Capability.REBUILD not in facts.capabilities:
        return "the model can't be copied: there is nothing to hold its statistics against"
    lost = [name for name in facts.names() if not _has_heads(facts, name)]
    if lost or not facts.names():
        return f"state {lost[0]!r} has not the head axis that is declared" if lost else "no state is recurrent"
    asked, trial = make(), _Trial(make(), facts)
    asked(inputs[:, :WARM])
    trial.read(inputs[:, :WARM])
    start = WARM
    for elements, every, entropy in CALLS:
        call = inputs[:, start : start + elements]
        told = asked.forward_with_statistics(call, every=every, entropy=entropy, running=trial.running or None)
        wrong = misfit(told[1], facts, call.shape[0], elements // every, entropy=entropy)
        wrong = wrong or trial.difference(call, told, every, entropy=entropy)
        if wrong:
            return wrong
        if not functions.distance(asked.get_states(), trial.model.get_states()) <= trial.tolerance:
            return "it leaves other states behind than a call does"
        trial.double_running()
        start += elements
    silent = [name for name, running in trial.running.items() if not bool(running.any())]
    return f"state {silent[0]!r} stayed zero while it was tried: nothing could be compared" if silent else None


def _has_heads(facts: ModelFacts, name: str) -> bool:
    axis = facts.states[name].head_axis
    return axis is None or 1 <= axis <= len(facts.states[name].shape)


class _Trial:
    """The copy that is only read, and what its states say."""

    def __init__(self, model: Reader, facts: ModelFacts) -> None:
        self.model = model
        self.facts = facts
        self.running: dict[str, Tensor] = {}
        dtypes = (facts.dtype, *(facts.states[name].dtype for name in facts.names()))
        self.tolerance = max(_precision(getattr(torch, dtype)) for dtype in dtypes) ** 0.5

    def read(self, inputs: Tensor) -> Tensor:
        """Outputs, one element a call where the model takes no more on a warm state."""
        length = inputs.shape[1] if Capability.CHUNKS in self.facts.capabilities else 1
        return torch.cat([self.model(piece) for piece in inputs.split(length, dim=1)], dim=1)

    def difference(self, call: Tensor, told: tuple[Tensor, Statistics], every: int, *, entropy: bool) -> str | None:
        """Where what was told of `call` differs from what is read; None if nowhere."""
        outputs, found = told
        last = call.shape[1] // every - 1
        for index, inputs in enumerate(call.split(every, dim=1)):
            read = self.read(inputs)
            if not functions.relative(outputs[:, index * every : (index + 1) * every], read) <= self.tolerance:
                return "its outputs are not those of a call"
            for name, h in self._heads():
                now = {key: found[name][key][:, index] for key in KEYS if entropy or key != "entropy"}
                if index == last:
                    now["running"] = found[name]["running"]
                wrong = self._wrong(name, now, h)
                if wrong:
                    return wrong
        return None

    def double_running(self) -> None:
        """Pretend that twice as much was held before: a model that does not go by what it is given is found out."""
        self.running = {name: 2 * value for name, value in self.running.items()}

    def _heads(self) -> Iterator[tuple[str, Tensor]]:
        """Each recurrent state, not normalised, (rows, heads, units) float64."""
        states = self.model.get_states()
        for name in self.facts.names():
            state = replace(self.facts.states[name], normaliser=None)
            h = real(units(states, name, state))
            yield name, h.reshape(h.shape[0], state.heads, -1)

    def _wrong(self, name: str, found: Mapping[str, Tensor], h: Tensor) -> str | None:
        """The first of the statistics (rows, heads) that is not that of the state itself, with both numbers."""
        if not bool(torch.isfinite(h).all()):
            return f"state {name!r} was not finite while it was tried: nothing could be compared"
        measures = measured(h.flatten(1), h.shape[1], self.running.get(name))
        self.running[name] = measures["running"]
        expected = {key: value.reshape(h.shape[:2]) for key, value in measures.items()}
        for key, value in ((key, value.to(h)) for key, value in found.items()):
            wrong = self._beyond(key, value, expected, h)
            if bool(wrong.any()):
                there = (float(value[wrong][0]), float(expected[key][wrong][0]))
                return f"{key} of state {name!r} is {there[0]:.4g}, and {there[1]:.4g} by get_states()"
        return None

    def _beyond(self, key: str, found: Tensor, expected: Mapping[str, Tensor], h: Tensor) -> Tensor:
        """Where one statistic is wrong, (rows, heads)."""
        slack = self.tolerance
        if key == "near_largest":
            least, most = (near_largest(h, expected["running"], NEAR + sign * slack) for sign in (1, -1))
            return (found < least) | (found > most)
        room = {
            "square_sum": 2 * slack * expected["square_sum"],
            "mean": slack * expected["largest"],
            "largest": slack * expected["largest"],
            "running": slack * expected["running"],
            "entropy": slack * torch.ones_like(expected["largest"]),
            "nonfinite": torch.zeros_like(expected["largest"]),
        }
        return ~((found - expected[key]).abs() <= room[key])


def _precision(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
