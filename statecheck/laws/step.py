"""STEP: prefill, then one element at a time, equals one whole call, for every length of the prefill."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe

STEPS = 5  # after the prefill: the first differs from the later ones, whose state a step has written


@probe(
    "STEP", "Prefill, then one element at a time, equals one whole call", cost="one whole call a claim, and its steps"
)
def steps(evidence: Evidence) -> Outcome:
    """Are outputs the same, whether the model reads a history in one call or in a prefill and single steps?

    Prefills are drawn at every length, one element and fewer than a convolution's window among them.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = steps(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('STEP.native', True), ('STEP.functional', True)]
    """
    drawn = st.builds(_claim, rows(), lengths(evidence.facts), st.integers(1, STEPS), seeds())
    return hold(evidence, "STEP", drawn)


def _claim(rows: int, prefill: int, steps: int, seed: int) -> Claim:
    length = prefill + steps
    fed = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, length)))
    return Claim(rows, length, seed, History(fed), (History((Feed(0, length, word="whole"),)),))
