"""Packed sequences as a rectangle: sequence s becomes row s, its steps columns 0, 1, ...; the rest is filled with 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each step of a call lies in a rectangle of `rows` sequences and `longest` columns.

    `row` and `column`, (T) each, are None where the call is a plain batch, which is a rectangle already.
    """

    rows: int
    longest: int
    steps: int
    row: Tensor | None
    column: Tensor | None

    @staticmethod
    def of(inputs: Tensor, cu_seqlens: Tensor | None) -> Layout:
        """The layout of a call on `inputs` (B, T, ...), or (1, T, ...) with `cu_seqlens` (S + 1).

        >>> Layout.of(torch.zeros(1, 5), torch.tensor([0, 2, 2, 5])).column.tolist()
        [0, 1, 0, 1, 2]
        """
        steps = inputs.shape[1]
        if cu_seqlens is None:
            return Layout(inputs.shape[0], steps, steps, None, None)
        lengths = cu_seqlens.diff()
        row = torch.arange(len(lengths), device=inputs.device).repeat_interleave(lengths, output_size=steps)
        column = torch.arange(steps, device=inputs.device) - cu_seqlens[:-1][row]
        return Layout(len(lengths), int(lengths.max()) if len(lengths) else 0, steps, row, column)

    def lay(self, x: Tensor) -> Tensor:
        """(1, T, ...) laid out as (rows, longest, ...), 0 where no sequence reaches; a plain batch as it is."""
        if self.row is None or self.column is None:
            return x
        return x.new_zeros(self.rows, self.longest, *x.shape[2:]).index_put((self.row, self.column), x[0])

    def pack(self, x: Tensor) -> Tensor:
        """The way back: (rows, longest, ...) to (1, T, ...)."""
        if self.row is None or self.column is None:
            return x
        return x[self.row, self.column].unsqueeze(0)

    def real(self) -> Tensor | None:
        """(rows, longest), True where there is a step; None for a plain batch: everywhere."""
        if self.row is None:
            return None
        return self.lay(torch.ones(1, self.steps, dtype=torch.bool, device=self.row.device))

    def lengths(self) -> Tensor | None:
        """(rows) steps of each sequence; None for a plain batch: all `steps`."""
        return None if self.row is None else self.row.bincount(minlength=self.rows)
