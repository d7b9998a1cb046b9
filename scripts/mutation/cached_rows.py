"""Mutants of the small transformer with masks and operations of its own (`cached`)."""

from __future__ import annotations

from mutation.rows import Mutant

MODULE = "mutation.cached"


def _mutant(name: str, kind: str, law: str, old: str, new: str) -> Mutant:
    return Mutant(name, "cached", kind, law, MODULE, old, new)


ROWS = (
    _mutant(
        "the mask of a batch of one is ignored",
        "mask ignored",
        "PADL",
        "if mask is None else mask",
        "if mask is None or len(mask) == 1 else mask",
    ),
    _mutant(
        "the mask of earlier calls is forgotten",
        "mask ignored",
        "PADL",
        "total = torch.cat([before, real], 1)",
        "total = torch.cat([torch.ones_like(before), real], 1)",
    ),
    _mutant(
        "every row has the mask of row 0",
        "row for all",
        "PADL",
        "real[:, None, None]",
        "real[:1, None, None]",
    ),
    _mutant(
        "pads behind a row are seen",
        "mask ignored",
        "PADR",
        "total = torch.cat([before, real], 1)",
        "total = torch.cat([before, real.cumsum(1) > 0], 1)",
    ),
    _mutant(
        "positions count pads",
        "position",
        "PADL",
        "real.cumsum(1) - 1",
        "torch.ones_like(inputs).cumsum(1) - 1",
    ),
    _mutant(
        "the next position counts pads",
        "position",
        "PADR",
        "position + real.sum(1)",
        "position + inputs.shape[1]",
    ),
    _mutant(
        "positions restart in every call",
        "position",
        "STEP",
        "position[:, None] + real.cumsum(1) - 1",
        "real.cumsum(1) - 1",
    ),
    _mutant(
        "the position is added to in place",
        "in place",
        "ALIAS",
        "self.position = position + real.sum(1)",
        "self.position = position.add_(real.sum(1))",
    ),
    _mutant(
        "a roll-back leaves the position",
        "crop",
        "CROP",
        "self.position = self.real.sum(1)",
        "self.position = self.position",
    ),
    _mutant(
        "a roll-back keeps one element too many", "crop", "CROP", "kept = slice(length)", "kept = slice(length + 1)"
    ),
    _mutant(
        "values are not reordered",
        "reorder",
        "REORDER",
        "self.values = [value[rows] for value in self.values]",
        "self.values = [value[rows.sort().values] for value in self.values]",
    ),
    _mutant(
        "the mask is not reordered",
        "reorder",
        "MACHINE",
        "self.real = self.real[rows]",
        "self.real = self.real[rows.sort().values]",
    ),
    _mutant(
        "a reset keeps the position",
        "reset",
        "RESET",
        "self.position = None",
        "self.position = self.position",
    ),
    _mutant(
        "the position is left out of what is read",
        "part of the state",
        "STEP",
        '"position": self.position.clone()',
        '"position": self.position.clone() * 0',
    ),
    _mutant(
        "values of one call are one place off",
        "off by one",
        "PREFIX",
        "values = torch.cat([values, value], 2)",
        "values = torch.cat([values, value.roll(1, 2)], 2)",
    ),
)
