"""BATCH: a row in a batch is the row alone, fresh and on a warm state; the order of rows is theirs alone."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe

MOST = 4  # rows: 2 and 3 hide what a group of them mixes
STEPS = 2


@probe("BATCH", "A row in a batch equals the row alone", cost="each history, and each of its rows alone")
def batches(evidence: Evidence) -> Outcome:
    """Do the rows of a batch stay apart, whatever their order, in a prefill and in the steps after it?

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = batches(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('BATCH.native', True), ('BATCH.functional', True)]
    """
    orders = st.integers(2, MOST).flatmap(lambda rows: st.permutations(range(rows))).map(tuple)
    drawn = st.builds(_claim, orders, lengths(evidence.facts), st.integers(0, STEPS), seeds())
    return hold(evidence, "BATCH", drawn)


def _claim(order: tuple[int, ...], prefill: int, steps: int, seed: int) -> Claim:
    length = prefill + steps
    fed = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, length)))
    return Claim(len(order), length, seed, History(fed, order), tuple(History(fed, (row,)) for row in order))
