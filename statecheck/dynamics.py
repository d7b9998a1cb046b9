"""Numerics of recurrences, on plain arrays: growth, pinned units, dependence on the input, retention.

n is the number of documents, D of channels, B of bootstrap resamples. `weights` (B, n) say how often a resample drew
each document; the documents themselves are weights of ones. Definitions: `docs/items/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def weights_of(index: NDArray[np.int64], n: int) -> Array:
    """How often each row of `index` (B, n) drew each of n documents.

    >>> weights_of(np.array([[0, 0, 2]]), 3)
    array([[2., 0., 1.]])
    """
    return np.stack([np.bincount(row, minlength=n) for row in index]).astype(float)


def growth(baseline_square: Array, final_square: Array, spans: Sequence[tuple[int, int]]) -> Array:
    """RMS in the final window over RMS in the baseline window, (n, spans); inf or NaN over a zero baseline.

    Inputs are mean squares a channel (n, D); a span is a range of channels.

    >>> growth(np.array([[1.0, 4.0]]), np.array([[4.0, 16.0]]), [(0, 2), (1, 2)])
    array([[2., 2.]])
    """
    sums = [(final_square[:, a:b].sum(1), baseline_square[:, a:b].sum(1)) for a, b in spans]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.stack([last / first for last, first in sums], axis=1))


def near_largest(samples: Sequence[NDArray[np.float32]], *, within: float = 0.01) -> tuple[Array, NDArray[np.bool_]]:
    """How many samples of each unit lie within 1 % of its own largest magnitude, (n, D); and which units are not zero.

    >>> near, alive = near_largest([np.array([[1.0, 0.0]]), np.array([[-0.995, 0.0]]), np.array([[0.5, 0.0]])])
    >>> near.tolist(), alive.tolist()
    ([[2.0, 3.0]], [True, False])
    """
    stack = np.abs(np.stack(samples))  # (P, n, D)
    largest = stack.max(axis=(0, 1))
    return (stack >= (1 - within) * largest).sum(axis=0).astype(float), largest > 0


def pinned_share(weights: Array, near: Array, alive: NDArray[np.bool_], positions: int) -> Array:
    """Share of units with at least half of their values at their largest magnitude, (B,). Zero units don't count.

    Reference values: Gaussian .0004 of values, tanh(3x) .38, tanh(10x) .79, constant 1.
    """
    counts = weights @ near  # (B, D)
    total = weights.sum(axis=1, keepdims=True) * positions
    return ((counts >= 0.5 * total) & alive).mean(axis=1)


def dependence(weights: Array, grams: Sequence[Array]) -> Array:
    """I = sum_i Var_docs(h_i) / E||h||^2, (B,), the mean over positions; `grams` hold h h^T (n, n). 0 for zero states.

    The variance is unbiased for documents drawn once each.

    >>> h = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> dependence(np.ones((1, 2)), [h @ h.T])
    array([1.])
    """
    n = weights.sum(axis=1)
    shares = []
    for gram in grams:
        energy = weights @ np.diag(gram) / n
        mean_square = np.einsum("bi,ij,bj->b", weights, gram, weights) / n**2
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (energy - mean_square) * n / (n - 1) / energy
        shares.append(np.where(energy > 0, share, 0.0))
    return np.mean(shares, axis=0)


def retention(own: Array, foreign: Array, own_next: Array, foreign_next: Array, *, near: float = 1e-3) -> Array:
    """One-step retention of each unit of a diagonal recurrence, (rows, D): a = (h' - k') / (h - k).

    `own` and `foreign` are states h and k of which one step with the same input made h' and k'. NaN where
    |h - k| <= `near` times the RMS of the unit's h - k. Exact for diagonal recurrences.

    >>> retention(np.array([[2.0]]), np.array([[1.0]]), np.array([[1.8]]), np.array([[0.9]]))
    array([[0.9]])
    """
    before, after = own - foreign, own_next - foreign_next
    scale = np.sqrt(np.mean(np.abs(before) ** 2, axis=0, keepdims=True))
    usable = np.abs(before) > near * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(usable & (scale > 0), after / before, np.nan)


def dense_retention(own: Array, foreign: Array, own_next: Array, foreign_next: Array) -> Array:
    """||h' - k'|| / ||h - k|| of each row, (rows, 1): what remains of a difference where units mix."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.linalg.norm(own_next - foreign_next, axis=1) / np.linalg.norm(own - foreign, axis=1)
    return np.where(np.isfinite(ratio), ratio, np.nan)[:, None]


def half_life(kept: Array) -> Array:
    """Tokens until half is left, ln 2 / -median(log |a|), (D,): inf for a >= 1, 0 for a = 0, NaN where unknown.

    >>> half_life(np.array([[0.5, 1.0, 0.0]]))
    array([ 1., inf,  0.])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = _median(np.log(np.abs(kept)))
        return np.where(logs < 0, np.log(2) / -logs, np.where(np.isnan(logs), np.nan, np.inf))


def selection_spread(kept: Array) -> Array:
    """Spread over rows of log(-log |a|), (D,): how much the decay rate of a unit depends on what is read.

    The width of the middle 90 % over 3.29 (the standard deviation of a normal), over rows with 0 < |a| < 1; 0 for a
    unit that never decays or always loses everything. NaN where unknown.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = -np.log(np.abs(kept))
        logs = np.where((rates > 0) & np.isfinite(rates), np.log(rates), np.nan)
    known = ~np.isnan(logs).all(axis=0)
    spread = np.where(np.isnan(kept).all(axis=0), np.nan, 0.0)
    if known.any():
        low, high = np.nanquantile(logs[:, known], [0.05, 0.95], axis=0)
        spread[known] = (high - low) / 3.29
    return spread


def _median(table: Array) -> Array:
    """Median of each column over its known values; NaN for a column without any."""
    known = ~np.isnan(table)
    result = np.full(table.shape[1], np.nan)
    some = known.any(axis=0)
    result[some] = np.nanmedian(table[:, some], axis=0)
    return result
