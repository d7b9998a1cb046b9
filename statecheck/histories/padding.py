"""Claims that padding, told by a mask, changes nothing."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History
from statecheck.protocol import ModelFacts

MOST_PADS = 6
STEPS = 2


def padded(facts: ModelFacts, side: str, *, fewest_steps: int) -> SearchStrategy[Claim]:
    """Rows of a batch with paddings of their own on the `side` left or right, against each row alone without any.

    A window of keys counts padding as elements: behind a row it pushes the row's own out, so that what is padded on the
    right stays within the window.
    """
    drawn = _drawn(facts, side, fewest_steps)
    window = facts.window
    return drawn if window is None or side == "left" else drawn.filter(lambda claim: claim.length <= window)


def _drawn(facts: ModelFacts, side: str, fewest_steps: int) -> SearchStrategy[Claim]:
    pads = rows().flatmap(lambda n: st.lists(st.integers(0, MOST_PADS), min_size=n, max_size=n)).filter(any)
    return st.builds(_claim, st.just(side), pads.map(tuple), lengths(facts), st.integers(fewest_steps, STEPS), seeds())


def _claim(side: str, pads: tuple[int, ...], own: int, steps: int, seed: int) -> Claim:
    """The row with the most padding has `own` elements of its own."""
    width = own + max(pads)
    prefill = Feed(0, width, left=pads) if side == "left" else Feed(0, width, right=pads)
    after = tuple(Feed(t, t + 1) for t in range(width, width + steps))
    alone = tuple(History((Feed(0, width - pad), *after), (row,)) for row, pad in enumerate(pads))
    return Claim(len(pads), width + steps, seed, History((prefill, *after)), alone)
