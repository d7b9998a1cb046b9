"""FORK: a copy of a state, in memory or through a file, goes on as the state itself."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, History, Slot
from statecheck.laws.contract import Evidence, Outcome, hold, probe


@probe("FORK", "A copied, saved or restored state goes on as the state itself", cost="two histories a claim")
def forks(evidence: Evidence) -> Outcome:
    """Does a history go on the same from a copy of its state, and from the state after its copy was used?

    Natively a copy is copy.deepcopy of the library's own object, a file torch.save and torch.load of it; functionally
    it is a clone of the tensors and a safetensors file.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = forks(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('FORK.functional', True)]
    """
    ways, orders = st.sampled_from(("copy", "file")), st.sampled_from(("after", "beside", "anew"))
    steps = st.integers(1, 3)
    drawn = st.builds(_claim, ways, orders, rows(), lengths(evidence.facts), steps, steps, seeds())
    return hold(evidence, "FORK", drawn)


def _claim(way: str, order: str, rows: int, prefill: int, others: int, steps: int, seed: int) -> Claim:
    """Copy a state, read something else, and go on.

    The other elements come `after` the copy was made, and what goes on is the copy; or they are read by the copy, and
    what goes on `beside` it is the original; or they are a sequence begun `anew`, as long as the first.
    """
    after = tuple(Feed(t, t + 1) for t in range(prefill, prefill + steps))
    elsewhere = tuple(Feed(t, t + 1, word="other") for t in range(others))
    aside: tuple[Feed | Slot, ...] = (Slot(way, "a"), *elsewhere, Slot("back", "a"))
    if order == "beside":
        aside = (Slot(way, "a"), Slot("park", "b"), Slot("back", "a"), *elsewhere, Slot("park", "c"), Slot("take", "b"))
    if order == "anew":
        aside = (Slot(way, "a"), Slot("park", "b"), Feed(0, prefill, word="other"), Slot("back", "a"))
    found = History((Feed(0, prefill, word="read"), *aside, *after))
    expected = History((Feed(0, prefill, word="read"), *after))
    return Claim(rows, max(prefill + steps, others), seed, found, (expected,))
