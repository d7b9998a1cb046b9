"""How far outputs are from what they should be, and where first.

The deviation of one position is |found - expected| / max(|expected|, m) over its features, with m the median of
|expected| over positions, so that a position whose outputs happen to be small is not blown up; that of a whole is its
largest. A position that is wrong alone is seen, however many others are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from statecheck.states import wide

Rows = Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class Deviation:
    """`error` is relative, infinite for other shapes or for NaN where there should be none; `first` tells of the first
    position (row, position) whose own error is at least half of it, and of the feature that is furthest off there."""

    error: float
    first: str = ""

    def __str__(self) -> str:
        return f"{self.error:.3g} relative{self.first and ', ' + self.first}"


def deviation(found: Rows, expected: Rows) -> Deviation:
    """How far `found` is from `expected`: rows of (time, features) each, or tensors (batch, time, features).

    By hand: only the second position is off, by 1 where the features have a norm of 2.

    >>> expected = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
    >>> found = expected + torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    >>> print(deviation(found, expected))
    0.5 relative, first at row 0, position 1, feature 1: expected 2, found 3
    >>> print(deviation(found[:, :2], expected))
    inf relative, expected shapes [(3, 2)], found [(2, 2)]
    """
    shapes = [tuple(row.shape) for row in expected], [tuple(row.shape) for row in found]
    if shapes[0] != shapes[1]:
        return Deviation(float("inf"), f"expected shapes {shapes[0]}, found {shapes[1]}")
    a, b = (torch.cat([wide(row.detach()) for row in rows]) for rows in (found, expected))  # (positions, features)
    if not b.numel():
        return Deviation(0.0)
    errors = by_position(a, b)
    error = float(errors.max())
    if error == 0.0:
        return Deviation(0.0)
    place = int((errors >= error / 2).nonzero()[0])
    feature = int(torch.nan_to_num(a[place] - b[place], nan=float("inf")).abs().argmax())
    row, position = _place([len(row) for row in expected], place)
    shown = f"expected {b[place, feature].item():.6g}, found {a[place, feature].item():.6g}"
    return Deviation(error, f"first at row {row}, position {position}, feature {feature}: {shown}")


def by_position(found: Tensor, expected: Tensor) -> Tensor:
    """(positions,) of (positions, features): the deviation of each; infinite where finiteness differs."""
    differ = (torch.isfinite(found) != torch.isfinite(expected)).any(-1)
    a, b = (torch.nan_to_num(value, posinf=0.0, neginf=0.0) for value in (found, expected))
    norms = b.norm(dim=-1)
    scale = norms.clamp_min(norms.median())
    errors = torch.where(scale > 0, (a - b).norm(dim=-1) / scale, (a - b).norm(dim=-1).sign())
    return torch.where(differ, torch.inf, errors)


def _place(lengths: Sequence[int], index: int) -> tuple[int, int]:
    """Row and position of the element `index` of rows put one after another."""
    row = 0
    while index >= lengths[row]:
        index -= lengths[row]
        row += 1
    return row, index
