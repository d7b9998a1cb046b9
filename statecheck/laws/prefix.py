"""PREFIX: what is read later changes nothing earlier."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import long_lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe


@probe("PREFIX", "What is read later changes nothing earlier", cost="two calls a claim")
def prefixes(evidence: Evidence) -> Outcome:
    """Is f(x)[:n] = f(x[:n]), for every n, around the chunks of a parallel form too?

    A sum over the wrong axis or a mask that is off by one shows only beyond the first chunk. It is held on the first
    call of a sequence and on the whole call without a cache: there is no state yet, and one route.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = prefixes(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('PREFIX.native', True)]
    """
    ways = st.sampled_from(("whole", "feed"))
    drawn = st.builds(_claim, ways, rows(), long_lengths(evidence.facts), long_lengths(evidence.facts), seeds())
    return hold(evidence, "PREFIX", drawn, routes=("native",))


def _claim(way: str, rows: int, kept: int, more: int, seed: int) -> Claim:
    longer = History((Feed(0, kept + more, word=way, first=kept),))
    return Claim(rows, kept + more, seed, longer, (History((Feed(0, kept, word=way),)),))
