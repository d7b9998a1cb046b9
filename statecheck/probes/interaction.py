"""S4 and D3: what each component contributes, and how unequally, by resample ablation. One experiment, two rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from statecheck.dynamics import Array
from statecheck.experiments import ablate_outputs, ablate_states, ablated_modules, loss_scale, loss_unit
from statecheck.probes.contract import Evidence
from statecheck.statistics import Estimate, Index, exponentiated, extreme, mean_t
from statecheck.verdict import Absence, Measurement, Outcome, Status, Where

DONORS = 4  # for each document
DOCUMENTS = 24  # 1 + 4 x components runs over a training length each: a hybrid of 2 M parameters takes 10 s
LEAST = 1e-12  # of the largest effect: what an effect that is not above zero in some resample counts as


def contributes(evidence: Evidence) -> Outcome:
    """S4: does the loss rise when a component is ablated?

    `S4.contribution`, for each component: mean over documents of the loss with the component's output replaced by that
    of another document at the same position, less the loss of the intact model, as in D3. Nats for tokens; for vectors
    the rise of the mean squared error as a share of the targets' variance. A component whose output is multiplied by
    zero has exactly 0. NOT_APPLICABLE with one component; needs text.

    Percentile-t bootstrap over documents. Source: phase 3.9, S4.
    """
    found = _effects(evidence, "S4", "S4.contribution")
    if isinstance(found, Outcome):
        return found
    return Outcome(found.measured(evidence, "S4.contribution"), notes=found.notes)


def interaction(evidence: Evidence) -> Outcome:
    """D3: how unequal are the effects of ablating each component?

    The effect of a component is the mean over documents, of T_tr tokens from no history each, of the loss with its
    output replaced by that of another document at the same position, in all layers at once, less the loss of the
    intact model on the same targets. Each document has four donors; what is taken from a donor are the outputs of its
    intact run. `D3.ratio`: largest effect over smallest. Where the interval of the smallest includes 0, nothing bounds
    the ratio above: value and lower bound are lower(largest) / upper(smallest), the upper bound is infinite, so that
    it may fail and can't pass. A smallest effect with no upper bound above 0 is a FAIL by name. Where the largest
    includes 0 as well, the components are redundant or unused: INCONCLUSIVE.

    By hand: for y = f1 + f2 under squared error, with an error that depends on neither, the effect of f1 is 2 var f1
    (over documents, at a position): twice that of putting its mean, since the donor varies too. Without modules whose
    outputs can be replaced (`modules` of `wrap`) the component's states are taken from the donor before every token:
    "D3 (state)". NOT_APPLICABLE with one component; needs text.

    Bootstrap over documents, as recipients and as donors; the largest and the smallest are taken again in each
    resample. Source: phase 3.9, D3.
    """
    found = _effects(evidence, "D3", "D3.ratio")
    if isinstance(found, Outcome):
        return found
    ratio = _ratio(evidence, found)
    shown = found.measured(evidence, "effect of ablation")
    if isinstance(ratio, Absence):
        return Outcome(absences=(ratio,), shown=shown, notes=found.notes)
    return Outcome((ratio,), shown=shown, notes=found.notes)


# The experiment ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """Effects of ablation: `table` (n, components) in `unit`, `intact` the mean loss of the intact model."""

    names: tuple[str, ...]
    table: Array
    intact: float
    unit: str
    by_state: bool

    def means(self, index: Index) -> Array:
        """(resamples, n) -> (resamples, components)."""
        return self.table[index].mean(axis=1)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the components were ablated, where it is not by their outputs."""
        if not self.by_state:
            return ()
        why = "not every component names modules whose outputs can be replaced"
        return (f"D3 (state): {why}; the component's states are taken from another document before every token",)

    def labelled(self, note: str = "") -> str:
        """The note of a number, which says where states were ablated and not outputs."""
        return "; ".join(part for part in ("D3 (state)" if self.by_state else "", note) if part)

    def measured(self, evidence: Evidence, name: str) -> tuple[Measurement, ...]:
        """The effect of each component."""
        estimates = {c: mean_t(self.table[:, i], evidence.generator(f"{name}.{c}")) for i, c in enumerate(self.names)}
        return tuple(
            evidence.measure(name, estimate, Where(component=c), unit=self.unit, note=self.labelled())
            for c, estimate in estimates.items()
        )


def _effects(evidence: Evidence, id: str, part: str) -> Effects | Outcome:
    """The effects of ablating each component, or the outcome of an item that can't have them."""
    missing = evidence.incomparable([id])
    if missing:
        return Outcome(absences=missing)
    evidence.require_text()
    missing = evidence.too_few([part])
    if missing:
        return Outcome(absences=missing)
    effects = evidence.once("effects of ablation", lambda: _measured(evidence))
    if np.isfinite(effects.intact):
        return effects
    reason = "the loss of the intact model is not finite: see D1.nonfinite"
    return Outcome(absences=(Absence(part, Status.INCONCLUSIVE, reason),))


def _measured(evidence: Evidence) -> Effects:
    windows = evidence.streams(evidence.training_length + 1, most=DOCUMENTS, name="ablation")
    ablate = ablate_outputs if ablated_modules(evidence.model) else ablate_states
    found = ablate(evidence.model, windows, DONORS, evidence.generator("ablation"))
    table = found.effects() / loss_scale(windows, evidence.facts)
    intact = float(found.intact.mean())
    return Effects(tuple(found.without), table, intact, loss_unit(evidence.facts), found.by == "state")


# The ratio --------------------------------------------------------------------------------------------------------


def _ratio(evidence: Evidence, effects: Effects) -> Measurement | Absence:
    """The largest effect over the smallest, or the bound that can be had, or why there is neither."""
    broken = [
        name for name, column in zip(effects.names, effects.table.T, strict=True) if not np.isfinite(column).all()
    ]
    if broken:
        reason = f"the loss is not finite when {' or '.join(broken)} is ablated"
        return Absence("D3.ratio", Status.INCONCLUSIVE, effects.labelled(reason))
    n, order = len(effects.table), effects.table.mean(axis=0).argsort(kind="stable")
    most = extreme(effects.means, n, evidence.generator("D3.largest"))
    least = extreme(effects.means, n, evidence.generator("D3.smallest"), largest=False)
    largest, smallest = effects.names[order[-1]], effects.names[order[0]]
    said = f"{largest} {_said(most)}, {smallest} {_said(least)} {effects.unit}"
    if not most.low > 0:
        reason = f"redundant or unused: no component has an effect that is certainly above 0 ({said})"
        return Absence("D3.ratio", Status.INCONCLUSIVE, effects.labelled(reason))
    where = Where(component=smallest)
    if not least.high > 0:
        reason = f"ablating {smallest} does not raise the loss ({said}): the model does without it"
        return Absence("D3.ratio", Status.FAIL, effects.labelled(reason), where)
    if not least.low > 0:
        note = effects.labelled(f"a lower bound: the interval of the smallest effect includes 0 ({said})")
        return evidence.measure("D3.ratio", _lower_bound(most, least), where, unit="x", note=note)
    estimate = extreme(_log_ratios(effects, LEAST * most.value), n, evidence.generator("D3.ratio"))
    return evidence.measure("D3.ratio", _from_one(exponentiated(estimate)), unit="x", note=effects.labelled(said))


def _said(estimate: Estimate) -> str:
    interval = "" if estimate.low == estimate.high else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.3g}{interval}"


def _lower_bound(most: Estimate, least: Estimate) -> Estimate:
    """lower(most) / upper(least) at every level, where nothing bounds the ratio above."""
    pairs = zip(most.intervals, least.intervals, strict=True)
    intervals = tuple((level, low / high, np.inf) for (level, low, _), (_, _, high) in pairs)
    return Estimate(intervals[0][1], intervals[0][1], np.inf, intervals, most.method, most.n)


def _log_ratios(effects: Effects, least: float) -> Callable[[Index], Array]:
    """Logarithms of the ratios of all ordered pairs; the largest of them is that of the largest to the smallest."""
    above, below = (list(side) for side in zip(*permutations(range(len(effects.names)), 2), strict=True))

    def ratios(index: Index) -> Array:
        logs = np.log(np.maximum(effects.means(index), least))
        return logs[:, above] - logs[:, below]

    return ratios


def _from_one(estimate: Estimate) -> Estimate:
    """The largest over the smallest is never under 1, whatever an interval says that is symmetric in the two."""
    intervals = tuple((level, max(1.0, low), max(1.0, high)) for level, low, high in estimate.intervals)
    return replace(estimate, low=max(1.0, estimate.low), high=max(1.0, estimate.high), intervals=intervals)
