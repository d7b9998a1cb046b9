"""CROP: what is rolled back was never read, or the library says clearly that it can't."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Crop, Feed, History
from statecheck.laws.contract import Evidence, Outcome, hold, probe

MOST_BACK = 5
STEPS = 2


@probe("CROP", "What is rolled back was never read", cost="two histories a claim")
def crops(evidence: Evidence) -> Outcome:
    """Does a roll-back, as speculative decoding makes it, take back all of the state?

    A library that refuses with an error is right to, and the law is SKIP with that error; one that silently leaves the
    recurrent part of a hybrid where it was is wrong. A state that is a value has no roll-back: there is one route.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> crops(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None)).absences[0].reason
    'the library offers no crop of its own'
    """
    drawn = st.builds(
        _claim,
        st.booleans(),
        rows(),
        lengths(evidence.facts),
        st.integers(1, MOST_BACK),
        st.integers(1, STEPS),
        seeds(),
    )
    return hold(evidence, "CROP", drawn, routes=("native",))


def _claim(stepwise: bool, rows: int, kept: int, back: int, steps: int, seed: int) -> Claim:
    """Read `back` elements more than are kept (`stepwise`: others, one by one), roll back, and go on."""
    drafted = (Feed(0, kept, word="read"), *(Feed(t, t + 1, word="other") for t in range(kept, kept + back)))
    read = drafted if stepwise else (Feed(0, kept + back, word="read"),)
    after = tuple(Feed(t, t + 1) for t in range(kept, kept + steps))
    expected = History((Feed(0, kept, word="read"), *after))
    return Claim(rows, kept + max(back, steps), seed, History((*read, Crop(kept), *after)), (expected,))
