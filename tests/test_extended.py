"""extended: each part of the row on a log made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import statecheck as sc
from statecheck.errors import InputRefused
from statecheck.probes.extended import read_log
from statecheck.verdict import Status

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
    ratios = [1.0] * 94 + [20.0] * 6
    lines = [{"step": i, "gradient_norms": {"a": ratio, "b": 1.0}} for i, ratio in enumerate(ratios)]
    log.write_text("\n".join(map(json.dumps, lines)))
    assert [ratio for _, ratio in read_log(log, ["a", "b"]).ratios] == ratios


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
