"""HONEST: what get_states returns is the whole memory, and nothing of it is idle."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from statecheck.adapters.contract import NOT_GIVEN_BACK
from statecheck.deviation import deviation
from statecheck.histories.drawing import lengths, rows, seeds, values
from statecheck.histories.operations import Claim, Feed, Forget, History, Move, Operation, Slot
from statecheck.laws.contract import Evidence, Outcome, floor_of, hold, probe
from statecheck.protocol import Capability, StatefulModel, States, fresh
from statecheck.states import clone, replace
from statecheck.verdict import Absence, Measurement, Status, Where

STEPS = 3
READ = 24  # elements before a part is exchanged: more than windows of a convolution, fewer than a state forgets
SHORTER = 5  # elements fewer: a tensor that is the same after as many elements counts them
DRAWS = 3


@probe("HONEST", "The state is the whole memory: sufficient, complete, necessary", cost="three histories a claim")
def honest(evidence: Evidence) -> Outcome:
    """Is there a memory outside of what get_states returns, or is a part of it never read?

    HONEST.sufficient   the state, given to a copy of the model that never read, brings the same future
    HONEST.complete     after the model has read something else, in a batch of another size, a state that is put back
                        brings the same future: whatever is outside of it was overwritten meanwhile, and did not matter
    HONEST.necessary    each tensor of the state (positions, masks and flags apart), exchanged for that of another
                        history, a shorter one where only the length tells, changes the future: the floors by which it
                        does, one number a tensor

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = honest(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value > 30) for m in found.measurements]
    [('HONEST.sufficient', False), ('HONEST.complete', False), ('HONEST.necessary', True)]
    """
    facts = evidence.facts
    told = facts.missing.get(Capability.SET_STATES, "")
    if NOT_GIVEN_BACK in told:  # set_states is there, and puts back something else
        return Outcome(absences=(Absence("HONEST", Status.FAIL, told),))
    facts.require(Capability.SET_STATES)
    ahead = st.integers(1, STEPS)
    moved = st.builds(_moved, rows(), lengths(facts), ahead, seeds())
    elsewhere = st.builds(_elsewhere, rows(), lengths(facts), rows(), lengths(facts), ahead, seeds())
    outcomes = [hold(evidence, "HONEST", moved, routes=("functional",), part="sufficient")]
    if Capability.RESET in facts.capabilities:
        outcomes.append(hold(evidence, "HONEST", elsewhere, routes=("functional",), part="complete"))
    else:
        reason = facts.missing.get(Capability.RESET, "the model can't forget in place")
        outcomes.append(Outcome(absences=(Absence("HONEST.complete", Status.SKIP, reason),)))
    outcomes.append(_necessary(evidence) if not evidence.effort.case else Outcome())
    return Outcome(
        tuple(m for outcome in outcomes for m in outcome.measurements),
        tuple(a for outcome in outcomes for a in outcome.absences),
        tuple({m.name: m for outcome in outcomes for m in outcome.shown}.values()),
    )


def _moved(rows: int, prefill: int, steps: int, seed: int) -> Claim:
    before, after = Feed(0, prefill, word="read"), _steps(prefill, steps)
    found = History((before, Move(), *after))
    return Claim(rows, prefill + steps, seed, found, (History((before, *after)),))


def _elsewhere(rows: int, prefill: int, others: int, length: int, steps: int, seed: int) -> Claim:
    before, after = Feed(0, prefill, word="read"), _steps(prefill, steps)
    away: tuple[Operation, ...] = (Slot("copy", "a"), Forget(others), Feed(0, length, word="other"), Slot("back", "a"))
    found = History((before, *away, *after), tuple(range(rows)))
    expected = History((before, *after), tuple(range(rows)))
    return Claim(max(rows, others), max(prefill + steps, length), seed, found, (expected,))


def _steps(start: int, steps: int) -> tuple[Feed, ...]:
    return tuple(Feed(t, t + 1) for t in range(start, start + steps))


def _necessary(evidence: Evidence) -> Outcome:
    floor = floor_of(evidence).value
    effects: dict[str, float] = {}
    for draw in range(DRAWS):
        for name, effect in _effects(evidence, seed=evidence.seed + draw).items():
            effects[name] = max(effects.get(name, 0.0), effect / floor)
    if not effects:
        reason = "no state holds real numbers: there is nothing to exchange"
        return Outcome(absences=(Absence("HONEST.necessary", Status.NOT_APPLICABLE, reason),))
    measured = tuple(
        Measurement.exact("HONEST.necessary", effect, unit="floors", where=Where(state=name), n=DRAWS)
        for name, effect in effects.items()
    )
    return Outcome((min(measured, key=lambda m: m.value),), shown=measured)


def _effects(evidence: Evidence, *, seed: int) -> dict[str, float]:
    """How far outputs move when one tensor of the state comes from another history, by its name."""
    model = evidence.model
    here, there = (values(evidence.facts, 2, READ + STEPS, seed + offset) for offset in (0, 1000))
    own, other = (_after(model, inputs[:, :READ]) for inputs in (here, there))
    shorter = _after(model, there[:, : READ - SHORTER])
    counted = [name for name, value in own.items() if torch.equal(value, other[name])]
    other = replace(other, shorter, [name for name in counted if shorter[name].shape == own[name].shape])
    expected = _future(model, own, here[:, READ:])
    return {
        name: deviation(_future(model, replace(own, other, [name]), here[:, READ:]), expected).error
        for name, value in own.items()
        if value.is_floating_point() or value.is_complex()
    }


def _after(model: StatefulModel, inputs: Tensor) -> States:
    model = fresh(model)
    model(inputs)
    return model.get_states()


def _future(model: StatefulModel, states: States, inputs: Tensor) -> Tensor:
    model.set_states(clone(states))
    return torch.cat([model(part) for part in inputs.split(1, dim=1)], dim=1)
