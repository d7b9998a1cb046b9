"""PARITY: the ways to compute the same agree: with a cache and without, training and evaluation, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from statecheck.deviation import Deviation, deviation
from statecheck.errors import ContractError, ModelRaised
from statecheck.histories.drawing import long_lengths, rows, seeds, values
from statecheck.histories.operations import Claim, Feed, History
from statecheck.histories.playing import plain
from statecheck.laws.contract import Evidence, Held, Outcome, hold, outcome_of, probe, run_search
from statecheck.noise import copied
from statecheck.protocol import fresh, native_of
from statecheck.verdict import Absence, Status

Case = tuple[int, int, int]  # rows, length, seed


@probe("PARITY", "Ways to compute the same agree: cached, training, with gradients", cost="two calls a claim")
def parities(evidence: Evidence, *, compiled: bool = False) -> Outcome:
    """Does each path that the implementation takes give what the plain one gives?

    PARITY.native     a first call that makes a state, against the whole call without a cache
    PARITY.training   the whole call in training mode, against evaluation mode; NOT_APPLICABLE where training mode
                      draws random numbers (dropout)
    PARITY.gradient   the first call while gradients are recorded, against one without
    PARITY.compiled   with `compiled`: the module under torch.compile (backend "aot_eager"), against itself

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = parities(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('PARITY.native', True), ('PARITY.training', True), ('PARITY.gradient', True)]
    """
    facts = evidence.facts
    claims = st.builds(_claim, rows(), long_lengths(facts), seeds())
    cached = hold(evidence, "PARITY", claims, routes=("native",))
    drawn = st.tuples(rows(), long_lengths(facts), seeds())
    parts = [] if evidence.effort.case else [_training(evidence, drawn), _gradient(evidence, drawn)]
    if compiled and not evidence.effort.case:
        parts.append(_compiled(evidence, drawn))
    others = outcome_of(evidence, parts)
    return Outcome(
        (*cached.measurements, *others.measurements), (*cached.absences, *others.absences), cached.shown or others.shown
    )


def _claim(rows: int, length: int, seed: int) -> Claim:
    return Claim(rows, length, seed, History((Feed(0, length),)), (History((Feed(0, length, word="whole"),)),))


def _training(evidence: Evidence, drawn: st.SearchStrategy[Case]) -> Held | Absence:
    name, module = "PARITY.training", getattr(evidence.model, "module", None)
    if not isinstance(module, nn.Module):
        return Absence(name, Status.NOT_APPLICABLE, "the model is no module that could be trained")
    inputs = values(evidence.facts, 2, 8, evidence.seed)
    with _training_mode(module):
        try:
            first, second = plain(evidence.model, inputs), plain(evidence.model, inputs)
        except ModelRaised as error:
            return Absence(name, Status.FAIL, f"in training mode: {error}")
    if not torch.equal(first, second):
        return Absence(name, Status.NOT_APPLICABLE, "training mode draws random numbers: its outputs are others")

    def measure(case: Case) -> Deviation:
        inputs = values(evidence.facts, *case)
        expected = plain(evidence.model, inputs)
        with _training_mode(module):
            return _against(expected, partial(plain, evidence.model), inputs)

    return run_search(evidence, name, drawn, measure)


@contextmanager
def _training_mode(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.train()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def _gradient(evidence: Evidence, drawn: st.SearchStrategy[Case]) -> Held | Absence:
    def measure(case: Case) -> Deviation:
        inputs = values(evidence.facts, *case)
        with torch.no_grad():
            expected = fresh(evidence.model)(inputs)
        with torch.enable_grad():
            return _against(expected, lambda given: fresh(evidence.model)(given), inputs)

    return run_search(evidence, "PARITY.gradient", drawn, measure)


def _compiled(evidence: Evidence, drawn: st.SearchStrategy[Case]) -> Held | Absence:
    other = copied(evidence.model)
    if other is None or native_of(other).uncached is None:
        return Absence("PARITY.compiled", Status.NOT_APPLICABLE, "there is no whole call of a copy to compile")
    other.module = torch.compile(other.module, backend="aot_eager")  # type: ignore[attr-defined]

    def measure(case: Case) -> Deviation:
        inputs = values(evidence.facts, *case)
        return _against(plain(evidence.model, inputs), partial(plain, other), inputs)

    return run_search(evidence, "PARITY.compiled", drawn, measure)


def _against(expected: Tensor, call: Callable[[Tensor], Tensor], inputs: Tensor) -> Deviation:
    try:
        return deviation(call(inputs), expected)
    except (ModelRaised, ContractError) as error:
        return Deviation(float("inf"), str(error))
