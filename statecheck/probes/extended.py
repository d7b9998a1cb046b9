"""extended: was a long training run stable? Reads the training log; touches no model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statecheck.errors import CapabilityMissing, InputRefused
from statecheck.probes.contract import Evidence
from statecheck.statistics import theil_sen
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where


@dataclass(frozen=True)
class TrainingLog:
    """Points of a training log: steps with training losses, validation losses, gradient norms."""

    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    gradients: tuple[tuple[int, float], ...]
    ratios: tuple[tuple[int, float], ...]

    @property
    def last_step(self) -> int:
        """The last step that the log speaks of."""
        return max((step for rows in (self.train, self.validation) for step, _ in rows), default=0)


def read_log(path: Path, components: Sequence[str] = ()) -> TrainingLog:
    """A JSONL training log: one object a line with `step` and any of `train_loss`, `validation_loss`, `gradient_norm`
    and `gradient_norms` {component: norm}.

    NaN and infinities may be JSON's extensions or strings. Raises :class:`InputRefused` with the line that is off.
    """
    columns: dict[str, list[tuple[int, float]]] = {
        "train_loss": [],
        "validation_loss": [],
        "gradient_norm": [],
        "ratio": [],
    }
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
            for name in ("train_loss", "validation_loss", "gradient_norm"):
                if name in row:
                    columns[name].append((step, float(row[name])))
            norms = row.get("gradient_norms") or {}
            if len(components) >= 2 and all(name in norms for name in components[:2]):
                first, second = (float(norms[name]) for name in components[:2])
                columns["ratio"].append((step, first / second if second else math.inf))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputRefused(
                f'training log {path.name}, line {number}: expected {{"step": N, "train_loss": X, ...}}, found'
                f" {line[:60]!r} ({error})"
            ) from None
    train, validation, gradients, ratios = (tuple(rows) for rows in columns.values())
    return TrainingLog(train, validation, gradients, ratios)


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
    of the first two components within [ratio_low, ratio_high]. A shorter log, or none, is SKIP.

    Source: phase 3.9, extended training.
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
    for part in (_final(log), _slope(log, tail), _balance(evidence, log, ratio_low, ratio_high)):
        (judged if isinstance(part, Measurement) else absences).append(part)  # type: ignore[arg-type]
    return Outcome(tuple(judged), tuple(absences), series=_curves(log))


def _nonfinite(log: TrainingLog) -> Measurement:
    bad = [
        step for rows in (log.train, log.validation, log.gradients) for step, value in rows if not math.isfinite(value)
    ]
    where = Where(position=min(bad)) if bad else None
    n = len(log.train) + len(log.validation) + len(log.gradients)
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


def _balance(evidence: Evidence, log: TrainingLog, low: float, high: float) -> Measurement | Absence:
    components = list(evidence.facts.components)
    if len(components) < 2:
        return Absence("extended.balance", Status.NOT_APPLICABLE, f"the model has one component ({components[0]})")
    if not log.ratios:
        reason = f"the log has no gradient_norms for {components[0]} and {components[1]}"
        return Absence("extended.balance", Status.SKIP, reason)
    inside = [low <= ratio <= high for _, ratio in log.ratios]
    return Measurement.exact("extended.balance", sum(inside) / len(inside), unit="of points", n=len(inside))


def _curves(log: TrainingLog) -> tuple[Series, ...]:
    """Training and validation loss, thinned to at most 1,000 points each."""
    curves = []
    for label, rows in (("training", log.train), ("validation", log.validation)):
        kept = rows[:: max(1, len(rows) // 1000)]
        x, y = tuple(float(step) for step, _ in kept), tuple(value for _, value in kept)
        curves.append(Series("training curves", label, x, y, x_unit="steps", y_unit="nats"))
    return tuple(curves)
