"""The shared trace: which positions, which channels belong to whom, and the numbers against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import Declines, Integrator, LinearRecurrentUnit, TinyRWKV, TinyTransformer, TinyXLSTM
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.recording import Schedule, groups, record, values, walk


def schedule(training_length: int = 32, final: float = 4.0) -> Schedule:
    return Schedule.of(training_length, baseline=1.0, final=final, window=0.125, lag=64, start=0.25)


def vectors(rows: int, time: int, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, time, width, generator=generator, dtype=torch.float64)


class TestSchedule:
    def test_of_phase_39(self) -> None:
        plan = schedule(256)
        assert (plan.baseline, plan.final, plan.window, plan.lag, plan.start) == (256, 1024, 32, 64, 64)
        first, last = plan.windows()
        assert (first[0], first[-1], len(first)) == (225, 256, 32)
        assert (last[0], last[-1], len(last)) == (993, 1024, 32)

    def test_the_lag_is_a_quarter_of_a_short_training_length(self) -> None:
        assert schedule(40).lag == 10

    @pytest.mark.parametrize("training_length", [1, 2, 3, 5, 8, 17, 100, 1000])
    def test_any_training_length_has_a_sound_schedule(self, training_length: int) -> None:
        plan = schedule(training_length)
        first, last = plan.windows()
        assert first
        assert last
        assert not set(first) & set(last)
        assert min(first) >= 1
        assert set(plan.dependence()) <= set(first)
        assert len(plan.dependence()) == min(4, len(first))
        grid = plan.grid()
        assert grid[0] >= 1
        compared = [t for t in grid if t >= plan.start and t - plan.lag in grid]
        assert len(compared) >= min(12, plan.final - plan.start - plan.lag)


class TestGroups:
    def test_heads_come_first_and_tile_the_channels(self) -> None:
        model = sc.wrap(TinyRWKV(), states={"*.wkv": {"head_axis": 1}, "*.shift": {"kind": "conv"}})
        first = groups(model.facts)[0]
        assert [(part.head, part.start, part.stop) for part in first.parts] == [
            (0, 0, 16),
            (1, 16, 32),
            (2, 32, 48),
            (3, 48, 64),
        ]
        model(torch.zeros(2, 3, dtype=torch.long))
        states = model.get_states()
        flat = values(states, model.facts, first)
        torch.testing.assert_close(flat[:, 16:32], states["blocks.0.wkv"][:, 1].flatten(1).double())
        where = first.channel(17)
        assert (where.head, where.channel, where.state, where.layer) == (1, 1, "blocks.0.wkv", 0)

    def test_another_head_axis(self) -> None:
        class HeadsLast(Integrator):
            def get_states(self) -> dict[str, Tensor]:
                return {} if self.h is None else {"h": torch.stack([self.h, 10 * self.h], 2)}

            def set_states(self, states: object) -> None:
                self.h = None if states is None else states["h"][..., 0]  # type: ignore[index]

        model = sc.wrap(HeadsLast(), width=3, states={"h": {"head_axis": 2}})
        model(vectors(2, 1))
        flat = values(model.get_states(), model.facts, groups(model.facts)[0])
        torch.testing.assert_close(flat[:, 3:], 10 * flat[:, :3])

    def test_states_are_divided_by_their_normaliser(self) -> None:
        said = {"cell": {"normaliser": "norm"}, "norm": {"kind": "normaliser"}, "max": {"kind": "normaliser"}}
        model = sc.wrap(TinyXLSTM(), states=said)
        model(torch.zeros(2, 3, dtype=torch.long))
        states, (only,) = model.get_states(), groups(model.facts)
        assert only.names == ("cell", "hidden")
        flat = values(states, model.facts, only)
        torch.testing.assert_close(flat[:, :24], (states["cell"].double() / states["norm"].double()))
        assert float(flat[:, :24].abs().max()) <= 1  # c / n is a mean of tanh values

    def test_complex_units_are_pairs(self) -> None:
        model = sc.wrap(LinearRecurrentUnit(), width=4)
        model(torch.ones(2, 3, 4))
        (only,) = groups(model.facts)
        flat = values(model.get_states(), model.facts, only)
        assert flat.shape == (2, only.size) == (2, 24)
        torch.testing.assert_close(flat[:, 0], model.get_states()["lru.h"][:, 0].real.double())

    def test_caches_are_left_out(self) -> None:
        assert groups(sc.wrap(TinyTransformer()).facts) == []


class TestWalk:
    @pytest.mark.parametrize("chunk", [1, 3, 64])
    def test_stops_after_exactly_so_many_elements(self, chunk: int) -> None:
        model, x = sc.wrap(Integrator(), width=3), vectors(2, 20)
        whole, _ = sc.advance(model, x, None)
        seen = list(walk(model, x, [1, 7, 8, 20], chunk=chunk))
        assert [position for position, _, _ in seen] == [1, 7, 8, 20]
        torch.testing.assert_close(torch.cat([outputs for _, _, outputs in seen], 1), whole, rtol=1e-12, atol=0)
        for position, states, _ in seen:
            torch.testing.assert_close(states["h"], whole[:, position - 1], rtol=1e-12, atol=0)

    def test_starts_from_given_states_and_leaves_them_alone(self) -> None:
        model, x = sc.wrap(Integrator(), width=3), vectors(2, 4)
        start = {"h": torch.ones(2, 3, dtype=torch.float64)}
        ((_, states, _),) = walk(model, x, [4], states=start)
        assert bool((start["h"] == 1).all())
        torch.testing.assert_close(states["h"], sc.advance(model, x, start)[1]["h"])

    def test_steps_singly_through_a_model_that_takes_no_chunks(self) -> None:
        class Stepwise(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[1] != 1:
                    raise ValueError("one element a call")
                return super().forward(x)

        model = sc.wrap(Stepwise(), width=3)
        assert [position for position, _, _ in walk(model, vectors(1, 9), [4, 9])] == [4, 9]


class TestRecord:
    def test_equals_a_naive_loop(self) -> None:
        model, x, plan = sc.wrap(Integrator(), width=3), vectors(16, 128), schedule()
        found = record(model, x, plan).groups[0]
        h = [np.zeros((16, 3))] + [
            states["h"].numpy(force=True) for _, states, _ in walk(model, x, range(1, 129))
        ]  # h[t]
        first, last = plan.windows()
        np.testing.assert_allclose(found.baseline_square, np.mean([h[t] ** 2 for t in first], axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.final_square, np.mean([h[t] ** 2 for t in last], axis=0), rtol=1e-12)
        stops = {*first, *last, *plan.grid()}
        grid = [t for t in plan.grid() if t >= plan.start and t - plan.lag in stops]
        centred = {t: h[t] - h[t].mean(axis=0) for t in stops}
        cosines = [_cosine(centred[t], centred[t - plan.lag]) for t in grid]
        np.testing.assert_allclose(found.cosine(), np.mean(cosines, axis=0), rtol=1e-12)
        grams = [h[t] @ h[t].T for t in sorted(plan.dependence())]
        np.testing.assert_allclose(np.sort(np.sum(grams, 0)), np.sort(np.sum(found.grams, 0)), rtol=1e-12)
        assert found.largest == max(np.abs(h[t]).max() for t in stops)

    def test_does_not_depend_on_how_the_model_is_called(self) -> None:
        class Stepwise(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[1] != 1:
                    raise ValueError("one element a call")
                return super().forward(x)

        x = vectors(16, 128)
        one, other = (record(sc.wrap(module, width=3), x, schedule()) for module in (Integrator(), Stepwise()))
        np.testing.assert_allclose(one.groups[0].cosine(), other.groups[0].cosine(), rtol=1e-12)

    @pytest.mark.parametrize("step", [1, 2, 31, 32, 33, 100, 128])
    @pytest.mark.parametrize("where", ["state", "output"])
    def test_names_the_very_token_after_which_something_is_not_finite(self, step: int, where: str) -> None:
        class Breaks(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                before = 0 if self.read is None else int(self.read[0])
                self.read = torch.full((len(x),), before + x.shape[1])
                assert self.h is not None
                if before < step <= before + x.shape[1]:
                    y = y.index_fill(1, torch.tensor([step - before - 1]), torch.nan)
                    self.h = torch.full_like(self.h, torch.nan) if where == "state" else self.h
                return y

            read: Tensor | None = None

            def get_states(self) -> dict[str, Tensor]:
                return {} if self.h is None or self.read is None else {"h": self.h, "read": self.read}

            def set_states(self, states: dict[str, Tensor] | None) -> None:
                self.h, self.read = (None, None) if states is None else (states["h"], states["read"])

        found = record(sc.wrap(Breaks(), width=3), vectors(16, 128), schedule())
        assert found.nonfinite == (step, ("h",) if where == "state" else ("the output",))

    def test_what_was_seen_before_a_model_stops_stays(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=100), width=3)
        found = record(model, vectors(16, 128), schedule())
        assert found.ended is not None
        assert found.ended[0] == found.reached == 100
        assert "position 104 is out of range" in found.ended[1]

    def test_a_model_that_stops_within_its_training_length_raises(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=20), width=3)
        with pytest.raises(ModelRaised, match="out of range"):
            record(model, vectors(16, 128), schedule())

    def test_a_state_without_rows_can_not_be_recorded(self) -> None:
        class Shared(Integrator):
            def get_states(self) -> dict[str, Tensor]:
                return {} if self.h is None else {"h": self.h.mean(0, keepdim=True)}

        with pytest.raises(CapabilityMissing, match=r"shape \(1, 3\) for a batch of 16"):
            record(sc.wrap(Shared(), width=3), vectors(16, 128), schedule())

    def test_a_model_without_recurrent_states_is_still_read(self) -> None:
        model = sc.wrap(TinyTransformer())
        found = record(model, torch.zeros(16, 128, dtype=torch.long), schedule())
        assert found.groups == []
        assert found.reached == 128

    def test_equal_documents_have_no_cosine(self) -> None:
        found = record(sc.wrap(Integrator(), width=3), vectors(1, 128).expand(16, -1, -1), schedule())
        assert not found.groups[0].moves

    def test_samples_stay_within_their_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("statecheck.recording.SAMPLE_BYTES", 16 * 3 * 4 * 5)  # room for five looks
        found = record(sc.wrap(Integrator(), width=3), vectors(16, 128), schedule())
        assert 4 <= len(found.groups[0].samples) <= 5


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_a_lstm_has_its_two_states_in_one_group() -> None:
    (only,) = groups(sc.wrap(nn.LSTM(3, 5)).facts)
    assert only.names == ("layers.0.h", "layers.0.c")
    assert only.size == 10
