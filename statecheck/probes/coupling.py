"""coupling: what the next tokens owe to each component's state, to first order, and whether the gradient is the slope.

kappa, the first-order effect of mean-ablating a state h, is made of products <h - h_mean, dL/dh>. Under any linear
change h -> M h of the state's coordinates dL/dh becomes M^-T dL/dh, so that kappa stays, where the norm of dL/dh moves
by any factor.

Two doors to one computation: the row `coupling` of a suite, and :class:`GradientStateCouplingAnalyzer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from statecheck import plots
from statecheck import states as functions
from statecheck.dynamics import Array
from statecheck.errors import InputRefused, ModelRaised
from statecheck.experiments import AFTER, boundaries, loss_scale, loss_unit
from statecheck.gradients import Boundary, SlopeCheck, check_slopes, product, reached_states, require_gradients, totals
from statecheck.probes.contract import ENOUGH_DOCUMENTS, Evidence, gather, lent
from statecheck.protocol import ModelFacts, StatefulModel, States
from statecheck.recording import walk
from statecheck.statistics import LEVELS, Estimate, Index, bca, exponentiated, extreme
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CHECKED = 8  # documents whose gradients are held against differences

Layer = tuple[str, int]  # (component, layer)
Head = tuple[str, int, int]  # (component, layer, head)


def couples(evidence: Evidence) -> Outcome:
    """coupling: how much does the loss hang on each component's state, and does the gradient tell the truth?

    kappa_b = RMS over documents and boundaries of the sum over b's states (real or complex numbers: recurrent,
    normalisers, convolution windows, keys and values) of <h - h_mean, dL/dh>, in nats (vectors: squared error as a
    share of the targets' variance). L is each document's mean loss over the 64 elements after a boundary,
    T_tr - {0, 7, 19, 31}; h_mean the mean over documents there, taken once.
    `coupling.ratio`: largest kappa over smallest (at least 1); bootstrap over documents, largest and smallest taken
    again in each resample. A component whose state gets no gradient at all, or is the same in all documents, fails by
    name and is left out.
    `coupling.gradient`: |<dL/dh, v> - central difference of L along v| over the larger of the two, norms over 8
    documents; v random combinations of the documents' deviations from their mean; the worst component. A branch that
    is detached somewhere gives up to 1, an exact gradient 0. The interval holds what the difference is not known to:
    by how much it changes between the two steps that agree best (rounding at small ones, curvature at large ones). Its
    lower end is 0 unless these and all smaller steps that rounding leaves clear agree: a loss that bends within a step
    says nothing of the gradient.

    Shown: each kappa, by layer and head as well, and the ratio of gradient norms, which depends on coordinates. Needs
    text, SET_STATES and gradients. NOT_APPLICABLE with one component. Source: phase 3.9; science, corrections.
    """
    missing = evidence.incomparable(["coupling"]) or _one_with_states(evidence.facts)
    if missing:
        return Outcome(absences=missing)
    evidence.require_text()
    missing = evidence.too_few(("coupling.ratio", "coupling.gradient"))
    return Outcome(absences=missing) if missing else _judged(evidence, _measured(evidence))


def _one_with_states(facts: ModelFacts) -> tuple[Absence, ...]:
    names = [component for component in facts.components if reached_states(facts, component)]
    reason = f"fewer than two components have states that a gradient can reach ({', '.join(names) or 'none'})"
    return () if len(names) > 1 else (Absence("coupling", Status.NOT_APPLICABLE, reason),)


# The experiment ---------------------------------------------------------------------------------------------------


def _boundaries(evidence: Evidence) -> Iterator[tuple[int, Boundary]]:
    """The documents at each boundary, with its position. The model is free for use in between: it is put back."""
    model, last = evidence.model, evidence.training_length
    after = min(AFTER, last)
    stream = evidence.streams(last + after + 1, name="coupling")
    if not _takes(model, stream[:1, :-1]):
        after = min(AFTER, max(1, last // 2))
        last = max(1, last - after)
    scale = loss_scale(stream, evidence.facts)
    for position, held, _ in walk(model, stream, boundaries(last)):
        yield position, Boundary(model, held, stream[:, position : position + after + 1], scale)
        model.set_states(functions.clone(held))


def _takes(model: StatefulModel, row: Tensor) -> bool:
    """True if the model reads this far, beyond its training length: it has promised nothing there."""
    try:
        next(walk(model, row, [row.shape[1]]))
    except ModelRaised:
        return False
    return True


# What comes out of it ---------------------------------------------------------------------------------------------


@dataclass
class _Tables:
    """Effects <h - h_mean, dL/dh> and squared norms of dL/dh of n documents, one boundary after the other."""

    n: int = 0
    after: int = 0
    positions: list[int] = field(default_factory=list)
    layers: dict[Layer, list[Array]] = field(default_factory=dict)
    heads: dict[Head, list[Array]] = field(default_factory=dict)
    squares: dict[str, list[Array]] = field(default_factory=dict)
    checks: dict[str, SlopeCheck | None] = field(default_factory=dict)

    @property
    def components(self) -> list[str]:
        """Those with states that a gradient can reach."""
        return list(self.squares)

    def add(self, at: Boundary, facts: ModelFacts, component: str, gradients: States) -> None:
        """Take in one component at one boundary."""
        self.n, self.after = at.n, at.windows.shape[1] - 1
        layers: dict[Layer, list[Array]] = {}
        heads: dict[Head, list[Array]] = {}
        for name, slope in gradients.items():
            state, effect = facts.states[name], product(at.deviation(name), slope)
            layers.setdefault((component, state.layer), []).append(totals(effect))
            for head, own in enumerate(() if state.head_axis is None else effect.unbind(state.head_axis)):
                heads.setdefault((component, state.layer, head), []).append(totals(own))
        for layer, effects in layers.items():
            self.layers.setdefault(layer, []).append(np.sum(effects, axis=0))
        for place, effects in heads.items():
            self.heads.setdefault(place, []).append(np.sum(effects, axis=0))
        squares = [totals(product(slope, slope)) for slope in gradients.values()]
        self.squares.setdefault(component, []).append(np.sum(squares, axis=0))

    def effect(self, component: str) -> Array:
        """(n, boundaries): all layers of a component together."""
        return np.sum([np.stack(rows, axis=1) for (name, _), rows in self.layers.items() if name == component], axis=0)

    def square(self, component: str) -> Array:
        """(n,): the mean over boundaries of the squared effect; kappa is the root of its mean over documents."""
        return np.square(self.effect(component)).mean(axis=1)

    def kappa(self, component: str) -> float:
        """The coupling of a component."""
        return _rms(self.effect(component))

    def raw(self, component: str) -> float:
        """RMS over documents and boundaries of the norm of dL/dh, which depends on the coordinates of h."""
        return float(np.sqrt(np.mean(self.squares[component])))

    def by_layer(self) -> dict[Layer, float]:
        """The coupling of each layer alone: effects add up over layers, their RMS does not."""
        return {layer: _rms(rows) for layer, rows in self.layers.items()}

    def broken(self, component: str) -> str | None:
        """Why a component has no kappa; None if it has."""
        effect, squares = self.effect(component), np.array(self.squares[component])
        if not np.isfinite(effect).all() or not np.isfinite(squares).all():
            return "its state, or the gradient of the loss by it, is not finite"
        if not squares.any():
            return f"the gradient of the loss by its state is exactly 0{self._moved(component)}"
        return None if effect.any() else "its state is the same in all documents"

    def _moved(self, component: str) -> str:
        check = self.checks[component]
        if check is None or not check.low:
            return ", and the loss does not move with it: nothing reads it, or its output is zero"
        return f", though the loss does move with it (by {check.slope:.3g} for a typical change): it is detached"


def _rms(effect: Sequence[Array] | Array) -> float:
    return float(np.sqrt(np.square(effect).mean()))


def _measured(evidence: Evidence) -> _Tables:
    """Raises :class:`CapabilityMissing` for a model whose states can't be set, or get no gradients."""
    facts = evidence.facts
    require_gradients(facts)
    names = {component: own for component in facts.components if (own := reached_states(facts, component))}
    tables = _Tables()
    for position, at in _boundaries(evidence):
        gradients = at.gradients([name for own in names.values() for name in own])
        for component, own in names.items():
            part = {name: gradients[name] for name in own}
            tables.add(at, facts, component, part)
            if component not in tables.checks:
                generator = evidence.generator(f"coupling.gradient.{component}")
                tables.checks[component] = check_slopes(at, part, CHECKED, generator)
        tables.positions.append(position)
    return tables


# What is said of it -----------------------------------------------------------------------------------------------


def _judged(evidence: Evidence, tables: _Tables) -> Outcome:
    broken = {name: reason for name in tables.components if (reason := tables.broken(name))}
    kept = [name for name in tables.components if name not in broken]
    absences = [
        Absence("coupling.ratio", Status.FAIL, f"{name}: {reason}", Where(component=name))
        for name, reason in broken.items()
    ]
    measurements = [_ratio(evidence, tables, kept)] if len(kept) > 1 else []
    gradient = _gradient(evidence, tables)
    (measurements if isinstance(gradient, Measurement) else absences).append(gradient)  # type: ignore[arg-type]
    notes = (f"losses of the {tables.after} elements after boundaries at {', '.join(map(str, tables.positions))}",)
    curves = _curves(tables.by_layer(), loss_unit(evidence.facts))
    return Outcome(tuple(measurements), tuple(absences), _shown(evidence, tables, kept), curves, notes)


def _ratio(evidence: Evidence, tables: _Tables, kept: Sequence[str]) -> Measurement:
    most, least = max(kept, key=tables.kappa), min(kept, key=tables.kappa)
    kappas = f"{most} {tables.kappa(most):.3g}, {least} {tables.kappa(least):.3g} {loss_unit(evidence.facts)}"
    note = f"kappa of {kappas}"
    estimate = _ratio_of_kappas(tables, kept, evidence.generator("coupling.ratio"))
    return evidence.measure("coupling.ratio", estimate, Where(component=most), unit="x", note=note)


def _ratio_of_kappas(tables: _Tables, components: Sequence[str], generator: np.random.Generator) -> Estimate:
    """Largest over smallest kappa: the largest log ratio of an ordered pair of components, which is at least 0."""
    squares = np.stack([tables.square(name) for name in components], axis=1)  # (n, components)
    pairs = [(a, b) for a in range(len(components)) for b in range(len(components)) if a != b]

    def log_ratios(index: Index) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = 0.5 * np.log(squares[index].mean(axis=1))  # (resamples, components)
            return np.stack([logs[:, a] - logs[:, b] for a, b in pairs], axis=1)

    estimate = extreme(log_ratios, tables.n, generator)
    intervals = tuple((level, max(0.0, low), high) for level, low, high in estimate.intervals)
    return exponentiated(replace(estimate, low=float(np.maximum(0.0, estimate.low)), intervals=intervals))


def _gradient(evidence: Evidence, tables: _Tables) -> Measurement | Absence:
    """The worst component. The largest error lies between the largest of the lower bounds and of the upper ones."""
    checks = {name: check for name, check in tables.checks.items() if check is not None}
    if not checks:
        reason = "the loss does not move with the state of any component: there is no slope"
        return Absence("coupling.gradient", Status.INCONCLUSIVE, reason)
    worst = max(checks, key=lambda name: (checks[name].low, checks[name].high))
    low, high = max(check.low for check in checks.values()), max(check.high for check in checks.values())
    value = max(check.error for check in checks.values())
    levels = tuple((level, low, high) for level in LEVELS)  # a bound, not a quantile: the same at every level
    n = min(CHECKED, tables.n)
    note = f"against differences with steps of {checks[worst].step:g} of the states' spread"
    where = Where(component=worst)
    return Measurement("coupling.gradient", value, "relative", where, low, high, n, evidence.seed, levels, note)


def _shown(evidence: Evidence, tables: _Tables, kept: Sequence[str]) -> tuple[Measurement, ...]:
    unit, n = loss_unit(evidence.facts), tables.n
    found = [_kappa(evidence, tables, name) for name in kept]
    places = {Where(*layer): rows for layer, rows in tables.layers.items()}
    places |= {Where(*head): rows for head, rows in tables.heads.items()}
    found += [Measurement.exact("kappa", _rms(rows), unit=unit, where=where, n=n) for where, rows in places.items()]
    raw = {name: tables.raw(name) for name in tables.components}
    found += [Measurement.exact("gradient norm", raw[name], where=Where(component=name), n=n) for name in raw]
    if len(kept) > 1:
        ratio = max(raw[name] for name in kept) / min(raw[name] for name in kept)
        found.append(Measurement.exact("ratio of gradient norms", ratio, unit="x", n=n, note="depends on coordinates"))
    found += [
        Measurement("gradient error", c.error, "relative", Where(component=name), c.low, c.high, min(CHECKED, n))
        for name, c in tables.checks.items()
        if c is not None
    ]
    return tuple(found)


def _kappa(evidence: Evidence, tables: _Tables, component: str) -> Measurement:
    square, generator = tables.square(component), evidence.generator(f"coupling.kappa.{component}")
    estimate = bca(lambda index: np.sqrt(square[index].mean(axis=1)), tables.n, generator)
    return evidence.measure("kappa", estimate, Where(component=component), unit=loss_unit(evidence.facts))


def _curves(layers: Mapping[Layer, float], unit: str) -> tuple[Series, ...]:
    """Kappa against layer, a curve a component."""
    curves = []
    for component in dict.fromkeys(component for component, _ in layers):
        own = sorted((layer, kappa) for (name, layer), kappa in layers.items() if name == component)
        x, y = zip(*own, strict=True)
        curves.append(Series("coupling against layer", component, tuple(map(float, x)), y, x_unit="", y_unit=unit))
    return tuple(curves)


# The same numbers as a tool ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CouplingReading:
    """How the loss hangs on the states of each component, over `documents` documents at each of `positions`.

    `kappa` of each component (nats; vectors: shares of the targets' variance), and in `layers` and `heads` that of a
    part of it alone: effects add up, not their RMS. `ratio` is the largest over the smallest of the kappas that are
    not zero (NaN of fewer than two), with `interval` at 95 % from 16 documents on (else NaN). `raw`: RMS of the norm of
    dL/dh, which depends on coordinates. `gradient_error`: 0 where the gradient is the slope of the loss, 1 where it has
    nothing of it, known to be within `gradient_bounds`; NaN where the loss does not move. `broken` says which
    components have no kappa, and why.
    """

    title: str
    documents: int
    positions: tuple[int, ...]
    unit: str
    kappa: Mapping[str, float]
    ratio: float
    interval: tuple[float, float]
    raw: Mapping[str, float]
    layers: Mapping[Layer, float]
    heads: Mapping[Head, float]
    gradient_error: Mapping[str, float]
    gradient_bounds: Mapping[str, tuple[float, float]]
    broken: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """One line a component, then one a layer, then one a head. Columns: component, layer, head, kappa, raw,
        gradient_error; NaN and None where a column says nothing."""
        import pandas as pd

        columns = ["component", "layer", "head", "kappa", "raw", "gradient_error"]
        rows: list[tuple[object, ...]] = [
            (name, None, None, kappa, self.raw[name], self.gradient_error[name]) for name, kappa in self.kappa.items()
        ]
        rows += [(*place, None, kappa, None, None) for place, kappa in self.layers.items()]
        rows += [(*place, kappa, None, None) for place, kappa in self.heads.items()]
        return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "head": "Int64"})

    def plot(self) -> Figure:
        """Kappa against layer, a curve a component."""
        return plots.lines("coupling against layer", _curves(self.layers, self.unit))


class GradientStateCouplingAnalyzer:
    """The row `coupling` as a tool: for any model that takes states and gives gradients by them, one component or more.

    >>> import torch
    >>> from statecheck.adapters import wrap
    >>> gru = torch.nn.GRU(2, 2, num_layers=2, batch_first=True)
    >>> model = wrap(gru, components={"low": "layers.0.*", "high": "layers.1.*"}, training_length=8)
    >>> inputs = torch.randn(4, 80, 2, generator=torch.Generator().manual_seed(0))
    >>> reading = GradientStateCouplingAnalyzer().measure(model, inputs)
    >>> max(reading.gradient_error.values()) < 0.01, reading.ratio > 1, sorted(reading.layers)
    (True, True, [('high', 1), ('low', 0)])
    """

    def measure(self, model: StatefulModel, inputs: Tensor | Sequence[Tensor], *, seed: int = 0) -> CouplingReading:
        """Differentiate the loss of what follows a boundary near the training length by the states there.

        `inputs` are ids (batch, time), vectors (batch, time, features), or a sequence of documents; a row that is too
        short is continued with others. The model runs in evaluation mode; its modes, its states, its parameters and
        the global random numbers are left as they were.

        Raises :class:`InputRefused` for fewer than two documents or inputs that do not fit the model, and
        :class:`CapabilityMissing` for a model without a loss, or whose states can't be set or get no gradients.
        """
        evidence = gather(model, inputs, seed=seed)
        if len(evidence.rows) < 2:
            raise InputRefused("inputs: expected at least 2 documents, found 1: coupling is measured from their mean")
        evidence.require_text()
        with lent(model):
            return self._reading(evidence, _measured(evidence))

    def _reading(self, evidence: Evidence, tables: _Tables) -> CouplingReading:
        broken = {name: reason for name in tables.components if (reason := tables.broken(name))}
        kept = [name for name in tables.components if name not in broken]
        ratio, low, high = np.nan, np.nan, np.nan
        if len(kept) > 1:
            estimate = _ratio_of_kappas(tables, kept, evidence.generator("coupling.ratio"))
            ratio = estimate.value
            low, high = (estimate.low, estimate.high) if tables.n >= ENOUGH_DOCUMENTS else (low, high)
        checks = tables.checks
        return CouplingReading(
            title=evidence.facts.title,
            documents=tables.n,
            positions=tuple(tables.positions),
            unit=loss_unit(evidence.facts),
            kappa={name: tables.kappa(name) for name in tables.components},
            ratio=ratio,
            interval=(low, high),
            raw={name: tables.raw(name) for name in tables.components},
            layers=tables.by_layer(),
            heads={place: _rms(rows) for place, rows in tables.heads.items()},
            gradient_error={name: np.nan if check is None else check.error for name, check in checks.items()},
            gradient_bounds={n: (np.nan, np.nan) if c is None else (c.low, c.high) for n, c in checks.items()},
            broken=broken,
        )
