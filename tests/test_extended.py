"""extended: each part of the row on a log made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statecheck as sc
from statecheck import plots
from statecheck.errors import InputRefused
from statecheck.probes.extended import ratios, read_log
from statecheck.suite import Suite, SuiteItem, judge, load_suite
from statecheck.testing.branches import AdditiveBranches
from statecheck.verdict import Measurement, Outcome, Status

Row = dict[str, object]


def steady(steps: int = 10_000, every: int = 50) -> list[Row]:
    """A healthy log: the loss falls slowly, validation every 500 steps."""
    rows: list[Row] = []
    for step in range(0, steps + 1, every):
        row: Row = {"step": step, "train_loss": 4.0 + 4.0 / (1 + step / 200), "gradient_norm": 0.3}
        if step % 500 == 0:
            row["validation_loss"] = 4.2 + 4.0 / (1 + step / 200)
        rows.append(row)
    return rows


def judged(tmp_path: Path, rows: list[Row]) -> sc.Verdict:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = sc.wrap(torch.nn.GRU(2, 2))
    return sc.check_model(model, only=["extended"], training_log=log)["extended"]


def part(verdict: sc.Verdict, name: str) -> sc.Verdict:
    return next(one for one in verdict.parts if one.id == name)


def test_a_steady_log_passes_in_every_part(tmp_path: Path) -> None:
    verdict = judged(tmp_path, steady())
    assert verdict.status is Status.PASS
    statuses = {one.id: one.status for one in verdict.parts}
    assert statuses.pop("extended.balance") is Status.NOT_APPLICABLE
    assert statuses.pop("extended.updates") is Status.NOT_APPLICABLE  # nothing was logged of them, nothing is asked
    assert set(statuses.values()) == {Status.PASS}


@pytest.mark.parametrize("value", ["NaN", float("inf")])
@pytest.mark.parametrize("key", ["train_loss", "gradient_norm"])
def test_one_nonfinite_point_fails_with_its_step(tmp_path: Path, key: str, value: object) -> None:
    rows = steady()
    rows[100][key] = value
    found = part(judged(tmp_path, rows), "extended.nonfinite")
    assert found.status is Status.FAIL
    assert "step 5000" in found.reason


@pytest.mark.parametrize(("points", "status"), [(3, Status.PASS), (4, Status.FAIL)])
def test_a_spike_may_last_three_points(tmp_path: Path, points: int, status: Status) -> None:
    rows = steady()
    for row in rows[150 : 150 + points]:
        row["train_loss"] = float(str(row["train_loss"])) + 0.6
    found = part(judged(tmp_path, rows), "extended.spike")
    assert (found.status, found.measurements[0].value) == (status, points)


def test_the_first_descent_is_no_spike(tmp_path: Path) -> None:
    """The loss falls by 3.6 nats within the first 101 points: all of them are above the median of what follows."""
    assert part(judged(tmp_path, steady()), "extended.spike").measurements[0].value == 0


@pytest.mark.parametrize(("factor", "status"), [(1.04, Status.PASS), (1.06, Status.FAIL)])
def test_the_last_validation_is_held_against_the_best(tmp_path: Path, factor: float, status: Status) -> None:
    rows = steady()
    best = min(float(str(row["validation_loss"])) for row in rows if "validation_loss" in row)
    rows[-1]["validation_loss"] = best * factor
    found = part(judged(tmp_path, rows), "extended.final")
    assert found.measurements[0].value == pytest.approx(factor, rel=0.02)
    assert found.status is status


def test_a_rising_end_fails_and_a_noisy_one_does_not(tmp_path: Path) -> None:
    rising = steady(every=100)
    for row in rising:
        if "validation_loss" in row and int(str(row["step"])) >= 8000:
            row["validation_loss"] = 4.3 + 0.02 * (int(str(row["step"])) - 8000) / 1000
    found = part(judged(tmp_path, rising), "extended.slope")
    assert found.status is Status.FAIL
    assert found.measurements[0].value == pytest.approx(0.02, rel=1e-6)  # nats in 1,000 steps
    noisy = steady(every=100)
    for i, row in enumerate(row for row in noisy if "validation_loss" in row):
        row["validation_loss"] = 4.3 + (0.01 if i % 2 else -0.01)
    assert part(judged(tmp_path, noisy), "extended.slope").status is Status.PASS


def test_gradient_ratios_of_two_components_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    wanted = [1.0] * 94 + [20.0] * 6
    lines = [{"step": i, "gradient_norms": {"a": ratio, "b": 1.0}} for i, ratio in enumerate(wanted)]
    log.write_text("\n".join(map(json.dumps, lines)))
    found = read_log(log, ["a", "b"])
    assert [ratio for _, ratio in ratios(found.norms, "a", "b")] == wanted


@pytest.fixture(scope="module")
def model() -> sc.StatefulModel:
    branches = {name: [(0.5, 0.1)] for name in ("rwkv", "mamba", "third")}
    module = AdditiveBranches(branches)
    names = {name: f"*.{name}.*" for name in branches}
    return sc.wrap(module, width=module.width, training_length=16, components=names)


class TestComponents:
    """The parts about components, on a model with three: the first two are compared, all are updated."""

    def judged(self, tmp_path: Path, model: sc.StatefulModel, said: Callable[[int], Row]) -> sc.Verdict:
        path = tmp_path / "log.jsonl"
        rows = [{**row, **said(i)} for i, row in enumerate(steady())]  # 201 points
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sc.check_model(model, only=["extended"], training_log=path)["extended"]

    @staticmethod
    def healthy(i: int) -> Row:
        return {
            "gradient_norms": {"rwkv": 0.3, "mamba": 1.0, "third": 0.1},
            "relative_updates": {"rwkv": 2e-3, "mamba": 1e-3, "third": 4e-3},
            "gates": {"blocks.0": 0.5, "blocks.1": 0.4 + i / 1000},
        }

    def test_a_healthy_log_passes(self, tmp_path: Path, model: sc.StatefulModel) -> None:
        verdict = self.judged(tmp_path, model, self.healthy)
        assert verdict.status is Status.PASS
        balance, updates = (part(verdict, f"extended.{name}") for name in ("balance", "updates"))
        assert (balance.measurements[0].value, updates.measurements[0].value) == (1.0, 1.0)
        assert balance.measurements[0].note == "rwkv over mamba: median 0.3"
        assert [one.value for one in verdict.shown] == pytest.approx([4.0, 4.0])

    @pytest.mark.parametrize(("outside", "status"), [(10, Status.PASS), (11, Status.FAIL)])
    def test_balance_is_asked_of_95_percent(
        self, tmp_path: Path, model: sc.StatefulModel, outside: int, status: Status
    ) -> None:
        """Of 201 points 10.05 may lie outside [0.1, 10]; a second norm of 0 or NaN lies outside too."""
        odd = [0.01, 20.0, 0.0]

        def said(i: int) -> Row:
            norms = {"rwkv": 1.0, "mamba": odd[i % 3] if i < outside else 1.0, "third": 1.0}
            return {**self.healthy(i), "gradient_norms": norms}

        found = part(self.judged(tmp_path, model, said), "extended.balance")
        assert found.measurements[0].value == pytest.approx(1 - outside / 201)
        assert found.status is status

    def test_exactly_95_percent_pass(self) -> None:
        """phase 3.9 says at least 95 %: 19 of 20 points."""
        criterion = next(
            c for i in load_suite("phase39").items for c in i.criteria if c.measurement == "extended.balance"
        )
        item = SuiteItem("extended", True, {}, (criterion,))
        outcome = Outcome((Measurement.exact("extended.balance", 19 / 20),))
        suite = Suite("one", "", (item,), "", "")
        assert judge(suite, {"extended": outcome})[0].status is Status.PASS

    @pytest.mark.parametrize("component", ["rwkv", "mamba", "third"])
    def test_a_learning_rate_of_zero_for_one_group_fails_by_name(
        self, tmp_path: Path, model: sc.StatefulModel, component: str
    ) -> None:
        def said(i: int) -> Row:
            row = self.healthy(i)
            row["relative_updates"] = {**row["relative_updates"], component: 0.0}  # type: ignore[dict-item]
            return row

        verdict = self.judged(tmp_path, model, said)
        found = part(verdict, "extended.updates")
        assert found.status is Status.FAIL
        assert (found.measurements[0].value, found.measurements[0].where.component) == (0.0, component)
        assert "learning rate 0" in found.reason
        assert not verdict.shown  # no ratio to nothing

    @pytest.mark.parametrize(("frozen", "status"), [(10, Status.PASS), (11, Status.FAIL)])
    def test_a_component_may_rest_for_a_while(
        self, tmp_path: Path, model: sc.StatefulModel, frozen: int, status: Status
    ) -> None:
        def said(i: int) -> Row:
            row = self.healthy(i)
            return {**row, "relative_updates": {"rwkv": 0.0 if i < frozen else 1e-3, "mamba": 1e-3, "third": 1e-3}}

        assert part(self.judged(tmp_path, model, said), "extended.updates").status is status

    def test_updates_of_some_components_are_missing_evidence(self, tmp_path: Path, model: sc.StatefulModel) -> None:
        verdict = self.judged(tmp_path, model, lambda i: {**self.healthy(i), "relative_updates": {"rwkv": 1e-3}})
        found = part(verdict, "extended.updates")
        assert (found.status, "none of mamba, third" in found.reason) == (Status.SKIP, True)

    @pytest.mark.parametrize("said", [{}, {"relative_updates": {"layers.0": 1e-3}}, {"gates": [1, "a"]}, {"gates": 3}])
    def test_a_log_that_tells_no_updates_is_not_asked_for_them(
        self, tmp_path: Path, model: sc.StatefulModel, said: Row
    ) -> None:
        norms = {"gradient_norms": {"rwkv": 1.0, "mamba": 1.0}}
        verdict = self.judged(tmp_path, model, lambda i: {**norms, **said})
        assert verdict.status is Status.PASS  # not applicable is no obstacle
        found = part(verdict, "extended.updates")
        assert (found.status, "not asked for" in found.reason) == (Status.NOT_APPLICABLE, True)

    def test_no_gradients_by_component_are_missing_evidence(self, tmp_path: Path, model: sc.StatefulModel) -> None:
        verdict = self.judged(tmp_path, model, lambda i: {"relative_updates": self.healthy(i)["relative_updates"]})
        assert part(verdict, "extended.balance").status is Status.SKIP

    def test_a_component_s_gradient_that_is_not_finite_counts(self, tmp_path: Path, model: sc.StatefulModel) -> None:
        def said(i: int) -> Row:
            norms = {"rwkv": "NaN" if i == 100 else 1.0, "mamba": 1.0, "third": 1.0}
            return {**self.healthy(i), "gradient_norms": norms}

        found = part(self.judged(tmp_path, model, said), "extended.nonfinite")
        assert (found.status, "step 5000" in found.reason) == (Status.FAIL, True)

    def test_curves_become_pictures(self, tmp_path: Path, model: sc.StatefulModel) -> None:
        verdict = self.judged(tmp_path, model, self.healthy)
        curves: dict[str, list[str]] = {}
        for series in verdict.series:
            curves.setdefault(series.name, []).append(series.label)
        assert curves == {
            "training curves": ["training", "validation"],
            "gradients by component in training": ["rwkv", "mamba", "third"],
            "relative updates by component in training": ["rwkv", "mamba", "third"],
            "fusion gates in training": ["blocks.0", "blocks.1"],
        }
        gate = verdict.series[-1]
        assert (gate.where.layer, gate.x[1], gate.y[1], gate.x_unit) == (1, 50.0, 0.401, "steps")
        drawn = plots.figures([verdict])
        assert {"gradients-by-component-in-training.png", "fusion-gates-in-training-map.png"} <= set(drawn)
        assert all(plots.png(figure).startswith(b"\x89PNG") for figure in drawn.values())


def test_a_short_log_and_no_log_are_skipped(tmp_path: Path) -> None:
    verdict = judged(tmp_path, steady(steps=9_000))
    assert verdict.status is Status.SKIP
    assert "9,000" in verdict.reason
    assert sc.check_model(torch.nn.GRU(2, 2), only=["extended"])["extended"].status is Status.SKIP


@pytest.mark.parametrize("line", ["no json", "[1]", '{"train_loss": 1}', '{"step": 1, "train_loss": "many"}'])
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 0, "train_loss": 8.0}\n' + line + "\n")
    with pytest.raises(InputRefused, match="line 2"):
        read_log(log)
