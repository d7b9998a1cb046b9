"""Statistics that a model tells of its states: the same table as from the states themselves, in long calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from observed_models import HEADS, WIDTH, Selective, brute_force, same, vectors, wrapped
from torch import Tensor, nn

import statecheck as sc
from statecheck import observing
from statecheck.errors import InputRefused, UsageError
from statecheck.gathering import Table
from statecheck.protocol import Capability
from statecheck.tracing import FUSED_CALL, trace


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("heads", [True, False], ids=["heads", "no heads"])
@pytest.mark.parametrize("every", [1, 4, 16])
def test_both_paths_give_the_same_table(every: int, heads: bool, rows: int) -> None:
    model, x = wrapped(Selective(heads=heads)), vectors(rows, 77)
    fused = trace(model, x, every, path="fused")
    same(fused, trace(model, x, every, path="generic"))
    assert fused.length == 77 // every * every
    assert {row["layer"] for row in fused.observations} == {0, 1}


def test_states_of_one_layer_with_and_without_heads_are_put_together() -> None:
    model, x = wrapped(components=None), vectors(5, 50)
    found = trace(model, x, 5)
    same(found, trace(model, x, 5, path="generic"))
    assert {row["component"] for row in found.observations} == {"state"}


@pytest.mark.parametrize("options", [{"apart": 0}, {"apart": 8}, {"apart": 32}, {"chunk": 20}, {"points": 7}])
def test_the_same_under_every_option(options: dict[str, Any]) -> None:
    model, x = wrapped(), vectors(4, 203)
    fused = trace(model, x, 4, **options)
    same(fused, trace(model, x, 4, path="generic", **options))
    assert bool(fused.cosines) == (options.get("apart") != 0)


def test_statistics_equal_those_of_the_definitions_at_each_step() -> None:
    """Numbers of a layer with heads, from all its states at once."""
    module = Selective()
    model, x = wrapped(module), vectors(3, 40)
    frame = trace(model, x, 1, path="fused").to_frame()
    with torch.no_grad():
        sc.fresh(model)
        _, states = module.states_of(x)
    h = states["layers.1.S"].double().numpy()
    held = np.zeros((3, HEADS))
    for t in range(40):
        row = frame[(frame["position"] == t + 1) & (frame["component"] == "S") & (frame["layer"] == 1)].iloc[0]
        now = h[:, t].reshape(3, -1)
        rms = np.sqrt((now**2).mean(1))
        assert [row["rms"], row["rms_low"], row["rms_high"]] == pytest.approx(np.quantile(rms, [0.5, 0.1, 0.9]))
        assert row["largest"] == pytest.approx(np.abs(now).max())
        p = now**2 / (now**2).sum(1, keepdims=True)
        assert row["entropy"] == pytest.approx((-(p * np.log(p)).sum(1) / np.log(now.shape[1])).mean())
        held = np.maximum(held, np.abs(h[:, t]).max((2, 3)))
        near = np.abs(h[:, t]) >= 0.99 * held[:, :, None, None]
        assert row["near_largest"] == pytest.approx(near.mean())


def test_states_that_are_not_finite() -> None:
    x = vectors(3, 64)
    x[1, 40] = torch.nan
    x[2, 50] = torch.inf
    fused = trace(wrapped(), x, 4)
    same(fused, trace(wrapped(), x, 4, path="generic"))
    assert fused.first_nonfinite == 44
    assert fused.to_frame()["nonfinite"].max() > 0


def test_a_zero_state_has_numbers() -> None:
    found = observing.measured(torch.zeros(2, 6, dtype=torch.float64), 3)
    table = observing.combined([(found, 2)])
    assert dict(zip(observing.COLUMNS, table[0].tolist(), strict=True)) == dict.fromkeys(observing.COLUMNS, 0.0)


def test_complex_states_count_as_pairs() -> None:
    facts = sc.StateFacts(sc.StateKind.VECTOR, "state", 0, (4,), "complex64", head_axis=None)
    value = torch.tensor([[3 + 4j, 0, 0, 0]], dtype=torch.complex64)
    found = observing.of_state({"h": value}, "h", facts, None)
    assert found["square_sum"].item() == 25
    assert observing.units_of_a_head(facts) == 8
    assert found["mean"].item() == pytest.approx(7 / 8)


class TestThinning:
    @pytest.mark.parametrize("points", [2, 5, 64])
    @pytest.mark.parametrize("length", [64, 255, 256])
    def test_positions_are_those_of_both_paths(self, points: int, length: int) -> None:
        x = vectors(1, length)
        both = [trace(wrapped(), x, 2, points=points, path=path) for path in ("fused", "generic")]
        positions = [[row["position"] for row in found.observations] for found in both]
        assert positions[0] == positions[1]
        assert len(set(positions[0])) < points
        assert set(positions[0]) == set(range(both[0].every, length + 1, both[0].every))

    def test_lines_do_not_depend_on_how_the_observations_came_in(self) -> None:
        facts = wrapped().facts
        told = {name: brute_force(torch.randn(2, 1500, s.heads, 4).double(), None, True)
                for name, s in facts.states.items()}  # fmt: skip
        tables = []
        for sizes in ([1500], [1] * 1500, [700, 1, 799]):
            table = Table(facts, 3, 100)
            start = 0
            for size in sizes:
                part = {name: {key: value if key == "running" else value[:, start : start + size]
                               for key, value in of.items()} for name, of in told.items()}  # fmt: skip
                table.add(part, size)
                start += size
            tables.append(pd.DataFrame(table.lines()))
        assert tables[0]["position"].iloc[0] == 3 * 16
        for other in tables[1:]:
            pd.testing.assert_frame_equal(tables[0], other, rtol=1e-12)


class TestCalls:
    def lengths(self, **options: Any) -> list[int]:
        """Lengths of the calls of a fused trace over 2,500 elements."""
        module = Selective(layers=1)
        model = wrapped(module, components=None)
        module.calls.clear()
        trace(model, vectors(1, 2500), **options)
        return module.calls

    def test_calls_are_as_long_as_they_may_be(self) -> None:
        assert self.lengths(every=1, apart=0) == [1024, 1024, 452]
        assert self.lengths(every=100, apart=0) == [1000, 1000, 500]
        assert self.lengths(every=100, apart=0, chunk=256) == [200] * 12 + [100]

    def test_calls_end_where_states_are_compared(self) -> None:
        assert self.lengths(every=1) == [64] * 39 + [4]
        assert self.lengths(every=100, apart=1200) == [1000, 200, 1000, 200, 100]

    def test_a_long_input_is_read_in_bounded_calls(self) -> None:
        module = Selective(layers=1)
        model = wrapped(module, components=None)
        module.calls.clear()
        pieces = (vectors(1, 3000) for _ in range(3))
        found = trace(model, pieces, 1, apart=0, points=32)
        assert found.length == 9000
        assert max(module.calls) == FUSED_CALL
        assert len(found.observations) < 32

    def test_a_model_of_one_element_a_call(self) -> None:
        class Stepwise(Selective):
            def states_of(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
                if x.shape[1] != 1:
                    raise ValueError("one element a call")
                return super().states_of(x)

        found = trace(wrapped(Stepwise()), vectors(2, 20), 2)
        assert found.path.startswith("generic: states read every 2 elements (the model raised ValueError")


class TestTheWay:
    def test_it_is_said(self) -> None:
        x = vectors(2, 40)
        assert trace(wrapped(), x, 4).path == (
            "fused: statistics inside the recurrence (backend brute force), calls of up to 64 elements"
        )
        assert trace(wrapped(), x, 4, path="generic").path == "generic: states read every 4 elements (as asked for)"

    def test_a_state_with_a_normaliser_is_read(self) -> None:
        class Divided(Selective):
            def get_states(self) -> dict[str, Tensor]:
                return {**self.held, "z": 1 + torch.ones(len(self.held["layers.0.c"]), 1)} if self.held else {}

        said: dict[str, Any] = {"z": {"kind": "normaliser"}, "layers.0.c": {"normaliser": "z"}}
        axes = {"layers.*.S": {"head_axis": 1}}
        model = wrapped(Divided(), components=None, states=axes | said)
        assert Capability.STATISTICS in model.facts.capabilities, model.facts.missing
        assert "'layers.0.c' is looked at divided by 'z'" in trace(model, vectors(2, 32), 4).path

    def test_observations_further_apart_than_a_call_are_read(self) -> None:
        assert trace(wrapped(), vectors(1, 64), 32, chunk=16).path == (
            "generic: states read every 32 elements (a call takes at most 16 elements)"
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"path": "quick"}, "path 'quick': expected auto, fused, generic"),
            ({"apart": 6}, "apart=6: expected a multiple of every=4, or 0"),
            ({"apart": -4}, "apart=-4"),
            ({"points": 1}, "points >= 2"),
        ],
    )
    def test_what_can_not_be_meant(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            trace(wrapped(), vectors(1, 32), 4, **options)

    def test_fused_that_can_not_be_had_is_refused_with_the_reason(self) -> None:
        with pytest.raises(UsageError, match="path 'fused' can't be had: the module has no forward_with_statistics"):
            trace(sc.wrap(nn.GRU(WIDTH, 4, batch_first=True)), vectors(1, 32).float(), path="fused")

    def test_too_little_input(self) -> None:
        with pytest.raises(InputRefused, match="at least 16"):
            trace(wrapped(), vectors(1, 15))
