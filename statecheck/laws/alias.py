"""ALIAS: a call changes nothing that the caller still holds: inputs, outputs, states, the cache of another sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

from statecheck.deviation import Deviation
from statecheck.errors import CapabilityMissing
from statecheck.histories.drawing import lengths, rows, seeds, values
from statecheck.holding import leaves, name
from statecheck.laws.contract import Evidence, Outcome, outcome_of, probe, run_search
from statecheck.protocol import Capability, StatefulModel, fresh, native_of
from statecheck.states import clone, distance
from statecheck.verdict import Absence, Status

Case = tuple[int, int, int, int]  # rows, elements of the first call, of the second, seed
Held = Mapping[str, Tensor]


@probe("ALIAS", "A call changes no state, input or output that the caller holds", cost="two short histories a claim")
def aliases(evidence: Evidence) -> Outcome:
    """Does a later call change what an earlier one was given or brought?

    `ALIAS.native`: inputs, outputs of the first call, and the cache of a sequence that was put aside while another is
    read (a cache that goes on itself may be updated in place: that is the contract of most libraries).
    `ALIAS.functional`: the states that get_states returned and those that set_states was given, too. By hand: nothing
    may change, so the deviation is 0 and the noise floor no excuse.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = aliases(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value) for m in found.measurements]
    [('ALIAS.native', 0.0), ('ALIAS.functional', 0.0)]
    """
    drawn = st.tuples(rows(), lengths(evidence.facts), st.integers(1, 3), seeds())
    parts = [run_search(evidence, "ALIAS.native", drawn, partial(_measure, evidence, _native))]
    if Capability.SET_STATES in evidence.facts.capabilities:
        parts.append(run_search(evidence, "ALIAS.functional", drawn, partial(_measure, evidence, _functional)))
    else:
        reason = evidence.facts.missing.get(Capability.SET_STATES, "states can't be put back")
        parts.append(Absence("ALIAS.functional", Status.SKIP, reason))
    return outcome_of(evidence, parts)


def _measure(evidence: Evidence, route: Callable[[StatefulModel, Tensor, Tensor], Deviation], case: Case) -> Deviation:
    count, first, second, seed = case
    inputs = values(evidence.facts, count, first + second, seed)
    parts = inputs.split([first, second], dim=1)
    return route(fresh(evidence.model), parts[0].clone(), parts[1].clone())


def _native(model: StatefulModel, first: Tensor, second: Tensor) -> Deviation:
    watched = _Watched()
    watched.add({"the inputs of the first call": first, "the inputs of the second call": second})
    watched.add({"the outputs of the first call": model(first)})
    native = native_of(model)
    if native.held is not None:
        parked, told = native.held(), "put aside with its sequence, "
        watched.add(_tensors(parked), told)
        model.set_states(None)
        model(second)
        watched.look_again(_tensors(parked), told)
    else:
        _on(model, second)
    return watched.changed()


def _functional(model: StatefulModel, first: Tensor, second: Tensor) -> Deviation:
    watched = _Watched()
    model(first)
    watched.add(model.get_states(), "returned by get_states, ")
    given = clone(model.get_states())
    model.set_states(given)
    watched.add(given, "given to set_states, ")
    _on(model, second)
    return watched.changed()


def _on(model: StatefulModel, inputs: Tensor) -> None:
    """Read on, element by element: every model can."""
    for part in inputs.split(1, dim=1):
        model(part)


def _tensors(held: object) -> dict[str, Tensor]:
    return {name(path): torch.as_tensor(leaf) for path, leaf in leaves(held).items()}


class _Watched:
    """Tensors that the caller holds, and copies of them."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}
        self.copies: dict[str, Tensor] = {}

    def add(self, held: Held, prefix: str = "") -> None:
        for key, value in held.items():
            self.held[prefix + key] = value
            self.copies[prefix + key] = value.detach().clone()

    def look_again(self, held: Held, prefix: str) -> None:
        """What an object holds now, that may have been given other tensors in place of those that were added."""
        for key in [key for key in self.held if key.startswith(prefix)]:
            self.held[key] = held.get(key.removeprefix(prefix), torch.empty(0))

    def changed(self) -> Deviation:
        """The largest relative change of a tensor, and which it was."""
        if not self.held:
            raise CapabilityMissing("nothing is held that a call could change")
        changes = {key: distance({key: value}, {key: self.copies[key]}) for key, value in self.held.items()}
        worst = max(changes, key=lambda key: changes[key])
        same = torch.equal(self.held[worst], self.copies[worst])
        return Deviation(changes[worst], "" if same else f"a later call changed what the caller holds: {worst}")
