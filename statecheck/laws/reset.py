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
    two = lengths(facts).flatmap(lambda n: st.tuples(st.just(n), st.one_of(st.just(n), lengths(facts))))
    taking_turns = st.builds(_taking_turns, rows(), two, st.integers(1, 3), seeds())
    afresh = st.builds(_afresh, rows(), lengths(facts), rows(), lengths(facts), seeds())
    return hold(evidence, "RESET", st.one_of(forgetting, taking_turns, afresh), apart=True)


def _forgetting(before: int, read: int, after: int, prefill: int, steps: int, seed: int) -> Claim:
    length = prefill + steps
    fed = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, length)))
    found = History((Feed(0, read, word="other"), Forget(after), *fed), tuple(range(before)))
    return Claim(max(before, after), max(length, read), seed, found, (History(fed, tuple(range(after))),))


def _afresh(before: int, read: int, after: int, length: int, seed: int) -> Claim:
    """A whole call without a cache, on a model that has read others with one."""
    found = History((Feed(0, read, word="other"), Forget(after), Feed(0, length, word="whole")), tuple(range(before)))
    expected = History((Feed(0, length, word="whole"),), tuple(range(after)))
    return Claim(max(before, after), max(length, read), seed, found, (expected,))


def _taking_turns(rows: int, prefills: tuple[int, int], turns: int, seed: int) -> Claim:
    prefill, others = prefills
    found: list[Feed | Slot] = [Feed(0, prefill), Slot("park", "a"), Feed(0, others, word="other")]
    for turn in range(turns):
        start = prefill + turn
        found += [Slot("park", "b"), Slot("take", "a"), Feed(start, start + 1)]
        found += [Slot("park", "a"), Slot("take", "b"), Feed(others + turn, others + turn + 1, word="other")]
    alone = (Feed(0, prefill), *(Feed(t, t + 1) for t in range(prefill, prefill + turns)))
    return Claim(rows, max(prefill, others) + turns, seed, History(tuple(found)), (History(alone),))
