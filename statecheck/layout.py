"""Where in an object of a library the states are: learned by looking at what it holds after a few calls.

A tensor is a state if one of its dimensions is the batch. Python numbers and flags that change from call to call are
states as well (positions, flags): a library that forgets to carry them goes wrong. A number that is the batch size is
kept to the batch, and what never changes belongs to the structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from statecheck.errors import ContractError
from statecheck.holding import Leaf, Path, leaves, name, rebuilt_with
from statecheck.protocol import States


@dataclass(frozen=True)
class Slot:
    """One state: the leaf at `path`; `part` of its dimension 0 where that counts layers; `axis` is its batch there."""

    name: str
    path: Path
    axis: int | None  # None: one value for the whole batch
    part: int | None = None


@dataclass(frozen=True)
class Layout:
    """The states of an object: `template` is such an object, `batch_numbers` the paths of numbers of rows."""

    slots: tuple[Slot, ...]
    template: object
    batch_numbers: tuple[Path, ...] = ()

    def read(self, root: object, rows: int) -> States:
        """The states that `root` holds, batch first, in memory of their own; gradients flow through.

        Raises :class:`ContractError` where a leaf has gone.
        """
        held = leaves(root)
        return {slot.name: _read(slot, held, rows) for slot in self.slots}

    def write(self, states: Mapping[str, Tensor]) -> object:
        """An object that holds these states, built after the template.

        Raises :class:`ContractError` where a state is missing.
        """
        missing = [slot.name for slot in self.slots if slot.name not in states]
        if missing:
            raise ContractError(f"expected a state named {missing[0]!r}, found {', '.join(states) or 'none'}")
        plain = leaves(self.template)
        values: dict[Path, Leaf] = {path: len(next(iter(states.values()))) for path in self.batch_numbers}
        by_path: dict[Path, list[Slot]] = {}
        for slot in self.slots:
            by_path.setdefault(slot.path, []).append(slot)
        for path, slots in by_path.items():
            values[path] = _leaf([_placed(slot, states[slot.name]) for slot in slots], slots[0], plain[path])
        return rebuilt_with(self.template, values)


def learn(two: object, later: object, three: object) -> Layout:
    """The layout of objects held after one element of 2 rows, a few elements more, and one element of 3 rows."""
    early, late, other = leaves(two), leaves(later), leaves(three)
    slots: list[Slot] = []
    numbers: list[Path] = []
    for path, leaf in early.items():
        if path not in late or path not in other:
            continue
        if isinstance(leaf, Tensor):
            slots += _slots(path, leaf, late[path], other[path])
        elif leaf != late[path]:
            slots.append(Slot(name(path), path, None))
        elif not isinstance(leaf, bool) and (leaf, other[path]) == (2, 3):
            numbers.append(path)
    return Layout(tuple(slots), two, tuple(numbers))


def _slots(path: Path, early: Tensor, late: Leaf, other: Leaf) -> list[Slot]:
    assert isinstance(late, Tensor)
    assert isinstance(other, Tensor)
    moved = [axis for axis, (p, q) in enumerate(zip(early.shape, other.shape, strict=False)) if (p, q) == (2, 3)]
    if not moved:
        same = early.shape == late.shape and torch.equal(early, late)
        return [] if same else [Slot(name(path), path, None)]
    if moved[0] == 1:
        return [Slot(f"{name(path)}.{part}", path, 0, part) for part in range(len(early))]
    return [Slot(name(path), path, moved[0])]


def _read(slot: Slot, held: Mapping[Path, Leaf], rows: int) -> Tensor:
    leaf = held.get(slot.path)
    if leaf is None:
        raise ContractError(f"state {slot.name!r} is gone: expected it after every call")
    if not isinstance(leaf, Tensor):
        return torch.full((rows,), leaf)
    value = leaf if slot.part is None else leaf[slot.part]
    if slot.axis is None:
        return value.expand(rows, *value.shape).clone()
    return value.movedim(slot.axis, 0).clone()


def _placed(slot: Slot, state: Tensor) -> Tensor:
    """A state as the object has it; a clone, so that a library that works in place leaves the caller's alone."""
    return state[0].clone() if slot.axis is None else state.clone().movedim(0, slot.axis)


def _leaf(parts: list[Tensor], slot: Slot, like: Leaf) -> Leaf:
    if not isinstance(like, Tensor):
        return type(like)(parts[0].item())
    return parts[0] if slot.part is None else torch.stack(parts)
