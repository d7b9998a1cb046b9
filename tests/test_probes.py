"""Each row by itself: what it says of a healthy model, what makes it fail, what it can't say, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import Declines, Integrator, TinyMamba, TinyRWKV, TinyTransformer, TinyXLSTM
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import CapabilityMissing, InputRefused, UsageError
from statecheck.probes.contract import gather
from statecheck.probes.health import SUBSCORES, anchored, healthy
from statecheck.report.record import Report
from statecheck.suite import load_suite
from statecheck.testing.oracles import LinearState, topical_tokens

TRAINED = 64
FAIL, PASS, SKIP = sc.Status.FAIL, sc.Status.PASS, sc.Status.SKIP
INCONCLUSIVE, NOT_APPLICABLE = sc.Status.INCONCLUSIVE, sc.Status.NOT_APPLICABLE


def normal(width: int = 3, *, documents: int = 16, time: int = 4 * TRAINED, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(documents, time, width, generator=generator, dtype=torch.float64)


def integrator(width: int = 3, **methods: Any) -> sc.StatefulModel:
    """A healthy leaky integrator, or one with some of its methods replaced."""
    module = type("Odd", (Integrator,), methods)(width)
    return sc.wrap(module, width=width, training_length=TRAINED)


def check(model: sc.StatefulModel, only: str, inputs: Tensor | None = None) -> Report:
    return sc.check_model(model, inputs=normal(model.facts.width or 3) if inputs is None else inputs, only=[only])


def part(report: Report, name: str) -> sc.Verdict:
    return next(one for row in report for one in row.parts if one.id == name)


def parts(report: Report) -> dict[str, sc.Status]:
    return {one.id: one.status for row in report for one in row.parts}


class TestS0:
    def test_a_healthy_model(self) -> None:
        assert check(integrator(), "S0")["S0"].status is PASS

    def test_a_growing_cache_may_grow(self) -> None:
        tokens = torch.zeros(16, 300, dtype=torch.long)
        assert sc.check_model(sc.wrap(TinyTransformer()), inputs=tokens, only=["S0"])["S0"].status is PASS

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda states: {"h": states["h"].float()}, "h has dtype float32, expected float64"),
            (lambda states: {"k": states["h"]}, "h is declared and not returned"),
            (lambda states: {**states, "k": states["h"]}, "k is returned and not declared"),
            (lambda states: {"h": states["h"][:, :2]}, r"h has shape \(2, 2\) for 2 rows, expected \(2, 3\)"),
            (lambda states: {"h": states["h"].mean(0, keepdim=True)}, r"h has shape \(1, 3\) for 2 rows"),
        ],
    )
    def test_states_that_are_not_as_declared(self, change: Callable[[sc.States], sc.States], message: str) -> None:
        honest = integrator()

        class Lies:
            """What the facts say is what the healthy model has; what it returns is not."""

            facts = honest.facts
            set_states = staticmethod(honest.set_states)
            __call__ = staticmethod(honest)

            def get_states(self) -> sc.States:
                states = honest.get_states()
                return change(states) if states else {}

        report = sc.check_model(Lies(), inputs=normal(), only=["S0"])
        assert report["S0"].status is FAIL
        assert pytest.importorskip("re").search(message, report["S0"].reason)

    def test_a_state_without_a_row_for_each_document(self) -> None:
        def shared(self: Integrator) -> dict[str, Tensor]:
            return {} if self.h is None else {"h": self.h, "bias": torch.ones(1, 3, dtype=torch.float64)}

        def put(self: Integrator, states: dict[str, Tensor] | None) -> None:
            self.h = None if states is None else states["h"]

        report = check(integrator(get_states=shared, set_states=put), "S0")
        assert "bias has shape (1, 3) for 2 rows, expected (2, 3)" in report["S0"].reason


class TestS1:
    def test_a_state_that_is_always_zero(self) -> None:
        def zero(self: Integrator) -> dict[str, Tensor]:
            return {} if self.h is None else {"layers.0.h": self.h, "layers.1.h": self.h * 0}

        report = check(integrator(get_states=zero), "S1")
        assert part(report, "S1.zero").status is FAIL
        assert "layer 1" in part(report, "S1.zero").reason

    def test_magnitude_is_that_of_the_dtype(self) -> None:
        class Half(Integrator):
            def get_states(self) -> dict[str, Tensor]:
                return {} if self.h is None else {"h": (800 * self.h).half()}

            def set_states(self, states: dict[str, Tensor] | None) -> None:
                self.h = None if states is None else states["h"].double() / 800

        model = sc.wrap(Half(), width=3, training_length=TRAINED)
        magnitude = part(check(model, "S1"), "S1.magnitude")
        assert magnitude.status is FAIL
        assert magnitude.measurements[0].value == pytest.approx(6000 / 65504, rel=0.3)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_weights_that_are_not_finite_are_named(self, bad: float) -> None:
        torch.manual_seed(0)
        module = TinyMamba()
        module.project[1].weight.data[0, 0] = bad
        report = sc.check_model(sc.wrap(module, training_length=TRAINED), inputs=topical_tokens(16, 353, 32))
        reason = part(report, "S1.nonfinite").reason
        assert "the weights themselves are not finite: project.1.weight" in reason
        assert "position " in reason
        assert "layer 1" in reason
        assert "S1" in report.failures
        assert parts(report)["G3.5.cosine"] is INCONCLUSIVE
        assert parts(report)["D4.readout"] is INCONCLUSIVE

    def test_without_recurrent_states_only_finiteness_is_asked(self) -> None:
        model = sc.wrap(TinyTransformer(), training_length=TRAINED)
        found = parts(sc.check_model(model, only=["S1"]))
        assert found == {"S1.nonfinite": PASS, "S1.zero": NOT_APPLICABLE, "S1.magnitude": NOT_APPLICABLE}


class TestS2:
    def test_rows_that_leak_into_each_other(self) -> None:
        def leak(self: Integrator, x: Tensor) -> Tensor:
            y = Integrator.forward(self, x)
            assert self.h is not None
            self.h = self.h + 1e-3 * self.h.roll(1, 0)
            return y

        report = check(integrator(forward=leak), "S2")
        assert part(report, "S2.isolation").status is FAIL
        assert part(report, "S2.dependence").status is PASS

    def test_noise_is_not_taken_for_a_leak(self) -> None:
        def noisy(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, x + 1e-3 * torch.randn_like(x))

        report = check(integrator(forward=noisy), "S2")
        assert part(report, "S2.isolation").status is PASS

    def test_a_state_that_is_the_same_whatever_is_read(self) -> None:
        def deaf(self: Integrator, x: Tensor) -> Tensor:
            Integrator.forward(self, torch.ones_like(x))
            return x

        report = check(integrator(forward=deaf), "S2")
        assert part(report, "S2.dependence").status is FAIL


class TestS3:
    @pytest.mark.parametrize(("noise", "status"), [(0.0, PASS), (1e-7, PASS), (1e-4, FAIL)])
    def test_noise(self, noise: float, status: sc.Status) -> None:
        def noisy(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, x + noise * torch.randn_like(x))

        assert check(integrator(forward=noisy), "S3")["S3"].status is status

    def test_history_that_survives_a_reset(self) -> None:
        class Remembers(Integrator):
            def set_states(self, states: dict[str, Tensor] | None) -> None:
                self.h = states["h"] if states is not None else None if self.h is None else 0.5 * self.h[:1]

        model = sc.wrap(Remembers(), width=3, training_length=TRAINED)
        assert check(model, "S3")["S3"].status is FAIL

    def test_dropout_that_ignores_evaluation_mode(self) -> None:
        def dropped(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, nn.functional.dropout(x, 0.1, training=True))

        assert check(integrator(forward=dropped), "S3")["S3"].status is FAIL


class TestG35:
    def test_a_state_that_is_the_same_for_all_documents_fails_by_name(self) -> None:
        def deaf(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, torch.ones_like(x))

        report = check(integrator(forward=deaf), "G3.5")
        assert part(report, "G3.5.cosine").status is FAIL
        assert "no variance across documents" in report["G3.5"].reason

    @pytest.mark.parametrize(("share", "status"), [(0.2, PASS), (0.5, FAIL)])
    def test_pinned_units(self, share: float, status: sc.Status) -> None:
        report = check(clipped(round(20 * share), 20), "G3.5", normal(20))
        found = part(report, "G3.5.pinned")
        assert found.status is status
        assert found.measurements[0].value == pytest.approx(share)

    def test_the_slowest_layer_counts(self) -> None:
        report = check(stacked(0.5, 0.999), "G3.5")
        assert part(report, "G3.5.cosine").measurements[0].where.layer == 1


class TestD1:
    def test_a_baseline_of_zero_is_never_a_ratio(self) -> None:
        def silent(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, 0 * x)

        report = check(integrator(forward=silent), "D1")
        assert part(report, "D1.silent").status is FAIL
        assert part(report, "D1.growth").status is FAIL
        assert "exactly zero at the training length" in report["D1"].reason

    def test_a_silent_layer_is_named_and_left_out_of_ratios(self) -> None:
        def two(self: Integrator) -> dict[str, Tensor]:
            return {} if self.h is None else {"layers.0.h": self.h, "layers.1.h": self.h * 0}

        report = check(integrator(get_states=two), "D1")
        assert "layer 1" in part(report, "D1.silent").reason
        assert part(report, "D1.growth").status is PASS

    @pytest.mark.parametrize(
        ("limit", "growth", "words"),
        [
            (4 * TRAINED, PASS, None),
            (3 * TRAINED, PASS, "R is taken at 2"),
            (2 * TRAINED, PASS, "R is taken at 2"),
            (2 * TRAINED - 1, INCONCLUSIVE, None),
            (TRAINED, INCONCLUSIVE, None),
        ],
    )
    def test_a_model_that_can_not_run_on(self, limit: int, growth: sc.Status, words: str | None) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=limit), width=3, training_length=TRAINED)
        report = check(model, "D1")
        assert part(report, "D1.growth").status is growth
        assert report["D1"].notes == () if words is None else words in report["D1"].notes[0]

    def test_a_limit_on_no_grid_position(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=2 * 100), width=3, training_length=100)
        assert part(check(model, "D1"), "D1.growth").status is PASS

    def test_a_model_that_raises_within_its_training_length_fails(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=TRAINED - 1), width=3, training_length=TRAINED)
        report = check(model, "D1")
        assert report["D1"].status is FAIL
        assert "the model raised IndexError" in report["D1"].reason

    def test_stress_streams_are_shown_not_judged(self) -> None:
        shown = {m.name: m.value for m in check(integrator(), "D1")["D1"].shown}
        assert shown["R on constant input"] == pytest.approx(1.0, abs=0.01)
        assert 0.5 < shown["R on uniform input"] < 2

    def test_of_a_normalised_state_is_that_of_the_content(self) -> None:
        """A sum that is divided by its weight: the sum grows fourfold, what it stands for does not."""

        class Mean(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                outputs = []
                for x_t in x.unbind(1):
                    total, count = (x_t + 1, torch.ones_like(x_t)) if self.h is None else self.h.unbind(1)
                    total, count = (total, count) if self.h is None else (total + x_t + 1, count + 1)
                    self.h = torch.stack([total, count], 1)
                    outputs.append(total / count)
                return torch.stack(outputs, 1)

            def get_states(self) -> dict[str, Tensor]:
                return {} if self.h is None else {"total": self.h[:, 0], "count": self.h[:, 1]}

            def set_states(self, states: dict[str, Tensor] | None) -> None:
                self.h = None if states is None else torch.stack([states["total"], states["count"]], 1)

        said = {"total": {"normaliser": "count"}, "count": {"kind": "normaliser"}}
        plain = sc.wrap(Mean(), width=3, training_length=TRAINED)
        declared = sc.wrap(Mean(), width=3, training_length=TRAINED, states=said)
        assert part(check(plain, "D1"), "D1.growth").measurements[0].value > 3.5
        assert part(check(declared, "D1"), "D1.growth").measurements[0].value == pytest.approx(1, abs=0.1)


class TestD2:
    def test_dead_units(self) -> None:
        def dying(self: Integrator, x: Tensor) -> Tensor:
            return Integrator.forward(self, x * (torch.arange(20) < 1))

        report = check(integrator(20, forward=dying), "D2", normal(20))
        assert part(report, "D2.dead").status is FAIL
        assert part(report, "D2.dead").measurements[0].value == pytest.approx(0.95)

    def test_saturated_units(self) -> None:
        report = check(clipped(20, 20), "D2", normal(20))
        assert part(report, "D2.saturated").status is FAIL

    def test_without_set_states_retention_is_skipped_and_the_rest_runs(self) -> None:
        model = sc.wrap(Declines(Integrator(), hides=["set_states"]), width=3, training_length=TRAINED)
        found = parts(check(model, "D2"))
        assert found["D2.selection"] is SKIP
        assert found["D2.decay"] is SKIP
        assert found["D2.frozen"] is PASS

    def test_a_frozen_layer_is_named(self) -> None:
        def second_frozen(self: Integrator) -> dict[str, Tensor]:
            return {} if self.h is None else {"layers.0.h": self.h, "layers.1.h": torch.ones_like(self.h)}

        found = part(check(integrator(get_states=second_frozen), "D2"), "D2.frozen")
        assert found.status is FAIL
        assert "layer 1" in found.reason

    def test_a_stabilised_state_is_judged_by_its_content(self) -> None:
        """The c of an sLSTM is kept whole whenever its stabiliser leads; c / n fades as the gates say."""
        said = {"cell": {"normaliser": "norm"}, "hidden": {"recurrence": "derived"}}
        said |= {name: {"kind": "normaliser"} for name in ("norm", "max")}
        torch.manual_seed(0)
        model = sc.wrap(TinyXLSTM(), training_length=TRAINED, states=said, selective=True)
        report = sc.check_model(model, inputs=topical_tokens(16, 353, 32), only=["D2"])
        assert report["D2"].status is PASS
        half_life = next(m for m in report["D2"].shown if m.name == "half-life")
        assert 5 < half_life.value < 100

    def test_a_matrix_state_with_heads_is_found_diagonal(self) -> None:
        torch.manual_seed(0)
        model = sc.wrap(
            TinyRWKV(), training_length=TRAINED, states={"*.wkv": {"head_axis": 1}, "*.shift": {"kind": "conv"}}
        )
        report = sc.check_model(model, inputs=topical_tokens(16, 353, 32), only=["D2"])
        assert {m.note for m in report["D2"].shown} == {"diagonal, a unit"}


class TestD4:
    def test_without_text_the_losses_are_skipped(self) -> None:
        found = parts(sc.check_model(integrator(), only=["D4"]))
        assert found == {"D4.perplexity": SKIP, "D4.benefit": SKIP, "D4.reach": PASS, "D4.readout": PASS}

    def test_without_a_loss_too(self) -> None:
        model = sc.wrap(nn.LSTM(3, 5, batch_first=True).double(), training_length=TRAINED)
        assert "say wrap(..., loss=...)" in part(check(model, "D4"), "D4.perplexity").reason

    def test_an_output_that_ignores_the_state(self) -> None:
        def deaf(self: Integrator, x: Tensor) -> Tensor:
            Integrator.forward(self, x)
            return 2 * x

        report = check(integrator(forward=deaf), "D4")
        assert part(report, "D4.readout").status is FAIL
        assert part(report, "D4.reach").status is PASS

    @pytest.mark.parametrize("every", [24, 50, 64, 100, 250])
    def test_a_reset_anywhere_is_found(self, every: int) -> None:
        class Resets(Integrator):
            read: Tensor | None = None

            def forward(self, x: Tensor) -> Tensor:
                outputs = []
                for x_t in x.split(1, 1):
                    outputs.append(super().forward(x_t))
                    self.read = torch.ones(len(x)) if self.read is None else self.read + 1
                    self.h = None if int(self.read[0]) % every == 0 else self.h
                return torch.cat(outputs, 1)

            def get_states(self) -> dict[str, Tensor]:
                if self.read is None:
                    return {}
                return {"h": torch.zeros(len(self.read), 3).double() if self.h is None else self.h, "read": self.read}

            def set_states(self, states: dict[str, Tensor] | None) -> None:
                self.h, self.read = (None, None) if states is None else (states["h"], states["read"])

        model = sc.wrap(Resets(), width=3, training_length=TRAINED, states={"read": {"kind": "position"}})
        found = part(check(model, "D4"), "D4.reach")
        assert found.status is FAIL
        assert found.measurements[0].value == 0

    def test_documents_that_are_too_short(self) -> None:
        report = check(integrator(), "D4", normal(time=90))
        assert part(report, "D4.perplexity").status is INCONCLUSIVE
        assert "fewer than two of the contexts of [64, 128, 256]" in part(report, "D4.perplexity").reason
        assert part(report, "D4.reach").status is PASS

    def test_contexts_that_only_some_documents_hold(self) -> None:
        documents = [*normal(documents=16, time=200), *normal(documents=10, time=400)]
        report = sc.check_model(integrator(), inputs=documents, only=["D4"])
        assert "contexts of [256] tokens do not fit" in report["D4"].notes[0]
        assert part(report, "D4.perplexity").measurements[0].n == 26

    def test_a_model_that_takes_no_more_than_four_training_lengths(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=4 * TRAINED), width=3, training_length=TRAINED)
        report = check(model, "D4", normal(time=400))
        assert "contexts of [256] tokens do not fit" in report["D4"].notes[0]
        assert part(report, "D4.reach").status is PASS

    def test_short_training_lengths_have_contexts_of_their_own(self) -> None:
        model = sc.wrap(Integrator(), width=3, training_length=32)
        report = check(model, "D4", normal(time=200))
        (series,) = report["D4"].series
        assert series.x == (8.0, 16.0, 32.0, 64.0)

    def test_a_predictor_without_any_error_is_no_worse_anywhere(self) -> None:
        constant = normal(time=1).expand(-1, 400, -1)

        def copies(self: Integrator, x: Tensor) -> Tensor:
            Integrator.forward(self, x)
            return x

        report = check(integrator(forward=copies), "D4", constant)
        assert part(report, "D4.perplexity").measurements[0].value == 1.0

    def test_a_loss_that_explodes_with_the_context_fails(self) -> None:
        def explodes(self: Integrator, x: Tensor) -> Tensor:
            y = Integrator.forward(self, x)
            self.t = getattr(self, "t", 0) + x.shape[1]
            return y * 10.0 ** (min(self.t, 280) / 4)

        def put(self: Integrator, states: dict[str, Tensor] | None) -> None:
            self.t = 0 if states is None else self.t
            Integrator.set_states(self, states)

        report = check(integrator(forward=explodes, set_states=put), "D4", normal(time=400))
        assert part(report, "D4.perplexity").status is FAIL


class TestHealth:
    """Each sub-score falls alone, to the value that its anchors say."""

    anchors = next(item for item in load_suite("phase39").items if item.id == "health").options["anchors"]

    @pytest.mark.parametrize("name", SUBSCORES[:-1])
    def test_the_anchors_are_worth_1_07_05_and_0(self, name: str) -> None:
        row = self.anchors[name]
        assert anchored(np.array(row["at"]), **row) == pytest.approx([1.0, 0.7, 0.5, 0.0])
        beyond = np.array([row["at"][0], row["at"][3]]) * [0.5, 2] if row["at"][0] < row["at"][3] else None
        beyond = np.array([row["at"][0] * 2, row["at"][3] / 2]) if beyond is None else beyond
        assert anchored(beyond, **row) == pytest.approx([1.0, 0.0])

    @pytest.mark.parametrize(
        ("name", "value", "score"),
        [
            ("bounded", math.sqrt(2 * 10), 0.6),  # half way between 2 and 10 in the logarithm
            ("bounded", math.inf, 0.0),
            ("moving", math.sqrt(0.5 * 0.05), 0.85),
            ("moving", 0.0, 0.0),
            ("responsive", 1e-3, 0.6),
            ("responsive", 1e-5, 0.25),
            ("unpinned", 0.1, 0.85),
            ("unpinned", 0.65, 0.25),
            ("bounded", math.nan, 1.0),
        ],
    )
    def test_between_anchors_it_is_linear(self, name: str, value: float, score: float) -> None:
        assert anchored(np.array([value]), **self.anchors[name])[0] == pytest.approx(score)

    def scores(self, model: sc.StatefulModel, inputs: Tensor) -> tuple[dict[str, float], sc.Verdict]:
        report = check(model, "health", inputs)
        return {m.name: m.value for m in report["health"].shown}, part(report, "health.score")

    def alone(self, name: str, model: sc.StatefulModel, inputs: Tensor) -> float:
        """The score of `name`, all others being 1."""
        scores, verdict = self.scores(model, inputs)
        assert {other for other, value in scores.items() if value < 1} == {name}
        assert verdict.measurements[0].note == f"limited by {name}"
        assert verdict.measurements[0].value == scores[name]
        return scores[name]

    def test_of_a_healthy_state_is_one(self) -> None:
        scores, verdict = self.scores(linear(0.9), normal(32))
        assert set(scores) == set(SUBSCORES)
        assert set(scores.values()) == {1.0}
        assert verdict.status is PASS

    def test_bounded_falls_with_growth(self) -> None:
        louder = normal(32) * torch.where(torch.arange(4 * TRAINED) < 2 * TRAINED, 1.0, 10.0)[:, None]
        assert self.alone("bounded", linear(0.9), louder) == pytest.approx(0.5, abs=0.03)

    def test_moving_falls_with_slowness(self) -> None:
        """1 - a^16 sqrt(v(t-16) / v(t)) is .15 for a = .99, between .5 (1) and .05 (.7) in the logarithm."""
        a = 0.99
        v = [1 - a ** (2 * t) for t in range(4 * TRAINED + 1)]
        moved = np.mean([1 - a**16 * math.sqrt(v[t - 16] / v[t]) for t in range(24, 4 * TRAINED + 1, 8)])
        expected = 0.7 + 0.3 * math.log(moved / 0.05) / math.log(10)
        assert self.alone("moving", linear(a), normal(32)) == pytest.approx(expected, abs=0.02)

    def test_responsive_falls_with_a_constant_drive(self) -> None:
        """I = v / (v + m^2) with v = 1 / .19 and m = 10 c: 1e-3 for c = 7.25, which is worth .6."""
        assert self.alone("responsive", linear(0.9), normal(32) + 7.25) == pytest.approx(0.6, abs=0.01)

    def test_unpinned_falls_with_clipping(self) -> None:
        """5 of 20 units at their bound: half way between .2 (.7) and .3 (.5)."""
        assert self.alone("unpinned", clipped(5, 20), normal(20)) == pytest.approx(0.6, abs=1e-6)

    def test_finite_is_all_or_nothing(self) -> None:
        def breaks(self: Integrator, x: Tensor) -> Tensor:
            y = Integrator.forward(self, x)
            assert self.h is not None
            self.h = torch.where(self.h > 6, torch.nan, self.h)
            return y

        verdict = part(check(integrator(forward=breaks), "health"), "health.score")
        assert verdict.status is FAIL
        assert verdict.measurements[0].value == 0
        assert "limited by finite: not finite after token" in verdict.reason

    def test_the_worst_layer_counts(self) -> None:
        verdict = part(check(stacked(0.5, 0.999), "health"), "health.score")
        assert verdict.measurements[0].where.layer == 1

    def test_an_anchor_that_is_missing_is_a_wrong_suite(self) -> None:
        evidence = gather(integrator(), normal())
        with pytest.raises(UsageError, match="no anchors for 'moving'"):
            healthy(evidence, anchors={"bounded": self.anchors["bounded"]})


class TestExtended:
    """What `tests/test_extended.py` leaves open: logs that are thin or odd, and two components."""

    def check(self, tmp_path: Path, rows: Iterable[dict[str, Any]], model: sc.StatefulModel | None = None) -> Report:
        path = tmp_path / "log.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return sc.check_model(model or integrator(), only=["extended"], training_log=path)

    def log(self, validation: Callable[[int], float]) -> list[dict[str, Any]]:
        """10,000 steps, a training point each 100, a validation point each 250."""
        train = [{"step": 100 * i, "train_loss": 3.0} for i in range(101)]
        return train + [{"step": 250 * i, "validation_loss": validation(i)} for i in range(41)]

    def test_a_rise_within_the_noise_is_none(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).normal(size=41) * 0.05
        report = self.check(tmp_path, self.log(lambda i: 3.0 + 0.001 * max(0, i - 32) + noise[i]))
        assert part(report, "extended.slope").status is PASS

    def test_a_best_loss_of_nothing_has_no_ratio(self, tmp_path: Path) -> None:
        assert part(self.check(tmp_path, self.log(lambda i: 0.0)), "extended.final").status is INCONCLUSIVE

    def test_few_validation_points_at_the_end(self, tmp_path: Path) -> None:
        rows = [row for row in self.log(lambda i: 3.0) if not 9_000 < row["step"] < 10_000]
        report = self.check(tmp_path, [row for row in rows if "train_loss" in row or row["step"] > 8_500])
        assert part(report, "extended.slope").status is INCONCLUSIVE

    @pytest.mark.parametrize(("outside", "status"), [(4, PASS), (6, FAIL)])
    def test_the_balance_of_two_components(self, tmp_path: Path, outside: int, status: sc.Status) -> None:
        model = sc.wrap(TinyMamba(), components={"conv": "*.conv", "ssm": "*.ssm"}, training_length=TRAINED)
        norms = [0.05] * outside + [1.0] * (100 - outside)
        rows = [{"step": i, "gradient_norms": {"conv": x, "ssm": 1.0}} for i, x in enumerate(norms)]
        report = self.check(tmp_path, self.log(lambda i: 3.0 - 0.001 * i) + rows, model)
        assert part(report, "extended.balance").status is status


class TestComponentRows:
    @pytest.mark.parametrize("id", ["S4", "D3", "coupling", "flow", "gradient-ratio"])
    def test_of_a_single_component_can_not_exist(self, id: str) -> None:
        report = check(integrator(), id)
        assert report[id].status is NOT_APPLICABLE
        assert "one component (state)" in report[id].reason


class TestEvidence:
    def test_windows_are_seeded_and_lie_in_their_documents(self) -> None:
        rows = torch.arange(40)[:, None] * 1000 + torch.arange(500)
        model = sc.wrap(TinyMamba(vocabulary=40_000), training_length=TRAINED)
        evidence = gather(model, rows)
        streams = evidence.streams(256)
        assert streams.shape == (32, 256)
        assert bool((streams[:, 1:] - streams[:, :-1] == 1).all())
        assert torch.equal(streams, gather(model, rows).streams(256))
        assert not torch.equal(streams, gather(model, rows, seed=1).streams(256))

    def test_short_documents_are_continued_with_others(self) -> None:
        evidence = gather(integrator(), normal(time=30))
        assert evidence.streams(100).shape == (16, 100, 3)

    def test_generators_are_those_of_seed_and_name(self) -> None:
        one, other = (gather(integrator(), normal(), seed=seed) for seed in (0, 1))
        assert one.generator("a").integers(2**60) == one.generator("a").integers(2**60)
        assert one.generator("a").integers(2**60) != one.generator("b").integers(2**60)
        assert one.generator("a").integers(2**60) != other.generator("a").integers(2**60)

    def test_the_shared_trace_is_made_once(self) -> None:
        evidence = gather(integrator(), normal())
        assert evidence.standard_record() is evidence.standard_record()

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (torch.zeros(0, 5, 3), "at least one sequence"),
            (torch.zeros(16, 1, 3), "2 elements or more"),
            (torch.zeros(16), "at least one sequence"),
            (torch.zeros(16, 9), r"expected vectors \(batch, time, 3\)"),
            (torch.zeros(16, 9, 4), r"expected vectors \(batch, time, 3\), found rows of shape \(9, 4\)"),
            (torch.full((16, 9, 3), torch.nan), "expected finite vectors"),
        ],
    )
    def test_vectors_that_do_not_fit(self, inputs: Tensor, message: str) -> None:
        with pytest.raises(InputRefused, match=message):
            gather(integrator(), inputs)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (torch.full((16, 9), 32), r"ids 32 \.\. 32, but the vocabulary is 0 \.\. 31"),
            (torch.full((16, 9), -1), r"ids -1 \.\. -1"),
            (torch.zeros(16, 9), "expected integer token ids"),
            (torch.zeros(16, 9, 3, dtype=torch.long), "expected integer token ids"),
        ],
    )
    def test_tokens_that_do_not_fit(self, inputs: Tensor, message: str) -> None:
        with pytest.raises(InputRefused, match=message):
            gather(sc.wrap(TinyMamba()), inputs)

    @pytest.mark.parametrize("convert", [np.asarray, torch.Tensor.float, list], ids=["numpy", "float32", "list"])
    def test_inputs_in_other_forms_are_brought_to_the_models_own(self, convert: Callable[[Tensor], Any]) -> None:
        rows = gather(integrator(), convert(normal())).rows
        assert {row.dtype for row in rows} == {torch.float64}

    def test_small_integers_are_token_ids(self) -> None:
        rows = gather(sc.wrap(TinyMamba()), torch.zeros(16, 9, dtype=torch.uint8)).rows
        assert {row.dtype for row in rows} == {torch.int64}

    def test_what_needs_text_says_what_there_is(self) -> None:
        with pytest.raises(CapabilityMissing, match=r"needs text.*this run is on seeded normal vectors of width 3"):
            gather(integrator(), None).require_text()

    def test_an_assumed_training_length_is_noted(self) -> None:
        evidence = gather(sc.wrap(Integrator(), width=3), normal())
        assert evidence.training_length == 256
        assert evidence.notes == ("training length assumed to be 256 tokens",)


def linear(a: float, width: int = 32) -> sc.StatefulModel:
    """One retention in every unit."""
    return sc.wrap(LinearState([a] * width).double(), width=width, training_length=TRAINED)


def clipped(pinned: int, width: int) -> sc.StatefulModel:
    """Leaky integrators of which the first `pinned` are cut off at a tenth, where they sit nearly always."""

    def clip(self: Integrator, x: Tensor) -> Tensor:
        outputs = []
        limit = torch.where(torch.arange(width) < pinned, 0.1, torch.inf).double()
        for x_t in x.split(1, 1):
            Integrator.forward(self, x_t)
            assert self.h is not None
            self.h = self.h.clamp(-limit, limit)
            outputs.append(self.h)
        return torch.stack(outputs, 1)

    return integrator(width, forward=clip)


def stacked(*retentions: float) -> sc.StatefulModel:
    """Layers of linear states side by side, each fed by the input."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(LinearState([a] * 3).double() for a in retentions)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x) for layer in self.layers]).sum(0)

        def get_states(self) -> dict[str, Tensor]:
            held = [layer.h for layer in self.layers]
            return {f"layers.{i}.h": h for i, h in enumerate(held) if h is not None}  # type: ignore[misc]

        def set_states(self, states: dict[str, Tensor] | None) -> None:
            for i, layer in enumerate(self.layers):
                layer.h = None if states is None else states[f"layers.{i}.h"]

    return sc.wrap(Layers(), width=3, training_length=TRAINED)
