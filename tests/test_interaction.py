"""S4 and D3: closed forms of an additive model, culprits, what a ratio may say when an effect may be 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from branch_cases import (
    SPEC,
    STATES,
    TRAINED,
    Array,
    additive,
    as_numpy,
    constants,
    covariances,
    part,
    run,
    shown,
    states_over_time,
    wrapped,
)
from torch import Tensor

import statecheck as sc
from statecheck.experiments import draw_donors
from statecheck.probes.contract import gather
from statecheck.probes.interaction import DOCUMENTS, DONORS, Effects, _ratio, contributes, interaction
from statecheck.suite import judge, load_suite
from statecheck.testing.branches import MemoryInOne, stuttering_tokens

FAIL, PASS, SKIP = sc.Status.FAIL, sc.Status.PASS, sc.Status.SKIP
INCONCLUSIVE, NOT_APPLICABLE = sc.Status.INCONCLUSIVE, sc.Status.NOT_APPLICABLE


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class TestClosedForms:
    @pytest.mark.parametrize("third", [(), (0.9, 0.01)], ids=["two", "three"])
    def test_an_effect_is_twice_the_variance_of_what_the_component_adds(self, third: tuple[float, ...]) -> None:
        """E effect_b = 2 w_b^2 E h_b^2, from documents of T_tr + 1 elements, so that windows begin where they do.

        Ten sets of documents: intervals of 95 % hold the expectation in at least seven, and so does their mean.
        """
        module = additive({**SPEC, "third": [third]} if third else None)  # type: ignore[list-item]
        names = {name: f"layers.*.{name}.h" for name in ("fast", "slow", "third")[: 3 if third else 2]}
        modules = {name: f"layers.*.{name}" for name in names}
        model = sc.wrap(module, width=16, components=names, modules=modules, training_length=TRAINED)
        _, w = constants(module)
        raw = 2 * w**2 * np.mean([np.diag(c) for c in covariances(module, TRAINED)], axis=0)
        found, hits, ratios = [], np.zeros(len(names)), 0
        for seed in range(10):
            documents = module.sample(24, TRAINED + 1, seed=seed)
            effects = raw / np.var(as_numpy(documents).reshape(-1, 16), axis=0).mean()
            report = sc.check_model(model, inputs=documents, only=["S4", "D3"])
            judged = report["S4"].measurements
            found.append([m.value / effect for m, effect in zip(judged, effects, strict=True)])
            hits += [m.low < effect < m.high for m, effect in zip(judged, effects, strict=True)]
            ratio = report["D3"].measurements[0]
            ratios += ratio.low < effects.max() / effects.min() < ratio.high
            assert [m.where.component for m in judged] == list(names)
            assert {m.unit for m in judged} == {"of the targets' variance"}
        error = np.std(found, axis=0, ddof=1) / 10**0.5
        assert (np.abs(np.mean(found, axis=0) - 1) < 3 * error).all()
        assert (error < 0.12).all()
        assert hits.min() >= 7
        assert ratios >= 7

    @pytest.mark.parametrize("component", STATES)
    def test_the_reported_effect_is_that_of_a_direct_sum(self, component: str) -> None:
        """The same documents and donors, summed up in numpy."""
        module = additive()
        model = wrapped(module)
        evidence = gather(model, module.sample(30, 200))
        windows = as_numpy(evidence.streams(TRAINED + 1, most=DOCUMENTS, name="ablation"))
        generator = evidence.generator("ablation")
        donors = draw_donors(len(windows), DONORS, generator)
        f = constants(module)[1][:, None, None, None] * states_over_time(module, windows[:, :-1])
        e = windows[:, 1:] - f.sum(0)
        own = f[list(STATES).index(component)]
        rises = [((e + own - own[row]) ** 2).mean() - (e**2).mean() for row in donors]
        truth = np.mean(rises) / np.var(windows.reshape(-1, 16), axis=0).mean()
        with torch.no_grad():
            found = {m.where.component: m.value for m in contributes(evidence).measurements}
        assert found[component] == pytest.approx(truth, rel=1e-9)

    def test_effects_of_tokens_are_in_nats(self) -> None:
        """The echo's logit from a donor: loss of the shares times e^(2.5) where the donor's token stands, in numpy."""
        module = MemoryInOne().double()
        evidence = gather(tokens_model(module), stuttering_tokens(32, 200))
        windows = evidence.streams(TRAINED + 1, most=DOCUMENTS, name="ablation").numpy()
        donors = draw_donors(len(windows), DONORS, evidence.generator("ablation"))
        keep, shares = module.counts.retention.item(), np.zeros((*windows[:, :-1].shape, 48))
        n = np.zeros((len(windows), 48))
        for t in range(TRAINED):
            n = keep * n + np.eye(48)[windows[:, t]]
            shares[:, t] = (n + 0.25) / (n + 0.25).sum(axis=1, keepdims=True)

        def loss(echoed: np.ndarray) -> float:
            p = shares * np.exp(2.5 * np.eye(48)[echoed])
            p /= p.sum(axis=2, keepdims=True)
            return float(-np.log(np.take_along_axis(p, windows[:, 1:, None], 2)).mean())

        read = windows[:, :-1]
        truth = np.mean([loss(read[row]) for row in donors]) - loss(read)
        with torch.no_grad():
            found = {m.where.component: m for m in contributes(evidence).measurements}
        assert found["echo"].value == pytest.approx(truth, rel=1e-9)
        assert found["echo"].unit == "nats"

    def test_the_scale_of_the_data_does_not_matter(self) -> None:
        module = additive()
        documents = module.sample(20, 200)
        plain, large = (
            {m.where.component: m.value for m in part_values(wrapped(module), scale * documents)}
            for scale in (1.0, 1000.0)
        )
        assert large == pytest.approx(plain, rel=1e-9)


def part_values(model: sc.StatefulModel, inputs: Tensor) -> tuple[sc.Measurement, ...]:
    return sc.check_model(model, inputs=inputs, only=["S4"])["S4"].measurements


def tokens_model(module: MemoryInOne) -> sc.StatefulModel:
    names = {"counts": "counts.n", "echo": "echo.mean"}
    modules = {"counts": "counts", "echo": "echo"}
    return sc.wrap(module, components=names, modules=modules, training_length=TRAINED)


class TestCulprits:
    def test_a_branch_times_nothing_fails_both_rows_by_name(self) -> None:
        module = additive()
        module.branch("slow").scale = 0.0
        report = run(module, "S4", "D3")
        judged = part(report, "S4.contribution", "slow")
        assert judged.status is FAIL
        number = judged.measurements[0]
        assert (number.value, number.low, number.high) == (0, 0, 0)
        assert part(report, "S4.contribution", "fast").status is PASS
        assert part(report, "D3.ratio").status is FAIL
        assert "ablating slow does not raise the loss" in report["D3"].reason
        assert report.path == "C"

    def test_a_branch_times_a_hundredth_fails_d3(self) -> None:
        module = additive()
        module.branch("slow").scale = 0.01
        report = run(module, "S4", "D3")
        assert report["S4"].status is PASS  # it does contribute
        assert part(report, "D3.ratio").status is FAIL
        assert part(report, "D3.ratio").measurements[0].low > 100
        assert report.path == "B"

    @pytest.mark.parametrize("scale", [1e-9, 1e-6])
    def test_what_rounding_makes_of_nothing_does_not_pass(self, scale: float) -> None:
        module = additive().float()
        module.branch("slow").scale = scale
        report = run(module, "S4", "D3")
        assert report["S4"].status is FAIL
        assert report["D3"].status is FAIL

    def test_a_duplicated_branch_is_no_matter_of_these_rows(self) -> None:
        """Both halves of one memory cost the same: the ratio is 1, exactly; flow shows the redundancy."""
        report = run(additive({"fast": [(0.9, 0.04)], "slow": [(0.9, 0.04)]}), "S4", "D3")
        ratio = part(report, "D3.ratio").measurements[0]
        assert ratio.value == pytest.approx(1)
        assert report["S4"].status is report["D3"].status is PASS

    def test_a_component_that_does_harm(self) -> None:
        """The echo of tokens that do not stutter: ablating it lowers the loss."""
        model = tokens_model(MemoryInOne())
        report = sc.check_model(model, inputs=stuttering_tokens(32, 200, stay=0.0), only=["S4", "D3"])
        judged = part(report, "S4.contribution", "echo")
        assert judged.status is FAIL
        assert judged.measurements[0].high < 0
        assert "ablating echo does not raise the loss" in report["D3"].reason


def effects(columns: dict[str, Sequence[float] | Array], n: int = 24) -> Effects:
    table = np.stack([np.broadcast_to(np.asarray(c, dtype=float), n) for c in columns.values()], axis=1)
    return Effects(tuple(columns), table, 3.0, "nats", by_state=False)


def ratio_of(columns: dict[str, Any]) -> sc.Measurement | sc.Absence:
    model = wrapped(additive())
    return _ratio(gather(model, additive().sample(16, 200)), effects(columns))


def status_of(found: sc.Measurement | sc.Absence) -> sc.Status:
    outcome = sc.Outcome((found,)) if isinstance(found, sc.Measurement) else sc.Outcome(absences=(found,))
    return judge(load_suite("phase39").only(["D3"]), {"D3": outcome})[0].status


NOISE = np.random.default_rng(0).normal(size=24)
NOISE = (NOISE - NOISE.mean()) / NOISE.std()


class TestRatio:
    @pytest.mark.parametrize(
        ("small", "status"), [(0.6, PASS), (0.3, sc.Status.WARN), (0.1, FAIL), (0.4, INCONCLUSIVE)]
    )
    def test_of_two_clear_effects(self, small: float, status: sc.Status) -> None:
        found = ratio_of({"a": 1 + 0.05 * NOISE, "b": small * (1 + 0.05 * NOISE[::-1])})
        assert isinstance(found, sc.Measurement)
        assert found.value == pytest.approx(1 / small)
        assert found.low < 1 / small < found.high
        assert status_of(found) is status

    def test_is_never_under_one(self) -> None:
        found = ratio_of({"a": 1 + 0.3 * NOISE, "b": 1 + 0.3 * NOISE[::-1]})
        assert isinstance(found, sc.Measurement)
        assert found.value == pytest.approx(1)
        assert found.low == 1.0
        assert 1.05 < found.high < 2
        assert all(low >= 1 for _, low, _ in found.intervals)

    @pytest.mark.parametrize(("most", "status"), [(3.0, FAIL), (0.4, INCONCLUSIVE)])
    def test_where_the_smallest_may_be_nothing_only_a_bound_is_judged(self, most: float, status: sc.Status) -> None:
        """The mean of b is 0.05 +- 0.12: its upper bound is about 0.17, and lower(a) / that is what is known."""
        found = ratio_of({"a": most * (1 + 0.05 * NOISE), "b": 0.05 + 0.3 * NOISE[::-1]})
        assert isinstance(found, sc.Measurement)
        assert found.value == found.low == pytest.approx(most * 0.98 / 0.17, rel=0.1)
        assert found.high == math.inf
        assert found.where.component == "b"
        assert "a lower bound" in found.note
        assert status_of(found) is status

    def test_a_bound_can_be_corrected_for_multiplicity(self) -> None:
        """At a higher confidence the bound is lower, level by level."""
        found = ratio_of({"a": 3 + 0.15 * NOISE, "b": 0.05 + 0.3 * NOISE[::-1]})
        assert isinstance(found, sc.Measurement)
        lows = [low for _, low, _ in found.intervals]
        assert lows == sorted(lows, reverse=True)
        assert 0 < found.p_beyond(5, above=True) <= 0.05

    def test_where_all_may_be_nothing_they_are_redundant_or_unused(self) -> None:
        found = ratio_of({"a": 0.05 + 0.3 * NOISE, "b": 0.01 + 0.3 * NOISE[::-1]})
        assert isinstance(found, sc.Absence)
        assert found.status is INCONCLUSIVE
        assert found.reason.startswith("redundant or unused")

    @pytest.mark.parametrize("small", [0.0, -0.2])
    def test_a_smallest_that_is_certainly_not_above_nothing_fails_by_name(self, small: float) -> None:
        found = ratio_of({"a": 1 + 0.05 * NOISE, "b": small + small * 0.1 * NOISE})
        assert isinstance(found, sc.Absence)
        assert found.status is FAIL
        assert found.where.component == "b"

    def test_of_many_the_largest_and_the_smallest_count(self) -> None:
        found = ratio_of({"a": 1 + 0.05 * NOISE, "b": 4 + 0.1 * NOISE, "c": 2 - 0.1 * NOISE, "d": 3 - 0.1 * NOISE})
        assert isinstance(found, sc.Measurement)
        assert found.value == pytest.approx(4)
        assert found.note.startswith("b 4 [")

    def test_a_loss_that_is_lost_by_ablation_is_named(self) -> None:
        found = ratio_of({"a": 1 + 0.05 * NOISE, "b": np.full(24, np.nan)})
        assert isinstance(found, sc.Absence)
        assert "not finite when b is ablated" in found.reason


class TestEvidence:
    def test_without_modules_states_are_resampled_and_the_rows_say_so(self) -> None:
        report = run(additive(), "S4", "D3", modules=False, documents=20, time=100)
        assert report["D3"].status is PASS
        assert all(m.note.startswith("D3 (state)") for m in (*report["S4"].measurements, *report["D3"].measurements))
        assert report["D3"].notes[0].startswith("D3 (state): not every component names modules")

    def test_of_states_less_is_lost_than_of_outputs(self) -> None:
        """The present element stays its own: a^2 of the variance one token before, in place of all of it."""
        module = additive()
        reports = [run(module, "D3", modules=m, documents=24, time=TRAINED + 1) for m in (False, True)]
        a, _ = constants(module)
        p = np.stack([np.diag(c) for c in covariances(module, TRAINED)])
        before = np.concatenate([np.zeros((1, 2)), p[:-1]])
        truth = (a**2 * before).mean(axis=0) / p.mean(axis=0)
        for i, component in enumerate(STATES):
            state, output = (shown(r, "D3", "effect of ablation", component).value for r in reports)
            assert state / output == pytest.approx(truth[i], rel=0.05)

    def test_without_set_states_or_modules_there_is_nothing_to_ablate(self) -> None:
        class Silent(type(additive())):  # type: ignore[misc]
            set_states = None

            def reset(self) -> None:
                for branch in self._named().values():
                    branch.h = None

        module = Silent({"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025)]}).double()
        documents = additive().sample(20, 100)
        for modules, status in ((False, SKIP), (True, PASS)):
            report = sc.check_model(wrapped(module, modules=modules), inputs=documents, only=["S4", "D3"])
            assert report["S4"].status is report["D3"].status is status

    @pytest.mark.parametrize("id", ["S4", "D3"])
    def test_without_text_both_are_skipped(self, id: str) -> None:
        report = sc.check_model(wrapped(additive()), only=[id])
        assert report[id].status is SKIP
        assert "needs text" in report[id].reason

    @pytest.mark.parametrize("id", ["S4", "D3"])
    def test_few_documents_are_inconclusive(self, id: str) -> None:
        report = run(additive(), id, documents=15, time=100)
        assert report[id].status is INCONCLUSIVE
        assert "15 documents" in report[id].reason

    def test_a_loss_that_is_not_finite_is_another_rows_matter(self) -> None:
        module = additive()
        documents = module.sample(16, 100)
        module.branch("slow").weight.data.fill_(math.nan)
        report = sc.check_model(wrapped(module), inputs=documents, only=["S4", "D3"])
        assert report["S4"].status is report["D3"].status is INCONCLUSIVE
        assert "see D1.nonfinite" in report["S4"].reason

    def test_both_rows_read_one_experiment(self) -> None:
        module = additive()
        calls: list[int] = []
        module.register_forward_hook(lambda *_: calls.append(1))
        evidence = gather(wrapped(module), module.sample(16, 100))
        with torch.no_grad():
            first = contributes(evidence)
            made = len(calls)
            second = interaction(evidence)
        assert len(calls) == made > 0
        assert [m.value for m in first.measurements] == [m.value for m in second.shown]

    def test_the_numbers_are_those_of_the_seed(self) -> None:
        model, documents = wrapped(additive()), additive().sample(30, 100)
        one, again, other = (sc.check_model(model, inputs=documents, only=["D3"], seed=s)["D3"] for s in (0, 0, 1))
        assert one.measurements == again.measurements
        assert one.measurements[0].value != other.measurements[0].value

    def test_the_model_is_left_as_it_was(self) -> None:
        module = additive()
        model = wrapped(module)
        model(module.sample(2, 5))
        before = model.get_states()
        sc.check_model(model, inputs=module.sample(16, 100), only=["S4", "D3"])
        after = model.get_states()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(child._forward_hooks for child in module.modules())
