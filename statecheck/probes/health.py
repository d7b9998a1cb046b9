"""State health: one score for each (component, layer), from the rows that were measured already.

Two doors to one computation: the row `health` of a suite, and :class:`StateHealthMonitor` for a training loop.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from statecheck import dynamics, plots
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing, InputRefused, UsageError
from statecheck.probes.contract import Evidence, gather, lent
from statecheck.protocol import StatefulModel
from statecheck.recording import GroupRecord, Record, groups
from statecheck.statistics import Estimate, extreme
from statecheck.verdict import Measurement, Outcome

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCORES = (1.0, 0.7, 0.5, 0.0)  # what the four anchors of a sub-score are worth
SUBSCORES = ("bounded", "moving", "responsive", "unpinned", "finite")

Anchors = Mapping[str, Mapping[str, Any]]
Place = tuple[str, int]  # (component, layer)


def healthy(evidence: Evidence, *, anchors: Anchors) -> Outcome:
    """health: the smallest of five anchored scores, 0..1, for each (component, layer); the worst counts.

    `bounded` from D1's R, `moving` from 1 - cosine of G3.5, `responsive` from I of D2, `unpinned` from the pinned share
    of G3.5, `finite`. Each is piecewise linear between its `anchors` (values worth 1, 0.7, 0.5, 0; in the logarithm
    where `log` is set) and clamped. The score folds those rows into one number and adds no evidence beyond them. The
    reason names the limiting sub-score.

    Bootstrap over documents, simultaneous over sub-scores and layers. Source: phase 3.9.
    """
    _require_anchors(anchors)
    trace = evidence.standard_record()
    missing = evidence.unfit(["health.score"], trace, trace.schedule.baseline)
    if missing and trace.nonfinite is None:
        return Outcome(absences=missing)
    if trace.nonfinite is not None:
        note = f"limited by finite: not finite after token {trace.nonfinite[0]}"
        return Outcome((Measurement.exact("health.score", 0.0, n=trace.n, note=note),))
    tables = [_Scores(item, trace, anchors) for item in trace.groups]
    everyone = _points(tables, trace.n)
    worst, limiting = np.unravel_index(int(everyone.argmin()), everyone.shape)
    estimate = extreme(
        lambda i: np.concatenate([t.all(dynamics.weights_of(i, trace.n)) for t in tables]).T,
        trace.n,
        evidence.generator("health"),
        largest=False,
    )
    note = f"limited by {SUBSCORES[limiting]}"
    judged = evidence.measure("health.score", _on_scale(estimate), trace.groups[worst].group.where, note=note)
    shown = tuple(
        Measurement.exact(name, float(everyone[g, k]), where=item.group.where, n=trace.n)
        for g, item in enumerate(trace.groups)
        for k, name in enumerate(SUBSCORES)
    )
    return Outcome((judged,), shown=shown)


def _on_scale(estimate: Estimate) -> Estimate:
    """The estimate with its intervals cut to 0..1: a bootstrap-t interval may reach beyond what a score can be."""

    def cut(x: float) -> float:
        return min(max(x, 0.0), 1.0)

    intervals = tuple((level, cut(low), cut(high)) for level, low, high in estimate.intervals)
    return replace(estimate, low=cut(estimate.low), high=cut(estimate.high), intervals=intervals)


def _require_anchors(anchors: Anchors) -> None:
    for name in SUBSCORES[:-1]:
        if name not in anchors:
            raise UsageError(f"health: no anchors for {name!r}; expected {', '.join(SUBSCORES[:-1])}")


def _points(tables: Sequence[_Scores], n: int) -> Array:
    """The point estimates, each document once, (groups, sub-scores)."""
    return np.stack([table.all(np.ones((1, n)))[:, 0] for table in tables])


class _Scores:
    """The sub-scores of one group as functions of resampled documents."""

    def __init__(self, item: GroupRecord, trace: Record, anchors: Anchors) -> None:
        self.item, self.anchors = item, anchors
        self.pinned = item.pinned()
        self.cosine = item.cosine() if item.moves else np.ones(trace.n)
        complete = trace.reached >= trace.schedule.final and bool(item.baseline_square.any())
        self.growth = item.growth() if complete else None

    def values(self, weights: Array) -> dict[str, Array]:
        """By sub-score, what it is the score of, (B): R, 1 - cosine, I and the pinned share."""
        return {
            "bounded": self._growth(weights),
            "moving": 1 - weights @ self.cosine / weights.sum(axis=1),
            "responsive": dynamics.dependence(weights, self.item.grams),
            "unpinned": dynamics.pinned_share(weights, *self.pinned),
        }

    def all(self, weights: Array) -> Array:
        """(sub-scores, B)."""
        scores = [anchored(value, **self.anchors[name]) for name, value in self.values(weights).items()]
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


# The same scores in a training loop --------------------------------------------------------------------------------


def bundled_anchors() -> Anchors:
    """The anchors of the bundled suite phase39, which is their only home.

    Read as data: a probe may not import the modules that read and judge suites.
    """
    text = files("statecheck").joinpath("suites", "phase39.toml").read_text(encoding="utf-8")
    item = next(item for item in tomllib.loads(text)["item"] if item["id"] == "health")
    return item["options"]["anchors"]


@dataclass(frozen=True)
class HealthReading:
    """Health of every (component, layer), as point estimates over `documents` documents read up to `tokens` tokens.

    `scores` and `subscores` lie in 0..1; `limiting` names the smallest sub-score of a layer, which is its score.
    `values` are what the sub-scores are scores of: R ("bounded"), 1 - the cosine of G3.5 ("moving"), I ("responsive")
    and the pinned share ("unpinned"); NaN where the trace ended before.
    `heads` is shown and not judged: R of every (state, head), the median over documents of the state's RMS at the end
    over its RMS at the training length (head None: the whole tensor; empty where the trace ended before). `note` says
    where a state or an output was not finite: all scores are 0 then.
    """

    title: str
    documents: int
    tokens: int
    scores: Mapping[Place, float]
    limiting: Mapping[Place, str]
    subscores: Mapping[Place, Mapping[str, float]]
    values: Mapping[Place, Mapping[str, float]]
    heads: Mapping[Place, Mapping[tuple[str, int | None], float]]
    note: str = ""

    @property
    def worst(self) -> tuple[Place, float]:
        """The (component, layer) with the smallest score, and that score: the value that the row `health` judges."""
        place = min(self.scores, key=self.scores.__getitem__)
        return place, self.scores[place]

    def to_frame(self) -> pd.DataFrame:
        """One line a (component, layer). Columns: component, layer, score, limiting, and one for each sub-score."""
        import pandas as pd

        rows = [
            {"component": component, "layer": layer, "score": score, "limiting": self.limiting[component, layer]}
            | {name: self.subscores[component, layer].get(name, math.nan) for name in SUBSCORES}
            for (component, layer), score in self.scores.items()
        ]
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """The sub-scores as colours from 0 to 1: a line a (component, layer), a column a sub-score."""
        return plots.heatmap(
            [[self.subscores[place].get(name, math.nan) for name in SUBSCORES] for place in self.scores],
            [f"{component}, layer {layer}" for component, layer in self.scores],
            range(len(SUBSCORES)),
            title=f"State health of {self.title}",
            unit="score",
            x_label="sub-score",
            y_label="",
            names=SUBSCORES,
            limits=(0.0, 1.0),
        )


class StateHealthMonitor:
    """The row `health` as a tool: scores of a model's states now, for a notebook or every few steps of training.

    The computation is that of :func:`healthy`, without its bootstrap: the scores are point estimates, so two documents
    are enough for a reading, where a verdict asks for 16. `anchors` are those of the suite phase39 unless given.

    >>> import torch
    >>> from statecheck.adapters import wrap
    >>> model = wrap(torch.nn.LSTM(4, 4, batch_first=True), training_length=32)
    >>> inputs = torch.randn(8, 128, 4, generator=torch.Generator().manual_seed(0))
    >>> reading = StateHealthMonitor().measure(model, inputs)
    >>> reading.worst, sorted(reading.heads["state", 0])
    ((('state', 0), 1.0), [('layers.0.c', None), ('layers.0.h', None)])
    """

    def __init__(self, anchors: Anchors | None = None) -> None:
        self.anchors = bundled_anchors() if anchors is None else anchors
        _require_anchors(self.anchors)

    def measure(self, model: StatefulModel, inputs: Tensor | Sequence[Tensor], *, seed: int = 0) -> HealthReading:
        """Read `inputs` from no history up to four training lengths (two where the model takes no more) and score.

        `inputs` are ids (batch, time), vectors (batch, time, features), or a sequence of documents; a row that is too
        short is continued with others. The model runs in evaluation mode without gradients; its modes, its states and
        the global random numbers are left as they were.

        Raises :class:`InputRefused` for fewer than two documents or inputs that do not fit the model, and
        :class:`CapabilityMissing` for a model without recurrent states (a cache of keys and values has no health).
        """
        evidence = gather(model, inputs, seed=seed)
        if len(evidence.rows) < 2:
            raise InputRefused("inputs: expected at least 2 documents, found 1: health compares states of documents")
        if not groups(model.facts):
            raise CapabilityMissing("no recurrent matrix or vector among the states: health can't be measured")
        with lent(model):
            trace = evidence.standard_record()
        return self._unfinite(trace) if trace.nonfinite is not None else self._scored(trace)

    def _scored(self, trace: Record) -> HealthReading:
        places = _places(trace)
        tables = [_Scores(item, trace, self.anchors) for item in trace.groups]
        subscores = {
            place: dict(zip(SUBSCORES, row.tolist(), strict=True))
            for place, row in zip(places, _points(tables, trace.n), strict=True)
        }
        limiting = {place: min(SUBSCORES, key=own.__getitem__) for place, own in subscores.items()}
        scores = {place: own[limiting[place]] for place, own in subscores.items()}
        everyone = np.ones((1, trace.n))
        values = {
            place: {name: float(value[0]) for name, value in table.values(everyone).items()}
            for place, table in zip(places, tables, strict=True)
        }
        heads = {place: _heads(table) for place, table in zip(places, tables, strict=True)}
        return HealthReading(trace.facts.title, trace.n, trace.reached, scores, limiting, subscores, values, heads)

    def _unfinite(self, trace: Record) -> HealthReading:
        assert trace.nonfinite is not None
        at, what = trace.nonfinite
        places = _places(trace)
        return HealthReading(
            trace.facts.title,
            trace.n,
            trace.reached,
            scores=dict.fromkeys(places, 0.0),
            limiting=dict.fromkeys(places, "finite"),
            subscores={place: {"finite": 0.0} for place in places},
            values={place: {} for place in places},
            heads={place: {} for place in places},
            note=f"not finite after token {at}: {', '.join(what)}",
        )


def _places(trace: Record) -> list[Place]:
    return [(item.group.component, item.group.layer) for item in trace.groups]


def _heads(table: _Scores) -> dict[tuple[str, int | None], float]:
    if table.growth is None:
        return {}
    medians = np.median(table.growth, axis=0).tolist()
    return {(part.state, part.head): r for part, r in zip(table.item.group.parts, medians, strict=True)}
