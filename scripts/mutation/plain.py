"""Does a mutant differ? The same random histories on it and on the unchanged model, by plain calls.

Nothing of statecheck is used, so that what is found here is what the laws must find. A history is drawn before it is
played: calls of one element, of a few and of many, in batches of 1 to 3; states that are read, put back (the very
tensors, more than once), and rows of them; resets into other batches; and what a model offers itself: a mask, reorder,
crop, reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

DIFFERS = 1e-4  # relative, of the outputs at one position
LONGEST = 100
Operation = tuple[str, Any]


@dataclass(frozen=True)
class Difference:
    """The first history, from 1, whose outputs differ by more than `DIFFERS`, and by how much; None and the most."""

    history: int | None
    error: float
    note: str = ""


def first_difference(
    mutant: nn.Module, original: nn.Module, histories: int, *, vocabulary: int, seed: int
) -> Difference:
    """Play `histories` on both, until they differ."""
    largest = 0.0
    offered = [name for name in ("reorder", "crop", "reset") if callable(getattr(original, name, None))]
    masked = hasattr(original, "crop")
    for number in range(1, histories + 1):
        operations = list(drawn(Random(f"{seed}:{number}"), offered, masked=masked, vocabulary=vocabulary))
        expected, raised = played(original, operations)
        assert not raised, f"the unchanged model raised in history {number}: {raised}"
        found, raised = played(mutant, operations)
        if raised:
            return Difference(number, math.inf, raised)
        error = max((distance(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
        if error > DIFFERS:
            return Difference(number, error)
        largest = max(largest, error)
    return Difference(None, largest)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference of any position, (positions, features) each; infinite for other shapes or NaN.

    >>> distance(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    0.5
    """
    if found.shape != expected.shape:
        return math.inf
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(torch.nan_to_num(errors, nan=math.inf).max())


@torch.no_grad()
def played(model: nn.Module, operations: Sequence[Operation]) -> tuple[list[Tensor], str]:
    """The outputs of each call at its real elements, and what the model raised, "" for nothing."""
    slots: dict[str, dict[str, Tensor]] = {}
    outputs: list[Tensor] = []
    ways: dict[str, Callable[..., object]] = {
        "forget": lambda rows: model.set_states(None),  # type: ignore[operator]
        "hold": lambda slot: slots.update({slot: model.get_states()}),  # type: ignore[operator]
        "give": lambda slot: model.set_states(slots[slot]),  # type: ignore[operator]
        "rows": lambda index: model.set_states({n: s[index] for n, s in model.get_states().items()}),  # type: ignore[operator]
        "reset": lambda rows: model.reset(),  # type: ignore[operator]
        "reorder": lambda index: model.reorder(index),  # type: ignore[operator]
        "crop": lambda length: model.crop(length),  # type: ignore[operator]
    }
    try:
        model.set_states(None)  # type: ignore[operator]
        for name, argument in operations:
            if name == "call":
                inputs, mask = argument
                logits = model(inputs) if mask is None else model(inputs, mask=mask)
                outputs.append(logits if mask is None else logits[mask])
                outputs[-1] = outputs[-1].reshape(-1, logits.shape[-1])
            else:
                ways[name](argument)
    except Exception as error:
        return outputs, f"{type(error).__name__} in {name}: {str(error)[:120]}"
    return outputs, ""


def drawn(random: Random, offered: Sequence[str], *, masked: bool, vocabulary: int) -> Iterator[Operation]:
    """One history: a first call, then 2 to 12 operations, of which a call is the last."""
    rows, read, slots = random.randint(1, 3), 0, dict[str, tuple[int, int]]()

    def call() -> Operation:
        nonlocal read
        time = length(random)
        inputs = torch.tensor([[random.randrange(vocabulary) for _ in range(time)] for _ in range(rows)])
        mask = padding(random, rows, time) if masked and not read and random.random() < 0.5 else None
        read += time
        return "call", (inputs, mask)

    yield call()
    for _ in range(random.randint(2, 12)):
        name = random.choice(["call", "call", "call", "hold", "give", "give", "give", "rows", "forget", *offered])
        if name == "call" and read < 2 * LONGEST:
            yield call()
        elif name == "hold" and read:
            slot = random.choice("ab")
            slots[slot] = rows, read
            yield "hold", slot
        elif name == "give" and slots:
            slot = random.choice(sorted(slots))
            rows, read = slots[slot]
            yield "give", slot
        elif name in ("rows", "reorder") and read:
            index = torch.tensor([random.randrange(rows) for _ in range(random.randint(1, 3))])
            rows = len(index)
            yield name, index
        elif name in ("forget", "reset"):
            rows, read = random.randint(1, 3), 0
            yield name, rows
        elif name == "crop" and read > 1:
            read -= random.randint(1, min(5, read - 1))
            yield "crop", read
    yield call()


def length(random: Random) -> int:
    """Of a call: one element, a few, some dozens, rarely more than a chunk."""
    few, dozens, many = random.randint(2, 8), random.randint(9, 40), random.randint(30, LONGEST)
    return random.choice((1, 1, 1, few, few, dozens, many))


def padding(random: Random, rows: int, time: int) -> Tensor:
    """(rows, time), False for up to 5 elements before or behind each row; one is always real."""
    left, place = random.random() < 0.5, torch.arange(time)
    pads = [random.randint(0, min(5, time - 1)) for _ in range(rows)]
    return torch.stack([place >= count if left else place < time - count for count in pads])
