"""Gates over positions: what `get_signals` shows becomes a curve, and nothing depends on it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError
from statecheck.protocol import SignalKind
from statecheck.signals import gates


class Gated(nn.Module):
    """h(t) = h(t-1) + x(t), with a gate that rises by 0.001 at each element: 0.001 t in channel 0, twice that in 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.h: Tensor | None = None
        self.read = 0
        self.gate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 2)
        outputs = (0 if self.h is None else self.h[:, None]) + (self.scale * x).cumsum(1)
        at = torch.arange(self.read + 1, self.read + x.shape[1] + 1)  # positions count from 1
        self.gate = 0.001 * at[None, :, None] * torch.tensor([1.0, 2.0]).expand(x.shape[0], 1, 2)
        self.h, self.read = outputs[:, -1], self.read + x.shape[1]
        return outputs

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"layers.0.h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h, self.read = (None, 0) if states is None else (states["layers.0.h"], self.read)

    def get_signals(self) -> dict[str, Tensor]:
        return {} if self.gate is None else {"layers.0.gate": self.gate, "layers.0.other": self.gate}


def test_a_curve_is_the_mean_over_documents_and_channels_at_each_position() -> None:
    model = sc.wrap(Gated(), width=2, signals={"*.gate": "gate"})
    assert model.facts.signals == {"layers.0.gate": SignalKind.GATE}, "a signal that nobody spoke of is left alone"
    (curve,) = gates(model, torch.randn(3, 300, 2))
    assert (curve.name, curve.label) == ("fusion gate over positions", "layers.0.gate")
    # 300 elements in stretches of 3 that end at 3, 6, ...: the mean of 1.5 * 0.001 t over t - 2 .. t.
    assert curve.x == tuple(float(t) for t in range(3, 301, 3))
    assert curve.y == pytest.approx([0.0015 * (t - 1) for t in curve.x])
    assert curve.low == pytest.approx(curve.high), "these gates are the same in all documents"


def test_a_model_without_signals_has_no_curve() -> None:
    assert gates(sc.wrap(nn.GRU(4, 4)), torch.randn(2, 8, 4)) == []
    assert gates(sc.wrap(Gated(), width=2), torch.randn(2, 8, 2)) == []


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(ContractError, match="no kind 'gates'; expected one of gate, log_decay, selection"):
        sc.wrap(Gated(), width=2, signals={"*.gate": "gates"})


def test_signals_are_the_callers() -> None:
    model = sc.wrap(Gated(), width=2, signals={"*": "gate"})
    model(torch.randn(1, 2, 2))
    held = model.get_signals()["layers.0.gate"]  # type: ignore[attr-defined]
    before = held.clone()
    model(torch.randn(1, 2, 2))
    assert torch.equal(held, before)
