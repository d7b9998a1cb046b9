"""What the two chunked recurrences share. A state is a matrix (X, Y) a head; a step multiplies it and adds to it.

Chunks are (B, H, n, C, D): n chunks of C steps. The last one is filled with zeros: nothing written and, in logarithms,
all kept.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from statecheck_kernels.statistics import Observer


def well_behaved(log_decay: Tensor, others: Sequence[Tensor]) -> bool:
    """True if chunks give what steps give: no NaN, no infinity but log-decays of minus infinity, none above 0.

    In a matrix product a masked score of 0 times infinity is NaN, and that would reach the steps before. Log-decays
    above 0 add up to exponentials that overflow where the recurrence does not. Waits for the device.
    """
    return bool((log_decay <= 0).all()) and all(bool(x.isfinite().all()) for x in others)


def size_of_chunk(steps: int, largest: int) -> int:
    """The power of two that holds `steps`, `largest` at most.

    >>> [size_of_chunk(steps, 32) for steps in (1, 2, 5, 32, 1000)]
    [1, 2, 8, 32, 32]
    """
    return min(largest, 1 << (steps - 1).bit_length())


def in_chunks(x: Tensor, size: int) -> Tensor:
    """(B, T, H, D) as (B, H, n, C, D), C = `size`."""
    padded = functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size))
    return padded.transpose(1, 2).unflatten(2, (-1, size))


def in_order(x: Tensor, steps: int) -> Tensor:
    """(B, H, n, C, D) back to (B, T, H, D), T = `steps`."""
    return x.flatten(2, 3).transpose(1, 2)[:, :steps]


def states_between(kept: Tensor, writes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk (B, H, n, X, Y) and the last one, from `state` (B, H, X, Y) on.

    `writes` (B, H, n, X, Y) is what each chunk leaves in the state, `kept` (B, H, n, X or 1, 1) what it keeps of it.
    """
    before = []
    for share, written in zip(kept.unbind(2), writes.unbind(2), strict=True):
        before.append(state)
        state = share * state + written
    return torch.stack(before, 2), state


def states_within(log_decay: Tensor, writes: Tensor, state: Tensor) -> Iterator[Tensor]:
    """The state after each step of a stretch, one by one as the recurrence says: (B, H, X, Y) each.

    `log_decay` (B, t, H, X or 1), `writes` (B, t, H, X, Y), `state` (B, H, X, Y) is the one before.
    """
    for log_a, written in zip(log_decay.unbind(1), writes.unbind(1), strict=True):
        state = log_a.exp().unsqueeze(-1) * state + written
        yield state


def take(observer: Observer | None, states: list[Tensor]) -> None:
    """Show `states`, one a step, to the observer if there is one."""
    if observer is not None and states:
        observer.take(torch.stack(states, 1).detach())
