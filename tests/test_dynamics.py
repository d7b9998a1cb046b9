"""The numerics of recurrences against closed forms and hand examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from statecheck import dynamics
from statecheck.dynamics import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def test_weights_count_the_draws() -> None:
    index = np.array([[0, 1, 2], [2, 2, 2]])
    assert dynamics.weights_of(index, 4).tolist() == [[1, 1, 1, 0], [0, 0, 3, 0]]


class TestGrowth:
    def test_is_the_ratio_of_rms_of_each_span(self) -> None:
        before, after = np.array([[1.0, 1.0, 4.0]]), np.array([[4.0, 4.0, 4.0]])
        assert dynamics.growth(before, after, [(0, 2), (2, 3), (0, 3)]).tolist() == [[2.0, 1.0, 2**0.5]]

    def test_a_zero_baseline_is_never_a_number(self) -> None:
        ratios = dynamics.growth(np.zeros((1, 2)), np.array([[1.0, 0.0]]), [(0, 1), (1, 2)])[0]
        assert ratios[0] == np.inf
        assert np.isnan(ratios[1])


def share_of_values(samples: Array) -> float:
    """Share of values within 1 % of the largest magnitude of their unit; samples (P, n, D)."""
    near, _ = dynamics.near_largest(list(samples.astype(np.float32)))
    return float(near.sum() / samples.size)


class TestPinned:
    """phase 3.9: of values, Gaussian .0004, tanh(3x) .38, tanh(10x) .79, constant 1."""

    x = normal(400, 50, 16)

    def test_gaussian(self) -> None:
        """20,000 values a unit: the share within 1 % of the largest, by simulation .0001 to .0004."""
        assert share_of_values(self.x) < 5e-4

    @pytest.mark.parametrize(("gain", "expected"), [(3, 0.38), (10, 0.79)])
    def test_tanh(self, gain: float, expected: float) -> None:
        """|tanh(g x)| >= .99 (the largest is 1): 2 (1 - Phi(artanh(.99) / g)), .378 and .791."""
        exact = 2 * (1 - norm.cdf(np.arctanh(0.99) / gain))
        found = share_of_values(np.tanh(gain * self.x))
        assert found == pytest.approx(exact, abs=0.003)
        assert found == pytest.approx(expected, abs=0.006)

    def test_constant(self) -> None:
        assert share_of_values(np.full((4, 3, 2), -0.7)) == 1.0

    def test_a_unit_is_pinned_from_half_of_its_values_on(self) -> None:
        unit = np.array([1, 1, 0, 0.5])[:, None, None]  # two of four
        for samples, expected in ((unit, 1.0), (unit[:3], 1.0), (unit[1:], 0.0)):
            table = dynamics.near_largest(list(samples.astype(np.float32)))
            assert dynamics.pinned_share(np.ones((1, 1)), *table, len(samples)).tolist() == [expected]

    def test_zero_units_are_dead_not_pinned(self) -> None:
        near, alive = dynamics.near_largest([np.zeros((2, 3), np.float32)])
        assert not alive.any()
        assert dynamics.pinned_share(np.ones((1, 2)), near, alive, 1).tolist() == [0.0]

    def test_weights_choose_the_documents(self) -> None:
        samples = [np.array([[1.0], [0.1]], np.float32)] * 4  # pinned in the first document alone
        table = dynamics.near_largest(samples)
        weights = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        assert dynamics.pinned_share(weights, *table, 4).tolist() == [1.0, 0.0, 1.0]


class TestDependence:
    def test_is_variance_over_energy(self) -> None:
        h = 3 + normal(40, 200)
        expected = h.var(axis=0, ddof=1).sum() / (h**2).mean(axis=0).sum()
        assert dynamics.dependence(np.ones((1, 40)), [h @ h.T])[0] == pytest.approx(expected, rel=1e-12)

    def test_of_equal_documents_is_zero_and_of_zero_states_too(self) -> None:
        same = np.ones((3, 3))
        assert dynamics.dependence(np.ones((1, 3)), [same])[0] == pytest.approx(0, abs=1e-15)
        assert dynamics.dependence(np.ones((1, 3)), [np.zeros((3, 3))])[0] == 0

    def test_resampled_documents_are_the_documents_drawn(self) -> None:
        h, index = normal(5, 7), np.array([0, 0, 3, 4, 4])
        drawn = h[index]
        expected = drawn.var(axis=0, ddof=1).sum() / (drawn**2).mean(axis=0).sum()
        weights = dynamics.weights_of(index[None], 5)
        assert dynamics.dependence(weights, [h @ h.T])[0] == pytest.approx(expected, rel=1e-12)


class TestRetention:
    def test_of_a_diagonal_recurrence_is_exact(self) -> None:
        kept = np.random.default_rng(1).uniform(0.5, 1.0, (64, 8))
        own, foreign, written = normal(64, 8, seed=2), normal(64, 8, seed=3), normal(64, 8, seed=4)
        found = dynamics.retention(own, foreign, kept * own + written, kept * foreign + written)
        known = ~np.isnan(found)
        assert known.mean() > 0.98
        np.testing.assert_allclose(found[known], kept[known], atol=1e-11)

    def test_of_complex_units(self) -> None:
        a = 0.9 * np.exp(0.5j)
        own, foreign = normal(16, 3) + 1j * normal(16, 3, seed=1), normal(16, 3, seed=2) + 0j
        found = dynamics.retention(own, foreign, a * own, a * foreign)
        np.testing.assert_allclose(found, a, rtol=1e-12)
        np.testing.assert_allclose(dynamics.half_life(found), np.log(2) / -np.log(0.9), rtol=1e-12)

    def test_is_unknown_where_the_two_states_agree(self) -> None:
        own, foreign = np.array([[1.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])
        found = dynamics.retention(own, foreign, own, foreign)
        assert np.isnan(found[:, 1]).all()
        assert found[1, 0] == 1.0
        assert np.isnan(found[0, 0])

    def test_of_mixing_units_is_that_of_the_norm(self) -> None:
        turn = np.linalg.qr(normal(6, 6))[0]
        own, foreign = normal(5, 6), normal(5, 6, seed=1)
        found = dynamics.dense_retention(own, foreign, 0.8 * own @ turn, 0.8 * foreign @ turn)
        np.testing.assert_allclose(found, 0.8, rtol=1e-12)
        assert np.isnan(dynamics.dense_retention(own, own, own, own)).all()


def test_half_life_by_hand() -> None:
    kept = np.array([[0.5, 0.25, 1.0, 1.1, 0.0, np.nan, -0.5]] * 3)
    assert dynamics.half_life(kept).tolist()[:5] == [1.0, 0.5, np.inf, np.inf, 0.0]
    assert np.isnan(dynamics.half_life(kept)[5])
    assert dynamics.half_life(kept)[6] == 1.0


class TestSelectionSpread:
    def test_of_a_lognormal_rate_is_its_standard_deviation(self) -> None:
        rates = np.exp(0.5 * normal(20_000, 2))
        spread = dynamics.selection_spread(0.9**rates)
        np.testing.assert_allclose(spread, 0.5, atol=0.01)

    @pytest.mark.parametrize("half_life", [1, 30, 760, 5000])
    def test_does_not_depend_on_the_half_life(self, half_life: float) -> None:
        rates = np.exp(0.5 * normal(500, 1))
        near = dynamics.selection_spread(0.5 ** (rates / half_life))
        np.testing.assert_allclose(near, dynamics.selection_spread(0.5**rates), rtol=1e-6)

    def test_a_fixed_decay_has_none_and_one_that_never_decays_neither(self) -> None:
        kept = np.stack([np.full(50, 0.9), np.ones(50), np.zeros(50), np.full(50, np.nan)], axis=1)
        spread = dynamics.selection_spread(kept)
        assert spread[:3].tolist() == [0.0, 0.0, 0.0]
        assert np.isnan(spread[3])
