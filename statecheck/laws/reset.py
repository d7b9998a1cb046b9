"""RESET: a model that forgot is a model that never read, whatever the batch; interleaved sequences never meet."""

from __future__ import annotations

from hypothesis import strategies as st

from statecheck.histories.drawing import lengths, rows, seeds
from statecheck.histories.operations import Claim, Feed, Forget, History, Slot
from statecheck.laws.contract import Evidence, Outcome, hold, probe


@probe("RESET", "A model that forgot equals one that never read", cost="two histories a claim, one on a copy")
def resets(evidence: Evidence) -> Outcome:
    """Is nothing left after a reset: no state, no buffer, no batch size? Do sequences that are read in turn stay apart?

    What is expected is played on a copy of the model that was never called; SKIP where none can be made.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = resets(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('RESET.functional', True)]
    """
    facts = evidence.facts
    forgetting = st.builds(_forgetting, rows(), lengths(facts), rows(), lengths(facts), st.integers(0, 2), seeds())
    taking_turns = st.builds(_taking_turns, rows(), lengths(facts), lengths(facts), st.integers(1, 3), seeds())
    return hold(evidence, "RESET", st.one_of(forgetting, taking_turns), apart=True)


def _forgetting(before: int, read: int, after: int, prefill: int, steps: int, seed: int) -> Claim:
    length = prefill + steps
    fed = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, length)))
    found = History((Feed(0, read, word="other"), Forget(after), *fed), tuple(range(before)))
    return Claim(max(before, after), max(length, read), seed, found, (History(fed, tuple(range(after))),))


def _taking_turns(rows: int, prefill: int, others: int, turns: int, seed: int) -> Claim:
    found: list[Feed | Slot] = [Feed(0, prefill), Slot("park", "a"), Feed(0, others, word="other")]
    for turn in range(turns):
        start = prefill + turn
        found += [Slot("park", "b"), Slot("take", "a"), Feed(start, start + 1)]
        found += [Slot("park", "a"), Slot("take", "b"), Feed(others + turn, others + turn + 1, word="other")]
    alone = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, prefill + turns)))
    return Claim(rows, max(prefill, others) + turns, seed, History(tuple(found)), (History(alone),))
