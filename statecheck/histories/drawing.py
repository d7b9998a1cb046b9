"""Drawing histories: lengths aimed at the edges where faults of a recurrence sit, and the values that are read."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from statecheck.protocol import ModelFacts

LONGEST = 40  # elements of one call: most faults show within a few
MOST_ROWS = 3  # 1 hides faults of broadcasting, 2 faults of a mask's shape
USUAL = (4, 8, 16, 32)  # sizes of convolutions and chunks that are often met


def edges(facts: ModelFacts, longest: int = LONGEST) -> list[int]:
    """Lengths where faults sit: 1, 2, and one less, as much and one more than the windows and chunks of the model.

    >>> from types import SimpleNamespace
    >>> edges(SimpleNamespace(states={}, boundaries=(6,)), 10)
    [1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    windows = {size for state in facts.states.values() for size in state.shape}
    near = {1, 2} | {around + d for around in (*USUAL, *windows, *facts.boundaries) for d in (-1, 0, 1)}
    return sorted(length for length in near if 1 <= length <= longest)


def far_edges(facts: ModelFacts) -> list[int]:
    """Around the sizes that the model declares and `edges` leaves out for their length: a chunk of 256, say."""
    return [size + d for size in facts.boundaries if LONGEST < size <= 1024 for d in (-1, 0, 1)]


def lengths(facts: ModelFacts, longest: int = LONGEST) -> SearchStrategy[int]:
    """Lengths of a call, half of them at the edges; simplest is shortest."""
    return st.one_of(st.sampled_from(edges(facts, longest)), st.integers(1, longest))


def long_lengths(facts: ModelFacts) -> SearchStrategy[int]:
    """As :func:`lengths`, and some around a chunk that is longer."""
    far = far_edges(facts)
    near = lengths(facts)
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(far) if n == 9 else near) if far else near


def rows(least: int = 1) -> SearchStrategy[int]:
    """Sequences in a batch."""
    return st.integers(least, MOST_ROWS)


def seeds() -> SearchStrategy[int]:
    """Seeds of values."""
    return st.integers(0, 999)


def values(facts: ModelFacts, rows: int, length: int, seed: int) -> Tensor:
    """(rows, length) ids or (rows, length, features) normal vectors: the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    if facts.inputs == "tokens":
        assert facts.vocabulary is not None
        drawn = torch.randint(0, facts.vocabulary, (rows, length), generator=generator)
        return real(drawn, facts.padding, facts.vocabulary).to(facts.device)
    assert facts.width is not None
    drawn = torch.randn(rows, length, facts.width, generator=generator)
    return drawn.to(facts.device, getattr(torch, facts.dtype))


def real(ids: Tensor, padding: int | None, vocabulary: int) -> Tensor:
    """`ids` with another id in place of the one that is read as padding, if there is one."""
    return ids if padding is None else torch.where(ids == padding, (ids + 1) % vocabulary, ids)
