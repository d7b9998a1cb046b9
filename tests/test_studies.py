"""The studies of the reference family: their intervals, the reading of logs, and tables of cases known by hand."""

from __future__ import annotations

import doctest
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documentation import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "scripts"))
from studies import baseline, founding_tables, intervals, matrix, runs


@pytest.mark.parametrize("module", [baseline, intervals, founding_tables, runs])
def test_the_examples_of_the_studies_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_intervals_over_three_seeds_hold_what_they_say() -> None:
    """95 % of t-intervals of three normal values cover the mean; a bootstrap of three would cover far less."""
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    found = [intervals.mean(draw.tolist()) for draw in draws]
    covered = sum(one.low <= 0 <= one.high for one in found)
    assert stats.binomtest(covered, len(found), 0.95).pvalue > 1e-3


def test_an_interval_across_an_edge_is_unclear() -> None:
    assert intervals.Interval(0.1, 0.05, 0.3).inside(0.2, 0.46) == "unclear"
    assert intervals.Interval(0.1, 0.05, 0.15).inside(0.2, 0.46) == "out"
    assert intervals.Interval(0.3, 0.21, 0.45).inside(0.2, 0.46) == "in"


def test_a_study_names_each_run_once_and_every_seed_reads_the_same_options() -> None:
    for study in runs.STUDIES.values():
        planned = list(study())
        assert len({run.name for run in planned}) == len(planned)
    by_name = {run.name: run for run in runs.founding()}
    assert set(by_name) == {f"finding-{units}-{seed}" for units in runs.UNITS for seed in (0, 1, 2)}
    words = runs.command(by_name["finding-characters-1"], Path("texts"), Path("work"))
    assert words[words.index("--units") + 1] == "characters"
    assert words[words.index("--seed") + 1] == "1"
    assert words[-len(by_name["finding-characters-1"].options) - 1] == "1"  # one thread


def one_run(ratio: float, growth: float, steps: int = 1000) -> dict[str, Any]:
    """A run whose gradient ratio is constant, and whose RWKV state grows by a factor a layer."""
    at = list(range(10, steps + 1, 10))
    variance = {"rwkv": [growth**n for n in range(5)], "mamba": [1.0] * 5}
    return {
        "step": at,
        "train_loss": [5.0] * len(at),
        "gradient_ratio": [ratio] * len(at),
        "gradient_norm": {"rwkv": [ratio] * len(at), "mamba": [1.0] * len(at)},
        "relative_update": {"rwkv": [2.0 * ratio] * len(at), "mamba": [1.0] * len(at)},
        "validation": [],
        "variance": {str(step): variance for step in founding_tables.AT},
        "controls": {
            "growth": growth,
            "growth in other coordinates": 4 * growth,
            "ratio": ratio,
            "ratio in other coordinates": 1.25 * ratio,
            "ratio with a tenth of RWKV's gradient": 0.1 * ratio,
        },
    }


def founding_case() -> dict[str, Any]:
    return {
        "bytes_per_token": {"characters": 1.0, "byte-pairs": 4.0},
        "tokens_per_step": 2048,
        "runs": {
            "characters": [one_run(ratio, 1.27) for ratio in (0.09, 0.1, 0.095)],
            "byte-pairs": [one_run(ratio, 1.27) for ratio in (0.3, 0.31, 0.32)],
        },
    }


def test_the_founding_observation_would_be_confirmed_if_it_were_there() -> None:
    """Positive control of the tables: curves as they were observed once lie in their bands."""
    lines = list(founding_tables.tables(founding_case()))
    row = next(line for line in lines if line.startswith("| step 1000") and "(in)" in line)
    assert row.count("(in)") == 2
    quotient = 0.31 / math.exp(np.mean(np.log([0.09, 0.1, 0.095])))
    assert f" {quotient:.3g} [" in row.split("|")[4]
    bytes_row = next(line for line in lines if "step 1000 of characters" in line)
    assert "250 of byte pairs" in bytes_row
    for title in ("by the slope", "from the first layer to the last"):
        growths = lines[next(n for n, line in enumerate(lines) if f"times a layer, {title}" in line) + 2]
        assert growths.count("1.27 [1.27, 1.27]") == growths.count("1 [1, 1]") == 2
    norms = lines[next(n for n, line in enumerate(lines) if "gradient norm, before" in line) + 2]
    assert "| 0.0949 [0.0833, 0.108] |" in norms
    assert norms.endswith("| 1 [1, 1] | 1 [1, 1] |")
    assert any("4 [4, 4]" in line for line in lines)


def test_a_ratio_is_read_over_the_last_hundred_steps_alone() -> None:
    run = one_run(1.0, 1.0)
    run["gradient_ratio"] = [100.0 if step <= 900 else 0.25 for step in run["step"]]
    assert founding_tables.around(run, run["gradient_ratio"], 1000) == pytest.approx(0.25)
    assert founding_tables.around(run, run["gradient_ratio"], 900) == pytest.approx(100.0)


def matrix_case() -> dict[str, Any]:
    """Two presets that differ by 0.1 nats on each passage, whatever the passage's own level."""
    level = np.linspace(4, 6, 16)

    def run(shift: float) -> dict[str, Any]:
        return {
            "parameters": 1_000_000,
            "validation": [[100, 7.0], [400, 5.0]],
            "passages": (level + shift).tolist(),
            "train_loss": 5.0,
            "gradient_ratio": 0.5,
            "update_ratio": 1.0,
            "gate": [0.4, 0.6],
            "tokens_per_second": 1.0,
        }

    alike = [run(shift) for shift in (0.03, -0.01, 0.0)]
    better = [run(shift) for shift in (-0.1, -0.08, -0.11)]
    return {"baseline": [run(0.0), run(0.02), run(0.01)], "better": better, "alike": alike}


def test_a_difference_between_presets_is_taken_passage_by_passage() -> None:
    """The levels of the passages, which differ by 2 nats, don't reach the interval of a difference of 0.1."""
    found = matrix.difference(matrix_case(), "better")
    assert found.by_seed == (pytest.approx(-0.1), pytest.approx(-0.1), pytest.approx(-0.12))
    assert found.over_passages.value == pytest.approx(-0.32 / 3)
    assert found.over_passages.high - found.over_passages.low < 1e-9
    # By hand: less the means of presets and seeds, baseline's residuals are (-.04, .02, .02) / 3, better's (-.02, .04,
    # -.02) / 3 and alike's (.06, -.06, 0) / 3: squares of .012 / 9 in all, 4 degrees of freedom; t(4) at 98.75 %, for
    # two comparisons, is 3.495.
    half = 3.495 * math.sqrt(0.012 / 9 / 4 * 2 / 3)
    assert found.over_seeds.value == pytest.approx(-0.32 / 3)
    assert found.over_seeds.high - found.over_seeds.value == pytest.approx(half, rel=1e-3)
    lines = list(matrix.tables(matrix_case()))
    assert "**-0.107 [-0.107, -0.107]**" in lines[3]
    assert "after 100 steps less after 400: 1.990" in lines[-1]


def test_a_difference_is_clear_if_seeds_and_passages_both_say_so() -> None:
    """Seeds at +0.03, -0.03 and -0.01 on the same passages: certain of this text, and of no other training."""
    found = matrix.difference(matrix_case(), "alike")
    assert found.by_seed == (pytest.approx(0.03), pytest.approx(-0.03), pytest.approx(-0.01))
    assert found.over_passages.low * found.over_passages.high > 0
    assert not found.clear
    assert matrix.difference(matrix_case(), "better").clear


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    founding_tables.picture(founding_case(), tmp_path / "a.png")
    matrix.picture(matrix_case(), tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_a_baseline_has_the_spread_of_its_seeds_about_its_own_value() -> None:
    """Seeds at 1/2, 1 and 2: a standard deviation of log 2, so the ends are 4 * 2^(+-6.085)."""
    own = {"name": "D3.ratio", "asked": ["< 2.5"], "status": "PASS", "value": 4.0, "low": 3.0, "high": 5.0, "unit": "x"}
    seeds = {f"seed-{n}": [{**own, "value": value}] for n, value in enumerate((0.5, 1.0, 2.0))}
    low, high = baseline.around(4.0, [0.5, 1.0, 2.0])
    assert (low, high) == (pytest.approx(4 * 2**-6.085, rel=1e-3), pytest.approx(4 * 2**6.085, rel=1e-3))
    line = list(baseline.table([own, {"name": "S0", "asked": [], "status": "PASS"}], seeds))[2:]
    assert line == [f"| D3.ratio | < 2.5 | {low:.3g} | 4 [3, 5] PASS | {high:.3g} | 0.5, 1, 2 |"]
    without = {**seeds, "seed-3": []}
    assert "| - | 4 [3, 5] PASS | - |" in list(baseline.table([own], without))[2]


def test_a_range_ends_where_its_number_does_and_knows_two_components_apart() -> None:
    own = {"name": "S4.contribution", "asked": [], "status": "PASS", "value": 0.5, "low": 0.4, "high": 0.6}
    rwkv, mamba = {**own, "unit": "of all", "where": "rwkv"}, {**own, "unit": "nats", "where": "mamba"}
    seeds = {f"seed-{n}": [{**rwkv, "value": value}, {**mamba, "value": 0.1}] for n, value in enumerate((0.5, 0.01))}
    first, second = list(baseline.table([rwkv, mamba], seeds))[2:]
    assert first.startswith("| S4.contribution, rwkv |")
    assert first.endswith("| 0.5 [0.4, 0.6] PASS | 1 | 0.5, 0.01 |")
    assert second == "| S4.contribution, mamba |  | 0.5 | 0.5 [0.4, 0.6] PASS | 0.5 | 0.1, 0.1 |"
