"""Tracing: numbers against a stepwise computation, memory that does not grow, thinning, files."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import TinyTransformer
from torch import Tensor

import statecheck as sc
from statecheck.errors import InputRefused
from statecheck.testing.oracles import LinearState
from statecheck.tracing import trace


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def lstm() -> sc.StatefulModel:
    torch.manual_seed(0)
    return sc.wrap(torch.nn.LSTM(4, 6, num_layers=2, batch_first=True))


@torch.no_grad()
def test_statistics_equal_those_of_single_steps_in_float64() -> None:
    model = lstm()
    x = torch.randn(5, 48, 4, generator=torch.Generator().manual_seed(1))
    frame = sc.trace(model, x, every=16).to_frame()
    assert list(frame["position"]) == [16, 16, 32, 32, 48, 48]
    stepper = sc.fresh(model)
    for t in range(48):
        stepper(x[:, t : t + 1])
        if (t + 1) % 16:
            continue
        states = stepper.get_states()
        for layer in range(2):
            h = torch.cat([states[f"layers.{layer}.{name}"] for name in "hc"], 1).double()
            row = frame[(frame["position"] == t + 1) & (frame["layer"] == layer)].iloc[0]
            rms = h.square().mean(1).sqrt().numpy()
            assert row["rms"] == pytest.approx(np.median(rms), rel=1e-5)
            assert row["mean"] == pytest.approx(h.mean().item(), abs=1e-7)
            assert row["largest"] == pytest.approx(h.abs().max().item(), rel=1e-5)
            p = (h**2 / (h**2).sum(1, keepdim=True)).numpy()
            assert row["entropy"] == pytest.approx((-(p * np.log(p)).sum(1) / np.log(12)).mean(), rel=1e-5)


def test_cosine_of_a_linear_state_is_its_retention_to_the_lag() -> None:
    model = sc.wrap(LinearState([0.98] * 64), width=64)
    x = torch.randn(32, 2048, 64, generator=torch.Generator().manual_seed(0))
    for curve in sc.trace(model, x, every=16).cosines:
        for lag, cosine in zip(curve.x, curve.y, strict=True):
            assert cosine == pytest.approx(0.98**lag, abs=0.02)


def endless(pieces: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(pieces):
        yield torch.randn(1, 100, 4, generator=generator)


def peak(pieces: int) -> int:
    model = sc.wrap(torch.nn.GRU(4, 8, batch_first=True))
    tracemalloc.start()
    try:
        found = trace(model, endless(pieces), every=16, points=64)
        assert found.length == pieces * 100 // 16 * 16
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_length() -> None:
    """What Python holds (tables, records) at 8 times the length; tensors are freed piece by piece."""
    peak(20)  # first use: imports and caches
    assert peak(320) < 1.3 * peak(40) + 50_000


def test_observations_are_thinned_and_stay_evenly_spaced() -> None:
    model = sc.wrap(torch.nn.GRU(4, 8, batch_first=True))
    found = trace(model, endless(100), every=16, points=64)
    positions = sorted({int(row["position"]) for row in found.observations})
    assert len(positions) < 64
    assert set(np.diff(positions)) == {found.every}


def test_the_first_nonfinite_position_is_kept() -> None:
    x = torch.randn(2, 64, 4)
    x[1, 40] = torch.nan
    found = sc.trace(lstm(), x, every=8)
    assert found.first_nonfinite == 48
    assert found.to_frame()["nonfinite"].iloc[-1] > 0


def test_files_and_pictures(tmp_path: Path) -> None:
    found = sc.trace(lstm(), torch.randn(6, 256, 4), every=8)
    files = {path.name for path in found.save(tmp_path)}
    assert files == {
        "states.csv",
        "cosines.csv",
        "state-rms.png",
        "state-rms-by-layer.png",
        "cosine-against-lag.png",
    }
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in files if name.endswith(".png"))
    assert len((tmp_path / "states.csv").read_text().splitlines()) == 1 + 2 * 32


def test_a_model_that_can_only_be_observed_is_traced() -> None:
    class Observed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(4, 5, batch_first=True)
            self.h: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            y, self.h = self.rnn(x, self.h)
            return y

        def get_states(self) -> dict[str, Tensor]:
            return {} if self.h is None else {"h": self.h[0]}

    found = sc.trace(sc.wrap(Observed(), width=4), torch.randn(3, 40, 4), every=10)
    assert [row["position"] for row in found.observations] == [10, 20, 30, 40]


def test_too_little_input_is_refused() -> None:
    with pytest.raises(InputRefused, match="at least 16"):
        sc.trace(lstm(), torch.randn(2, 10, 4), every=16)


def test_no_tensors_pile_up_over_65536_elements() -> None:
    """Tensors alive between pieces, at 4,096 and at 63,488 elements: the ring of lags is full long before."""
    alive = []

    def counted() -> Iterator[Tensor]:
        for piece in range(65_536 // 64):
            if piece in (64, 992):  # both after a whole number of blocks
                gc.collect()
                alive.append(sum(issubclass(type(one), Tensor) for one in gc.get_objects()))
            yield torch.zeros(1, 64, 4)

    model = sc.wrap(torch.nn.GRU(4, 8, batch_first=True))
    assert trace(model, counted(), every=64, points=32).length == 65_536
    assert alive[1] <= alive[0] + 2


def test_a_model_without_recurrent_states_has_no_lines() -> None:
    found = sc.trace(sc.wrap(TinyTransformer()), torch.zeros(2, 64, dtype=torch.long))
    assert found.observations == ()
    assert found.plot() == {}
