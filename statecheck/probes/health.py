"""State health: one score for each (component, layer), from the rows that were measured already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statecheck import dynamics
from statecheck.dynamics import Array
from statecheck.errors import UsageError
from statecheck.probes.contract import Evidence
from statecheck.recording import GroupRecord, Record
from statecheck.statistics import extreme
from statecheck.verdict import Measurement, Outcome

SCORES = (1.0, 0.7, 0.5, 0.0)  # what the four anchors of a sub-score are worth
SUBSCORES = ("bounded", "moving", "responsive", "unpinned", "finite")


def healthy(evidence: Evidence, *, anchors: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """health: the smallest of five anchored scores, 0..1, for each (component, layer); the worst counts.

    `bounded` from D1's R, `moving` from 1 - cosine of G3.5, `responsive` from I of D2, `unpinned` from the pinned share
    of G3.5, `finite`. Each is piecewise linear between its `anchors` (values worth 1, 0.7, 0.5, 0; in the logarithm
    where `log` is set) and clamped. The score folds those rows into one number and adds no evidence beyond them. The
    reason names the limiting sub-score.

    Bootstrap over documents, simultaneous over sub-scores and layers. Source: phase 3.9.
    """
    for name in SUBSCORES[:-1]:
        if name not in anchors:
            raise UsageError(f"health: no anchors for {name!r}; expected {', '.join(SUBSCORES[:-1])}")
    trace = evidence.standard_record()
    missing = evidence.unfit(["health.score"], trace, trace.schedule.baseline)
    if missing and trace.nonfinite is None:
        return Outcome(absences=missing)
    if trace.nonfinite is not None:
        note = f"limited by finite: not finite after token {trace.nonfinite[0]}"
        return Outcome((Measurement.exact("health.score", 0.0, n=trace.n, note=note),))
    tables = [_Scores(item, trace, anchors) for item in trace.groups]
    everyone = np.stack([t.all(np.ones((1, trace.n)))[:, 0] for t in tables])  # (groups, sub-scores)
    worst, limiting = np.unravel_index(int(everyone.argmin()), everyone.shape)
    estimate = extreme(
        lambda i: np.concatenate([t.all(dynamics.weights_of(i, trace.n)) for t in tables]).T,
        trace.n,
        evidence.generator("health"),
        largest=False,
    )
    note = f"limited by {SUBSCORES[limiting]}"
    judged = evidence.measure("health.score", estimate, trace.groups[worst].group.where, note=note)
    shown = tuple(
        Measurement.exact(name, float(everyone[g, k]), where=item.group.where, n=trace.n)
        for g, item in enumerate(trace.groups)
        for k, name in enumerate(SUBSCORES)
    )
    return Outcome((judged,), shown=shown)


class _Scores:
    """The sub-scores of one group as functions of resampled documents."""

    def __init__(self, item: GroupRecord, trace: Record, anchors: Mapping[str, Mapping[str, Any]]) -> None:
        self.item, self.anchors = item, anchors
        self.pinned = item.pinned()
        self.cosine = item.cosine() if item.moves else np.ones(trace.n)
        complete = trace.reached >= trace.schedule.final and bool(item.baseline_square.any())
        self.growth = item.growth() if complete else None

    def all(self, weights: Array) -> Array:
        """(sub-scores, B)."""
        n = weights.sum(axis=1)
        moving = 1 - weights @ self.cosine / n
        values = {
            "bounded": self._growth(weights),
            "moving": moving,
            "responsive": dynamics.dependence(weights, self.item.grams),
            "unpinned": dynamics.pinned_share(weights, *self.pinned),
        }
        scores = [anchored(value, **self.anchors[name]) for name, value in values.items()]
        return np.stack([*scores, np.ones(len(weights))])

    def _growth(self, weights: Array) -> Array:
        if self.growth is None:
            return np.full(len(weights), np.nan)
        rows, n = weights.shape
        drawn = np.repeat(np.tile(np.arange(n), rows), weights.astype(int).ravel()).reshape(rows, -1)
        return _largest_median(self.growth[drawn])


def _largest_median(growth: Array) -> Array:
    """R of the worst part, (B,), of (B, n, parts); parts without a baseline are left out (D1 names them)."""
    medians = np.median(growth, axis=1)
    return np.where(np.isfinite(medians), medians, 0.0).max(axis=1)


def anchored(value: Array, *, at: Sequence[float], log: bool) -> Array:
    """Score 0..1 of a value: 1, 0.7, 0.5 and 0 at the four anchors, linear between, in log(value) if `log`.

    NaN (not measured) scores 1: another row reports it. Anchors may rise or fall.

    >>> anchored(np.array([1.0, 2.0, 10.0, 1e9]), at=[1.5, 2.0, 10.0, 100.0], log=True)
    array([1. , 0.7, 0.5, 0. ])
    """
    x, points = np.asarray(value, dtype=float), np.asarray(at, dtype=float)
    if log:
        with np.errstate(divide="ignore"):
            x, points = np.log(np.maximum(x, 0.0)), np.log(points)
    rising = points[0] < points[-1]
    xs, ys = (points, np.array(SCORES)) if rising else (points[::-1], np.array(SCORES)[::-1])
    finite = np.clip(np.nan_to_num(x, nan=xs[0], posinf=math.inf, neginf=-math.inf), xs[0], xs[-1])
    return np.where(np.isnan(x), 1.0, np.interp(finite, xs, ys))
