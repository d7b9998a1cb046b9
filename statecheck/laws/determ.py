"""DETERM: the same history twice gives the same."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe


@probe("DETERM", "The same history twice gives the same", cost="each history twice")
def deterministic(evidence: Evidence) -> Outcome:
    """Does the same history, read twice from no history, give the same outputs?

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = deterministic(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value) for m in found.measurements]
    [('DETERM.native', 0.0), ('DETERM.functional', 0.0)]
    """
    return hold(evidence, "DETERM", st.builds(_claim, rows(), lengths(evidence.facts), seeds()), trusting=True)


def _claim(rows: int, prefill: int, seed: int) -> Claim:
    history = History((Feed(0, prefill), Feed(prefill, prefill + 1)))
    return Claim(rows, prefill + 1, seed, history, (history,))
