"""Intervals and tests. The unit of replication is the document: tokens of one document are not independent.

Statistics are functions of rows of document indices, (resamples, n) -> (resamples,), so that a maximum over groups is
taken again inside each resample: the worst of many noisy scores is biased, and its interval must know.

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
    """Bias-corrected and accelerated bootstrap over n documents.

    A maximum over many groups is biased by more than one standard deviation of its draws; BCa then reads quantiles
    that the draws do not have, so the percentile interval is shifted by the bias instead (the method says so).

    Coverage over 2,000 draws of 16 normal means: see `tests/test_statistics.py`.

    >>> x = np.arange(20.0)
    >>> e = bca(lambda index: x[index].mean(axis=1), 20, np.random.default_rng(0))
    >>> e.value, 6.5 < e.low < 7.5, 11.5 < e.high < 12.5
    (9.5, True, True)
    """
    everyone = np.arange(n)
    value = float(statistic(everyone[None, :])[0])
    draws = np.sort(_batched(statistic, generator.integers(0, n, size=(RESAMPLES, n))))
    if not np.isfinite(draws).all() or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, (), "non-finite", n)
    if draws[0] == draws[-1]:
        exact = float(draws[0])
        return Estimate(value, exact, exact, tuple((level, exact, exact) for level in LEVELS), "constant", n)
    share = (np.count_nonzero(draws < value) + 0.5 * np.count_nonzero(draws == value)) / RESAMPLES
    jackknife = statistic(np.stack([np.delete(everyone, i) for i in range(n)]))
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
