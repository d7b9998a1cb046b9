"""A model that tells the statistics of its states, by brute force, and what two traces of it must have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import statecheck as sc
from statecheck.tracing import Trace

HEADS, K, V, WIDTH = 3, 4, 5, 6
Told = tuple[Tensor, dict[str, dict[str, Tensor]]]


class Selective(nn.Module):
    """Per layer a matrix S (B, H, K, V) = a S + k v' with a decay by head that depends on the input, and an average c.

    Its statistics are taken by brute force from all states of a call. `calls` are the lengths of all calls.
    """

    backend = "brute force"

    def __init__(self, *, heads: bool = True, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.has_heads, self.layers = heads, layers
        self.project = nn.ModuleList(nn.Linear(WIDTH, HEADS * (1 + K + V)) for _ in range(layers))
        self.mix = nn.Linear(HEADS * V, WIDTH)
        self.held: dict[str, Tensor] = {}
        self.calls: list[int] = []

    def states_of(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs, and every state at every element, (B, T, ...)."""
        self.calls.append(x.shape[1])
        found = {}
        for i, project in enumerate(self.project):
            a, k, v = project(x).unflatten(-1, (HEADS, 1 + K + V)).split([1, K, V], dim=-1)
            shapes = {f"layers.{i}.S": (HEADS, K, V), f"layers.{i}.c": (WIDTH,)}
            S, c = (self.held.get(name, x.new_zeros(len(x), *shape)) for name, shape in shapes.items())
            steps: list[tuple[Tensor, Tensor]] = []
            for t in range(x.shape[1]):
                S = a[:, t].sigmoid()[..., None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
                c = 0.9 * c + 0.1 * x[:, t]
                steps.append((S, c))
            found |= {name: torch.stack(kept, 1) for name, kept in zip(shapes, zip(*steps, strict=True), strict=True)}
            x = torch.tanh(self.mix(found[f"layers.{i}.S"].sum(3).flatten(2)))
        self.held = {name: value[:, -1] for name, value in found.items()}
        return x, found

    def forward(self, x: Tensor) -> Tensor:
        return self.states_of(x)[0]

    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> Told:
        outputs, found = self.states_of(inputs)
        told = {}
        for name, value in found.items():
            heads = HEADS if self.has_heads and name.endswith("S") else 1
            seen = value[:, every - 1 :: every].double().reshape(len(value), -1, heads, value[0, 0].numel() // heads)
            told[name] = brute_force(seen, None if running is None else running[name], entropy)
        return outputs, told

    def get_states(self) -> dict[str, Tensor]:
        return dict(self.held)

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.held = dict(states or {})


def brute_force(h: Tensor, running: Tensor | None, entropy: bool) -> dict[str, Tensor]:
    """The definitions of `Observing` word by word, for h (B, K, heads, n)."""
    finite = h.isfinite()
    size = torch.where(finite, h.abs(), 0.0)
    reached = size.amax(3).cummax(1).values
    if running is not None:
        reached = torch.maximum(reached, running[:, None])
    p = h**2 / (h**2).sum(3, keepdim=True)
    energy = (h**2).sum(3)
    spread = -torch.where(p > 0, p * p.log(), torch.where(p.isnan(), p, 0.0)).sum(3) / math.log(max(2, h.shape[3]))
    told = {
        "square_sum": energy,
        "largest": h.abs().amax(3),
        "mean": h.mean(3),
        "near_largest": (finite & (size >= 0.99 * reached[..., None]) & (reached > 0)[..., None]).sum(3),
        "nonfinite": (~finite).sum(3),
        "running": reached[:, -1],
    }
    return {**told, "entropy": torch.where(energy == 0, 0.0, spread)} if entropy else told


def wrapped(module: Selective | None = None, dtype: torch.dtype = torch.float64, **said: Any) -> sc.StatefulModel:
    """In float64, where calls of other lengths round alike."""
    module = (module or Selective()).to(dtype)
    axes = {"layers.*.S": {"head_axis": 1}} if module.has_heads else {}
    options: dict[str, Any] = {"width": WIDTH, "components": {"S": "layers.*.S", "c": "layers.*.c"}, "states": axes}
    return sc.wrap(module, **(options | said))


def vectors(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same(fused: Trace, generic: Trace) -> None:
    """Both tables and all curves, to 1e-6."""
    assert fused.path.startswith("fused: ")
    assert generic.path.startswith("generic: ")
    one, two = fused.to_frame(), generic.to_frame()
    assert len(one) > 0
    assert list(one.columns) == list(two.columns)
    assert [*one["component"], *one["layer"]] == [*two["component"], *two["layer"]]
    numbers = one.select_dtypes("number").columns
    pd.testing.assert_frame_equal(one[numbers], two[numbers], rtol=1e-6, atol=1e-9, check_dtype=False)
    assert (fused.length, fused.rows, fused.every) == (generic.length, generic.rows, generic.every)
    assert fused.first_nonfinite == generic.first_nonfinite
    assert [(c.label, c.x, c.name) for c in fused.cosines] == [(c.label, c.x, c.name) for c in generic.cosines]
    for a, b in zip(fused.cosines, generic.cosines, strict=True):
        np.testing.assert_allclose(a.y, b.y, rtol=1e-6, atol=1e-9)
