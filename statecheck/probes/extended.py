"""extended: was a long training run stable? Reads the training log; touches no model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statecheck.adapters.contract import layer_of
from statecheck.errors import CapabilityMissing, InputRefused
from statecheck.probes.contract import Evidence
from statecheck.statistics import theil_sen
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where

GRADIENT, PARTS = "gradient_norm", ("gradient_norms", "relative_updates", "gates")
Points = tuple[tuple[int, float], ...]  # (step, value)
ByPart = Mapping[str, Points]  # of each component, or of each layer


@dataclass(frozen=True)
class TrainingLog:
    """Points of a training log: steps with training losses, validation losses, gradient norms; and by component the
    gradient norms and relative updates, by layer the fusion gates, where they were logged."""

    train: Points
    validation: Points
    gradients: Points
    norms: ByPart
    updates: ByPart
    gates: ByPart

    @property
    def last_step(self) -> int:
        """The last step that the log speaks of."""
        return max((step for rows in (self.train, self.validation) for step, _ in rows), default=0)


def ratios(what: ByPart, first: str, second: str) -> Points:
    """`what` of `first` over that of `second`, at the steps that have both; inf where the second is 0.

    >>> ratios({"a": ((0, 1.0), (10, 3.0)), "b": ((10, 2.0),)}, "a", "b")
    ((10, 1.5),)
    """
    others = dict(what.get(second, ()))
    pairs = [(step, value, others[step]) for step, value in what.get(first, ()) if step in others]
    return tuple((step, value / other if other else math.inf) for step, value, other in pairs)


def read_log(path: Path, components: Sequence[str] = ()) -> TrainingLog:
    """A JSONL training log: one object a line with `step` and any of `train_loss`, `validation_loss`, `gradient_norm`,
    `gradient_norms` and `relative_updates` {component: number} of `components`, and `gates` {layer: mean}.

    NaN and infinities may be JSON's extensions or strings. Raises :class:`InputRefused` with the line that is off.
    """
    columns: dict[str, list[tuple[int, float]]] = {name: [] for name in ("train_loss", "validation_loss", GRADIENT)}
    parts: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in PARTS}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
            for name in (name for name in columns if name in row):
                columns[name].append((step, float(row[name])))
            for name, found in parts.items():
                for part, value in _of_parts(row.get(name), components if name != "gates" else None).items():
                    found.setdefault(part, []).append((step, value))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputRefused(
                f'training log {path.name}, line {number}: expected {{"step": N, "train_loss": X, ...}}, found'
                f" {line[:60]!r} ({error})"
            ) from None
    train, validation, gradients = (tuple(rows) for rows in columns.values())
    norms, updates, gates = ({part: tuple(rows) for part, rows in found.items()} for found in parts.values())
    return TrainingLog(train, validation, gradients, norms, updates, gates)


def _of_parts(said: Any, wanted: Sequence[str] | None) -> dict[str, float]:
    """The numbers of the `wanted` parts, in that order; of all where nothing is wanted in particular."""
    if wanted is None:  # only drawn: what is no number is somebody else's word
        numbers = said.items() if isinstance(said, Mapping) else ()
        return {part: float(value) for part, value in numbers if isinstance(value, (int, float))}
    return {part: float(said[part]) for part in wanted if part in said} if said else {}


def stable(
    evidence: Evidence,
    *,
    steps: int = 10_000,
    spike: float = 0.5,
    median: int = 101,
    tail: float = 0.2,
    ratio_low: float = 0.1,
    ratio_high: float = 10.0,
) -> Outcome:
    """extended: is a run of at least `steps` steps stable?

    `extended.nonfinite`: logged losses or gradient norms that are not finite. `extended.spike`: the longest run of
    logged points with a training loss above the median of the `median` points before + `spike` nats. `extended.final`:
    last validation loss over the best. `extended.slope`: lower bound (95 %) of the Theil-Sen slope of validation over
    the last `tail` of the steps, in nats per 1,000 steps. `extended.balance`: share of points with a gradient ratio
    of the first two components within [ratio_low, ratio_high]. `extended.updates`: the smallest share, over components,
    of logged points at which the optimiser moved its parameters (`relative_updates`, RMS of the step over RMS of the
    parameters, above 0): 0 for a component whose learning rate is 0. A log that tells no relative updates of the
    components is not asked for them (NOT_APPLICABLE). A shorter log, or none, is SKIP.

    Shown: largest over smallest relative update of the components, the median over points and what 90 % of the points
    exceed. Source: phase 3.9, extended training; science 7, gradient balance.
    """
    if evidence.training_log is None:
        raise CapabilityMissing("no training log was given (--training-log FILE)")
    log = read_log(evidence.training_log, list(evidence.facts.components))
    if log.last_step < steps:
        raise CapabilityMissing(f"the training log ends at step {log.last_step:,}; this row needs {steps:,} steps")
    if not log.train or not log.validation:
        raise CapabilityMissing("the training log holds no train_loss or no validation_loss")
    judged = [_nonfinite(log), _spikes(log, spike, median)]
    absences: list[Absence] = []
    components = list(evidence.facts.components)
    balance = _balance(components, log, ratio_low, ratio_high)
    for part in (_final(log), _slope(log, tail), balance, _updates(components, log)):
        (judged if isinstance(part, Measurement) else absences).append(part)  # type: ignore[arg-type]
    return Outcome(tuple(judged), tuple(absences), _update_ratios(log), _curves(log))


def _nonfinite(log: TrainingLog) -> Measurement:
    columns = (log.train, log.validation, log.gradients, *log.norms.values())
    bad = [step for rows in columns for step, value in rows if not math.isfinite(value)]
    where = Where(position=min(bad)) if bad else None
    n = sum(map(len, columns))
    return Measurement.exact(
        "extended.nonfinite", len(bad), unit="points", where=where, n=n, note=f"first at step {min(bad)}" if bad else ""
    )


def _spikes(log: TrainingLog, spike: float, width: int) -> Measurement:
    """Longest run above the running median of the `width` points before each point.

    Not around it: in the first descent the points that follow are lower by far, and that is no spike.
    """
    values = np.array([value for _, value in log.train])
    longest = run = at = 0
    for i, value in enumerate(values):
        before = values[max(0, i - width) : i]
        finite = before[np.isfinite(before)]
        high = not math.isfinite(value) or (len(finite) > 0 and value > float(np.median(finite)) + spike)
        run = run + 1 if high else 0
        if run > longest:
            longest, at = run, log.train[i][0]
    note = f"ending at step {at}" if longest else ""
    return Measurement.exact("extended.spike", longest, unit="points", n=len(values), note=note)


def _final(log: TrainingLog) -> Measurement | Absence:
    values = [value for _, value in log.validation if math.isfinite(value)]
    if not values:
        return Absence("extended.final", Status.FAIL, "no validation loss is finite")
    best = min(values)
    if best <= 0:
        return Absence("extended.final", Status.INCONCLUSIVE, f"the best validation loss is {best:g}: no ratio to it")
    note = f"last {values[-1]:.4f}, best {best:.4f} nats"
    return Measurement.exact("extended.final", values[-1] / best, unit="x the best", n=len(values), note=note)


def _slope(log: TrainingLog, tail: float) -> Measurement | Absence:
    first = log.last_step * (1 - tail)
    points = [(step, value) for step, value in log.validation if step >= first and math.isfinite(value)]
    if len(points) < 5:
        reason = f"{len(points)} validation points in the last {tail:.0%} of the steps: a slope needs 5"
        return Absence("extended.slope", Status.INCONCLUSIVE, reason)
    slope, low, high = theil_sen([step / 1000 for step, _ in points], [value for _, value in points])
    note = f"lower bound; slope {slope:.4g} [{low:.4g}, {high:.4g}]"
    return Measurement.exact("extended.slope", low, unit="nats per 1,000 steps", n=len(points), note=note)


def _balance(components: Sequence[str], log: TrainingLog, low: float, high: float) -> Measurement | Absence:
    if len(components) < 2:
        return Absence("extended.balance", Status.NOT_APPLICABLE, f"the model has one component ({components[0]})")
    first, second = components[:2]
    found = ratios(log.norms, first, second)
    if not found:
        reason = f"the log has no gradient_norms for {first} and {second}"
        return Absence("extended.balance", Status.SKIP, reason)
    inside = [low <= ratio <= high for _, ratio in found]
    note = f"{first} over {second}: median {float(np.median([ratio for _, ratio in found])):.3g}"
    return Measurement.exact("extended.balance", sum(inside) / len(inside), unit="of points", n=len(inside), note=note)


def _updates(components: Sequence[str], log: TrainingLog) -> Measurement | Absence:
    missing = [component for component in components if component not in log.updates]
    if len(missing) == len(components):
        reason = f"the log tells no relative_updates of {', '.join(components)}: not asked for"
        return Absence("extended.updates", Status.NOT_APPLICABLE, reason)
    if missing:
        reason = f"the log has relative_updates of {', '.join(log.updates)}, and none of {', '.join(missing)}"
        return Absence("extended.updates", Status.SKIP, reason)
    shares = {
        name: sum(0 < value < math.inf for _, value in log.updates[name]) / len(log.updates[name])
        for name in components
    }
    least = min(components, key=lambda name: shares[name])
    n = len(log.updates[least])
    return Measurement.exact("extended.updates", shares[least], unit="of points", where=Where(component=least), n=n)


def _update_ratios(log: TrainingLog) -> tuple[Measurement, ...]:
    """Largest over smallest relative update of the components at each point: the median, and what 90 % exceed."""
    if len(log.updates) < 2:
        return ()
    by_step = [dict(rows) for rows in log.updates.values()]
    steps = set.intersection(*map(set, by_step))
    own = np.array([[values[step] for values in by_step] for step in sorted(steps)]).reshape(len(steps), -1)
    own = own[np.isfinite(own).all(axis=1) & (own > 0).all(axis=1)]
    if not len(own):
        return ()
    times = own.max(axis=1) / own.min(axis=1)
    named = {"median": 0.5, "exceeded at 90 % of points": 0.1}
    return tuple(
        Measurement.exact(f"ratio of relative updates, {name}", float(np.quantile(times, q)), unit="x", n=len(times))
        for name, q in named.items()
    )


def _curves(log: TrainingLog) -> tuple[Series, ...]:
    """Losses; gradients and relative updates by component; fusion gates by layer."""
    losses = [
        _curve("training curves", label, rows, "nats")
        for label, rows in (("training", log.train), ("validation", log.validation))
    ]
    gradients = [_curve("gradients by component in training", name, rows) for name, rows in log.norms.items()]
    updates = [_curve("relative updates by component in training", name, rows) for name, rows in log.updates.items()]
    gates = [
        _curve("fusion gates in training", layer, rows, where=Where(layer=layer_of(layer)))
        for layer, rows in log.gates.items()
    ]
    return (*losses, *gradients, *updates, *gates)


def _curve(name: str, label: str, rows: Points, unit: str = "", where: Where | None = None) -> Series:
    """One curve, thinned to at most 1,000 points or so."""
    kept = rows[:: max(1, len(rows) // 1000)]
    x, y = tuple(float(step) for step, _ in kept), tuple(value for _, value in kept)
    return Series(name, label, x, y, x_unit="steps", y_unit=unit, where=where or Where())
