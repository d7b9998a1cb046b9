"""Intervals and tests. The unit of replication is the document: tokens of one document are not independent.

Statistics are functions of rows of document indices, (resamples, n) -> (resamples,) or (resamples, groups). The worst
of many noisy groups is biased, and its interval must know that (:func:`extreme`).

Sources: Efron & Tibshirani 1993, chapters 12 (percentile-t) and 14 (BCa); Holm 1979; Theil 1950, Sen 1968.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Confidence levels that are kept, so that Holm's correction can be read from a stored interval.
LEVELS = (0.95, 0.975, 0.99, 0.995, 0.998, 0.999, 0.9995)
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, the intervals at :data:`LEVELS`, and how they were made."""

    value: float
    low: float
    high: float
    intervals: tuple[tuple[float, float, float], ...]
    method: str
    n: int


def bca(statistic: Callable[[Index], Array], n: int, generator: np.random.Generator) -> Estimate:
    """Bias-corrected and accelerated bootstrap over n documents, of (resamples, n) -> (resamples,).

    Coverage over draws of 16 normal means: see `tests/test_statistics.py`.

    >>> x = np.arange(20.0)
    >>> e = bca(lambda index: x[index].mean(axis=1), 20, np.random.default_rng(0))
    >>> e.value, 6.5 < e.low < 7.5, 11.5 < e.high < 12.5
    (9.5, True, True)
    """
    return extreme(lambda index: statistic(index)[:, None], n, generator)


def extreme(
    table: Callable[[Index], Array], n: int, generator: np.random.Generator, *, largest: bool = True
) -> Estimate:
    """The largest (or smallest) of several groups, (resamples, n) -> (resamples, groups), with its interval.

    The worst of many noisy scores is biased, so its inner bound is simultaneous: the largest m_g of the groups is above
    the largest true value by no more than max over g of (m_g* - m_g), the maximum taken again in each resample, over
    the groups whose simultaneous intervals reach the leading one's. The outer bound is the furthest bound of any of
    those groups alone. One group in the lead, or only one group: BCa of that group.

    Source: the idea of moment selection, Andrews & Soares 2010; Efron & Tibshirani 1993, chapter 14.

    >>> x = np.stack([np.arange(20.0), np.arange(20.0) - 100])
    >>> extreme(lambda i: x[:, i].mean(2).T, 20, np.random.default_rng(0)).method
    'BCa bootstrap over documents'
    """
    sign = 1.0 if largest else -1.0
    everyone = np.arange(n)
    values = sign * table(everyone[None, :])[0]
    index = generator.integers(0, n, size=(RESAMPLES, n))
    draws = sign * _batched(table, index)
    possible = ~np.isneginf(values)  # a group without a value can't be the largest
    values, draws = values[possible], draws[:, possible]
    value = float(sign * values.max(initial=-np.inf))
    if not np.isfinite(draws).all() or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, (), "non-finite", n)
    near = _in_the_lead(values, draws)
    if np.count_nonzero(near) > 1:
        return _simultaneous(sign, values[near], draws[:, near], n)
    leader = int(values.argmax())
    column = np.flatnonzero(possible)[leader]
    jackknife = table(np.stack([np.delete(everyone, i) for i in range(n)]))[:, column]
    return _corrected(value, np.sort(sign * draws[:, leader]), jackknife, n)


def _in_the_lead(values: Array, draws: Array) -> NDArray[np.bool_]:
    """Groups whose simultaneous 95 % intervals reach that of the leading group."""
    spread = draws.std(axis=0)
    safe = np.where(spread > 0, spread, 1.0)
    width = float(np.quantile((np.abs(draws - values) / safe).max(axis=1), 0.95)) * spread
    return values + width >= (values - width).max()


def _simultaneous(sign: float, values: Array, draws: Array, n: int) -> Estimate:
    most = float(values.max())
    moved = draws - values
    together = moved.max(axis=1)
    intervals = []
    for level in LEVELS:
        inner = most - float(np.quantile(together, (1 + level) / 2))
        outer = float((values - np.quantile(moved, (1 - level) / 2, axis=0)).max())
        low, high = sorted((sign * inner, sign * outer))
        intervals.append((level, low, high))
    method = "bootstrap over documents, simultaneous over groups"
    return Estimate(sign * most, intervals[0][1], intervals[0][2], tuple(intervals), method, n)


def _corrected(value: float, draws: Array, jackknife: Array, n: int) -> Estimate:
    """BCa from sorted draws; where they are too far to one side for it, percentiles shifted by their bias."""
    if draws[0] == draws[-1]:
        exact = float(draws[0])
        return Estimate(value, exact, exact, tuple((level, exact, exact) for level in LEVELS), "constant", n)
    share = (np.count_nonzero(draws < value) + 0.5 * np.count_nonzero(draws == value)) / RESAMPLES
    acceleration = _acceleration(jackknife)
    if not 0.16 < share < 0.84 or not math.isfinite(acceleration):
        shifted = draws - (float(np.median(draws)) - value)
        return _estimate(value, shifted, 0.0, 0.0, "percentile bootstrap over documents, shifted by its bias", n)
    return _estimate(value, draws, float(stats.norm.ppf(share)), acceleration, "BCa bootstrap over documents", n)


def _batched(statistic: Callable[[Index], Array], index: Index, rows: int = 250) -> Array:
    """The statistic of many resamples, some at a time, so that memory stays small."""
    return np.concatenate([statistic(index[i : i + rows]) for i in range(0, len(index), rows)])


def _acceleration(jackknife: Array) -> float:
    centred = jackknife.mean() - jackknife
    scale = float((centred**2).sum())
    return float((centred**3).sum()) / (6 * scale**1.5) if scale > 0 else 0.0


def _estimate(value: float, draws: Array, bias: float, acceleration: float, method: str, n: int) -> Estimate:
    intervals = []
    for level in LEVELS:
        z = stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
        adjusted = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        low, high = np.quantile(draws, adjusted)
        intervals.append((level, float(low), float(high)))
    return Estimate(value, intervals[0][1], intervals[0][2], tuple(intervals), method, n)


def mean_t(values: Sequence[float] | Array, generator: np.random.Generator) -> Estimate:
    """Percentile-t bootstrap of the mean over documents: the studentised mean is resampled, not the mean.

    >>> e = mean_t(np.arange(20.0), np.random.default_rng(0))
    >>> e.value, round(e.low, 1) < 7.5, round(e.high, 1) > 11.5
    (9.5, True, True)
    """
    x = np.asarray(values, dtype=float)
    n, value = len(x), float(np.mean(x))
    if not np.isfinite(x).all():
        return Estimate(value, math.nan, math.nan, (), "non-finite", n)
    if n < 2 or np.ptp(x) == 0:
        return Estimate(value, value, value, tuple((level, value, value) for level in LEVELS), "constant", n)
    resampled = x[generator.integers(0, n, size=(RESAMPLES, n))]
    spread = resampled.std(axis=1, ddof=1)
    keep = spread > 0
    t = (resampled.mean(axis=1)[keep] - value) / (spread[keep] / math.sqrt(n))
    error = float(x.std(ddof=1)) / math.sqrt(n)
    tails = [np.quantile(t, [(1 - level) / 2, (1 + level) / 2]) for level in LEVELS]
    intervals = tuple(
        (lv, value - float(hi) * error, value - float(lo) * error) for lv, (lo, hi) in zip(LEVELS, tails, strict=True)
    )
    return Estimate(value, intervals[0][1], intervals[0][2], intervals, "percentile-t bootstrap over documents", n)


def exponentiated(estimate: Estimate) -> Estimate:
    """An estimate made of logarithms, as the ratio that it stands for; inf where that is beyond a float."""

    def exp(x: float) -> float:
        return math.inf if x > 709 else math.exp(x)

    intervals = tuple((level, exp(low), exp(high)) for level, low, high in estimate.intervals)
    value, low, high = (exp(x) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, intervals, estimate.method, estimate.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Median slope of all pairs and its interval (Sen 1968): (slope, low, high).

    >>> theil_sen([0, 1, 2, 3], [0, 2, 4, 6])
    (2.0, 2.0, 2.0)
    """
    slope, _, low, high = stats.theilslopes(y, x, confidence)
    return float(slope), float(low), float(high)
