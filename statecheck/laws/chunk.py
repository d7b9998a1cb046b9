"""CHUNK: a call of several elements on a warm state equals one call over all, and so does the step after it."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe
from statecheck.protocol import Capability

MOST_CHUNKS = 3


@probe("CHUNK", "Several elements on a warm state equal one call over all", cost="two histories a claim")
def chunks(evidence: Evidence) -> Outcome:
    """Does a call of several elements go on from the state, for every cut of the history? And the step after it?

    A chunked prefill that starts from zero, or takes the branch of a single step, is finite, plausible and wrong. The
    step afterwards is compared with a step after one prefill, so that a fault of single steps (STEP) is not blamed on
    chunks. SKIP where the model takes no more than one element on a warm state.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = chunks(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('CHUNK.native', True), ('CHUNK.functional', True)]
    """
    evidence.facts.require(Capability.CHUNKS)
    later = lengths(evidence.facts).map(lambda n: n + 1)
    parts = st.lists(later, min_size=1, max_size=MOST_CHUNKS)
    drawn = st.builds(_claim, rows(), lengths(evidence.facts), parts, st.integers(0, 1), seeds())
    return hold(evidence, "CHUNK", drawn)


def _claim(rows: int, first: int, parts: list[int], steps: int, seed: int) -> Claim:
    ends = [first]
    for part in parts:
        ends.append(ends[-1] + part)
    fed = tuple(Feed(start, stop) for start, stop in zip([0, *ends], ends, strict=False))
    after = (Feed(ends[-1], ends[-1] + 1),) * steps
    expected = History((Feed(0, ends[-1]), *after))
    return Claim(rows, ends[-1] + steps, seed, History((*fed, *after)), (expected,))
