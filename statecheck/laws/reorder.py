"""REORDER: to reorder, select or repeat rows of the state is to do it to the inputs; beam search is what it says."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from statecheck.deviation import Deviation, deviation
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.histories.drawing import lengths, rows, seeds, values
from statecheck.histories.operations import Claim, Feed, History, Rows
from statecheck.histories.playing import plain
from statecheck.laws.contract import WORTH, Evidence, Held, Outcome, floor_of, hold, outcome_of, probe, run_search
from statecheck.protocol import native_of
from statecheck.verdict import Absence, Status

STEPS = 3
Beams = tuple[int, int, int, int, int]  # rows, prompt, beams, steps, seed


@probe("REORDER", "Reordered rows of a state are those of reordered inputs", cost="two histories a claim; beam search")
def reorders(evidence: Evidence) -> Outcome:
    """Does the batch go on with the rows that were asked for, each with its own state, in every part of the state?

    `REORDER.beams` lets the library search with beams: the log-probability that it reports for what it generated must
    be that which the whole call without a cache gives to the same elements. A state that is not reordered with the
    beams breaks that, whichever beam wins. A search that breaks it without a cache, too, is not judged.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = reorders(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('REORDER.functional', True)]
    """
    drawn = rows(2).flatmap(
        lambda n: st.builds(_claim, st.just(n), _indices(n), lengths(evidence.facts), st.integers(1, STEPS), seeds())
    )
    held = hold(evidence, "REORDER", drawn)
    beams = outcome_of(evidence, [_beams(evidence)])
    return Outcome(
        (*held.measurements, *beams.measurements), (*held.absences, *beams.absences), held.shown or beams.shown
    )


def _indices(rows: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Reordered rows as beams are, some of them twice, or selected and repeated ones."""
    row = st.integers(0, rows - 1)
    same = st.lists(row, min_size=rows, max_size=rows)
    return st.one_of(same, st.lists(row, min_size=1, max_size=rows + 1)).map(tuple)


def _claim(rows: int, index: tuple[int, ...], prefill: int, steps: int, seed: int) -> Claim:
    read, after = Feed(0, prefill, word="read"), tuple(Feed(t, t + 1) for t in range(prefill, prefill + steps))
    found = History((read, Rows(index), *after))
    return Claim(rows, prefill + steps, seed, found, (History((read, *after), index),))


def _beams(evidence: Evidence) -> Held | Absence:
    name = "REORDER.beams"
    if evidence.effort.case:
        return Absence(name, Status.NOT_APPLICABLE, "another case was asked for")
    if native_of(evidence.model).beams is None:
        return Absence(name, Status.NOT_APPLICABLE, "the library offers no beam search of its own")
    floor_of(evidence)
    drawn = st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(2, 3), st.integers(3, 6), seeds())
    return run_search(evidence, name, drawn, lambda case: _searched(evidence, case))


def _searched(evidence: Evidence, case: Beams) -> Deviation:
    rows, prompt, beams, steps, seed = case
    search = native_of(evidence.model).beams
    assert search is not None
    inputs = values(evidence.facts, rows, prompt, seed)

    def told(cached: bool) -> Deviation:
        generated, reported = search(inputs, beams, steps, cached)
        shares = plain(evidence.model, generated[:, :-1]).log_softmax(-1)[:, prompt - 1 :]
        chosen = shares.gather(-1, generated[:, prompt:, None]).sum((1, 2))
        return deviation(reported.reshape(-1, 1, 1), torch.as_tensor(chosen).reshape(-1, 1, 1))

    try:
        found = told(True)
    except ModelRaised as error:
        found = Deviation(float("inf"), str(error))
    if found.error > (bar := WORTH * floor_of(evidence).value):
        try:
            without = told(False)
        except ModelRaised:
            raise CapabilityMissing(found.first) from None
        if without.error > bar:
            raise CapabilityMissing(f"without a cache, too, the library's search is not the whole call: {without}")
    return found
