"""Intervals against scipy, against hand examples, and their coverage over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from statecheck.statistics import LEVELS, Array, Estimate, Index, bca, exponentiated, extreme, holm, mean_t, theil_sen

DRAWS = 500
N = 16


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mean_of(x: Array) -> Estimate:
    return bca(lambda index: x[index].mean(axis=1), len(x), generator())


def _scipy_bca(x: Array, level: float, rng: np.random.Generator) -> tuple[float, float]:
    found = stats.bootstrap((x,), np.mean, n_resamples=4000, confidence_level=level, method="BCa", rng=rng)
    return found.confidence_interval.low, found.confidence_interval.high


class TestBca:
    @pytest.mark.parametrize("shape", ["normal", "exponential", "lognormal"])
    def test_equals_scipy_on_the_mean(self, shape: str) -> None:
        """Eight seeds each, other ones for scipy: the mean bounds agree within five of their standard errors."""
        x = getattr(generator(3), shape)(size=24)
        seeds = range(8)
        ours = [bca(lambda index: x[index].mean(axis=1), len(x), generator(seed)) for seed in seeds]
        for level in (0.95, 0.99):
            theirs = np.array([_scipy_bca(x, level, generator(100 + seed)) for seed in seeds])
            found = np.array([next((a, b) for at, a, b in e.intervals if at == level) for e in ours])
            error = np.sqrt(2 / len(seeds)) * theirs.std(axis=0, ddof=1)
            assert (np.abs(found.mean(axis=0) - theirs.mean(axis=0)) < 5 * error).all()

    def test_levels_are_nested(self) -> None:
        found = mean_of(generator(1).exponential(size=20))
        assert tuple(level for level, _, _ in found.intervals) == LEVELS
        lows, highs = [a for _, a, _ in found.intervals], [b for _, _, b in found.intervals]
        assert lows == sorted(lows, reverse=True)
        assert highs == sorted(highs)
        assert (found.low, found.high) == (lows[0], highs[0])

    def test_a_constant_has_no_spread(self) -> None:
        found = mean_of(np.full(16, 2.5))
        assert (found.value, found.low, found.high, found.method) == (2.5, 2.5, 2.5, "constant")

    def test_what_is_not_finite_has_no_interval(self) -> None:
        x = np.ones(16)
        x[3] = np.nan
        found = mean_of(x)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.intervals == ()

    def test_the_same_generator_gives_the_same_interval(self) -> None:
        x = generator(1).normal(size=16)
        assert mean_of(x) == mean_of(x)

    def test_coverage_of_a_mean(self) -> None:
        """500 draws of 16 normal values: the 95 % interval covers the mean in 0.932 of them (0.90 asked)."""
        covered = [e.low <= 0 <= e.high for e in (mean_of(generator(seed).normal(size=N)) for seed in range(DRAWS))]
        assert np.mean(covered) >= 0.90


class TestExtreme:
    @pytest.mark.parametrize("shape", ["normal", "exponential"])
    @pytest.mark.parametrize("largest", [True, False])
    def test_covers_the_true_maximum_of_equal_groups(self, shape: str, largest: bool) -> None:
        """200 draws of 20 equal groups of 16 documents, true maximum 0 (0.90 asked).

        Covered: normal 0.965 / 0.985 (largest / smallest), exponential 0.990 / 1.000. The plain maximum is 0.47 on
        average; the percentiles of the resampled maxima cover 0 in none of the normal draws.
        """
        covered, percentile = [], []
        for seed in range(200):
            x = getattr(generator(seed), shape)(size=(N, 20)) - (shape == "exponential")
            found = extreme(lambda index, x=x: x[index].mean(axis=1), N, generator(seed), largest=largest)  # type: ignore[misc]
            covered.append(found.low <= 0 <= found.high)
            draws = x[generator(seed).integers(0, N, (400, N))].mean(axis=1).max(axis=1)
            percentile.append(np.quantile(draws, 0.025) <= 0)
        assert np.mean(covered) >= 0.9
        assert np.mean(percentile) < 0.1

    @pytest.mark.parametrize("means", [[0.5] + 9 * [0.0], np.linspace(0, 1, 10).tolist(), [3.0, 3.0, 0.0]])
    def test_covers_where_groups_differ(self, means: list[float]) -> None:
        """200 draws; covered in 0.995, 0.990 and 0.985 of them."""
        covered = []
        for seed in range(200):
            x = generator(seed).normal(size=(N, len(means))) + means
            found = extreme(lambda index, x=x: x[index].mean(axis=1), N, generator(seed))  # type: ignore[misc]
            covered.append(found.low <= max(means) <= found.high)
        assert np.mean(covered) >= 0.9

    def test_a_clear_winner_has_the_interval_that_it_has_alone(self) -> None:
        x = generator(0).normal(size=(N, 8))
        x[:, 3] += 10
        found = extreme(lambda index: x[index].mean(axis=1), N, generator())
        alone = mean_of(x[:, 3])
        assert found.method == alone.method
        assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))

    def test_the_smallest_is_minus_the_largest_of_minus(self) -> None:
        x = generator(0).normal(size=(N, 5))
        low = extreme(lambda index: x[index].mean(axis=1), N, generator(), largest=False)
        high = extreme(lambda index: -x[index].mean(axis=1), N, generator())
        assert (low.value, low.low, low.high) == pytest.approx((-high.value, -high.high, -high.low))

    def test_levels_are_nested(self) -> None:
        x = generator(0).normal(size=(N, 5))
        found = extreme(lambda index: x[index].mean(axis=1), N, generator())
        assert found.method.endswith("simultaneous over groups")
        lows, highs = [a for _, a, _ in found.intervals], [b for _, _, b in found.intervals]
        assert lows == sorted(lows, reverse=True)
        assert highs == sorted(highs)

    def test_constant_groups_beside_a_noisy_one(self) -> None:
        x = np.stack([np.ones(N), np.zeros(N), generator(0).normal(size=N) / 100], axis=1)
        found = extreme(lambda index: x[index].mean(axis=1), N, generator())
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)

    def test_nan_in_any_group_is_told_and_minus_infinity_is_left_out(self) -> None:
        x = generator(0).normal(size=(N, 3))
        assert math.isnan(extreme(lambda i: x[i].mean(axis=1) * [1, np.nan, 1], N, generator()).low)

        def without(index: Index) -> Array:
            return np.where([True, False, True], x[index].mean(axis=1), -np.inf)

        assert extreme(without, N, generator()) == extreme(lambda i: x[i].mean(axis=1)[:, [0, 2]], N, generator())


class TestMeanT:
    def test_is_the_students_interval_for_normal_values(self) -> None:
        """The studentised bootstrap of normal values comes close to Student's t: within a quarter of its half width."""
        x = generator(5).normal(size=40)
        found = mean_t(x, generator())
        half = float(stats.t.ppf(0.975, 39)) * x.std(ddof=1) / math.sqrt(40)
        assert found.low == pytest.approx(x.mean() - half, abs=half / 4)
        assert found.high == pytest.approx(x.mean() + half, abs=half / 4)

    def test_coverage(self) -> None:
        """500 draws of 16 normal values: the 95 % interval covers the mean in 0.954 of them (0.90 asked)."""
        found = [mean_t(generator(seed).normal(size=N), generator(seed)) for seed in range(DRAWS)]
        assert np.mean([e.low <= 0 <= e.high for e in found]) >= 0.90

    def test_shifts_and_scales_with_the_values(self) -> None:
        x = generator(2).exponential(size=20)
        plain, moved = mean_t(x, generator()), mean_t(3 * x + 1, generator())
        assert moved.low == pytest.approx(3 * plain.low + 1)
        assert moved.high == pytest.approx(3 * plain.high + 1)

    @pytest.mark.parametrize("x", [[1.0], [2.0, 2.0, 2.0]])
    def test_no_spread(self, x: list[float]) -> None:
        found = mean_t(x, generator())
        assert found.low == found.high == found.value

    def test_not_finite(self) -> None:
        assert math.isnan(mean_t([1.0, math.inf, 2.0], generator()).low)


def test_exponentiated_turns_every_bound_into_a_ratio() -> None:
    logs = mean_of(np.log(np.arange(1.0, 21.0)))
    ratio = exponentiated(logs)
    assert ratio.value == pytest.approx(math.exp(logs.value))
    assert ratio.intervals[2][1:] == pytest.approx([math.exp(x) for x in logs.intervals[2][1:]])
    assert exponentiated(mean_of(np.full(16, 5000.0))).value == math.inf


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # Holm 1979: the smallest times m, the next times m - 1, ..., never falling, never above 1.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_theil_sen_by_hand_ignores_an_outlier() -> None:
    slope, low, high = theil_sen([0, 1, 2, 3, 4], [0, 1, 2, 3, 100])
    assert slope == 1.0
    assert low <= 1.0 <= high


def test_theil_sen_of_noise_does_not_claim_a_slope() -> None:
    x = np.arange(40.0)
    slope, low, high = theil_sen(x.tolist(), generator(1).normal(size=40).tolist())
    assert low < 0 < high
    assert low <= slope <= high
