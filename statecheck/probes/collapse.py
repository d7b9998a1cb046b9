"""D2: has the state collapsed? Named sub-items for each (component, layer); the worst counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from statecheck import dynamics, states
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing
from statecheck.probes.contract import Evidence
from statecheck.protocol import Capability, StatefulModel, StateKind, States
from statecheck.recording import Group, Record, groups, units, walk
from statecheck.statistics import extreme
from statecheck.verdict import Absence, Measurement, Outcome, Status

STATIC = ("D2.frozen", "D2.saturated", "D2.dead")


def collapses(
    evidence: Evidence, *, spread: float = 0.01, rows: int = 256, fast: float = 1.0, slow: float = 10.0
) -> Outcome:
    """D2: is the state frozen, saturated, dead, unselective, or stuck at forgetting all or nothing?

    `D2.frozen`: I = sum_i Var_docs(h_i) / E||h||^2 at T_tr (mean of 4 positions, documents not matched at the last
    token); the smallest (component, layer). `D2.saturated`: share of pinned units. `D2.dead`: share of units that are
    always exactly zero. Retention from outside: the same token with the same other states, this state once its own (h),
    once another document's (k): a_i = (h'_i - k'_i) / (h_i - k_i), exact for diagonal recurrences; where units mix,
    ||h' - k'|| / ||h - k|| for the whole state. `D2.selection`: share of units whose spread over tokens of
    log(-log a) is under `spread`, in components declared selective. `D2.decay`: share of units with a half-life
    ln 2 / (-median log a) under `fast` tokens, or share over `slow` training lengths, whichever is larger.

    Heads are information only: polarised heads are healthy. Source: phase 3.9, D2; science notes C1, C4, C5.
    """
    trace = evidence.standard_record()
    missing = evidence.unfit(STATIC, trace, trace.schedule.baseline)
    judged = [] if missing else [_frozen(evidence, trace), _saturated(evidence, trace), _dead(trace)]
    kept, lacking = _retention_or_absence(evidence, rows)
    found = [_selection(evidence, kept, spread), _decay(evidence, kept, fast, slow)] if kept else []
    measurements = [f for f in found if isinstance(f, Measurement)]
    absences = [f for f in found if isinstance(f, Absence)]
    return Outcome((*judged, *measurements), (*missing, *lacking, *absences), _shown(kept))


def _frozen(evidence: Evidence, trace: Record) -> Measurement:
    def table(weights: Array) -> Array:
        return np.stack([dynamics.dependence(weights, item.grams) for item in trace.groups], axis=1)

    worst = int(table(np.ones((1, trace.n)))[0].argmin())
    estimate = extreme(
        lambda i: table(dynamics.weights_of(i, trace.n)), trace.n, evidence.generator("D2.frozen"), largest=False
    )
    return evidence.measure("D2.frozen", estimate, trace.groups[worst].group.where)


def _saturated(evidence: Evidence, trace: Record) -> Measurement:
    tables = [item.pinned() for item in trace.groups]

    def shares(weights: Array) -> Array:
        return np.stack([dynamics.pinned_share(weights, *table) for table in tables], axis=1)

    worst = int(shares(np.ones((1, trace.n)))[0].argmax())
    estimate = extreme(lambda i: shares(dynamics.weights_of(i, trace.n)), trace.n, evidence.generator("D2.saturated"))
    return evidence.measure("D2.saturated", estimate, trace.groups[worst].group.where, unit="of units")


def _dead(trace: Record) -> Measurement:
    shares = [1 - float(item.pinned()[1].mean()) for item in trace.groups]
    worst = int(np.argmax(shares))
    return Measurement.exact(
        "D2.dead", shares[worst], unit="of units", where=trace.groups[worst].group.where, n=trace.n
    )


# Retention, measured from outside ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Retention of the units of one group: a (rows, units), and whether the recurrence is diagonal."""

    group: Group
    retention: Array
    diagonal: bool


def _retention_or_absence(evidence: Evidence, rows: int) -> tuple[list[Kept], tuple[Absence, ...]]:
    names = ("D2.selection", "D2.decay")
    if not groups(evidence.facts):
        return [], tuple(Absence(n, Status.NOT_APPLICABLE, "no recurrent state") for n in names)
    try:
        evidence.facts.require(Capability.SET_STATES)
    except CapabilityMissing as error:
        return [], tuple(
            Absence(name, Status.SKIP, f"retention is measured by a transplant: {error}") for name in names
        )
    transplants = [Transplant.of(evidence, own, tokens) for own, tokens in _snapshots(evidence, rows)]
    if any(states.nonfinite(one.own) for one in transplants):
        return [], tuple(Absence(n, Status.INCONCLUSIVE, "states are not finite: see D1.nonfinite") for n in names)
    kept = [item for group in groups(evidence.facts) if (item := _retained(evidence, group, transplants))]
    known = [item for item in kept if not np.isnan(item.retention).all()]
    if not known:
        reason = "no two documents have different states, so nothing can be transplanted: see D2.frozen"
        return [], tuple(Absence(name, Status.INCONCLUSIVE, reason) for name in names)
    return known, ()


def _snapshots(evidence: Evidence, rows: int) -> list[tuple[States, Tensor]]:
    """At least `rows` states from different documents and positions up to T_tr, and the token that follows each.

    One batch, but for a model whose states speak of the position, as a cache does: then one for each position.
    """
    length = max(1, evidence.training_length - 1)
    inputs = evidence.streams(length + 1, name="D2.retention")
    looks = -(-rows // len(inputs))
    first = max(1, length // 2)
    stops = sorted({first + round(i * (length - first) / max(1, looks - 1)) for i in range(looks)})
    taken = [(held, inputs[:, at : at + 1]) for at, held, _ in walk(evidence.model, inputs, stops)]
    if any(state.time_axis is not None or not _stackable(state.kind) for state in evidence.facts.states.values()):
        return taken
    return [(states.concatenate([held for held, _ in taken]), torch.cat([tokens for _, tokens in taken]))]


def _stackable(kind: StateKind) -> bool:
    return kind.recurrent or kind in (StateKind.CONV, StateKind.NORMALISER)


@dataclass(frozen=True)
class Transplant:
    """Rows of states `own`, those of other documents `foreign`, and what one step on `tokens` makes of `own`."""

    evidence: Evidence
    own: States
    foreign: States
    tokens: Tensor
    after: States

    @staticmethod
    def of(evidence: Evidence, own: States, tokens: Tensor) -> Transplant:
        """The donors are a seeded permutation."""
        donors = torch.from_numpy(evidence.generator("D2.donors").permutation(len(tokens))).roll(1)
        return Transplant(evidence, own, states.rows(own, donors), tokens, _step(evidence.model, tokens, own))

    def retention(self, name: str, *, diagonal: bool) -> Array:
        """What the state `name` keeps of a difference: a unit where it is diagonal, as a whole where units mix."""
        swapped = states.replace(self.own, self.foreign, [name])  # a normaliser stays: both are divided by their own
        after = _step(self.evidence.model, self.tokens, swapped)
        h, k, h2, k2 = (self.units(held, name) for held in (self.own, swapped, self.after, after))
        return dynamics.retention(h, k, h2, k2) if diagonal else dynamics.dense_retention(h, k, h2, k2)

    def is_diagonal(self, name: str) -> bool:
        """Found by trying: with every second unit transplanted, do the other units' next values change?"""
        value, other = self.own[name], self.foreign[name]
        swapped = (torch.arange(value[0].numel(), device=value.device) % 2 == 0).view(value.shape[1:])
        mixed = _step(self.evidence.model, self.tokens, {**self.own, name: torch.where(swapped, other, value)})
        moved = np.abs(self.units(mixed, name) - self.units(self.after, name))
        plain = replace(self.evidence.facts.states[name], normaliser=None)
        chosen = units({name: swapped[None]}, name, plain)[0].numpy(force=True) > 0  # in the order of the units
        if not chosen.any() or chosen.all():
            return True
        return not moved[:, ~chosen].max() > 1e-3 * moved[:, chosen].max()

    def units(self, held: States, name: str) -> Array:
        """The state `name` in `held` as (rows, units)."""
        return units(held, name, self.evidence.facts.states[name]).numpy(force=True)


def _step(model: StatefulModel, tokens: Tensor, held: States) -> States:
    model.set_states(states.clone(held))
    model(tokens)
    return model.get_states()


def _retained(evidence: Evidence, group: Group, transplants: list[Transplant]) -> Kept | None:
    """Retention of a group; None if its states hold no memory of their own."""
    said = {name: evidence.facts.states[name].recurrence for name in group.names}
    diagonal = {
        name: transplants[0].is_diagonal(name) if recurrence is None else recurrence == "diagonal"
        for name, recurrence in said.items()
        if recurrence != "derived"
    }
    if not diagonal:
        return None
    tables = [
        np.concatenate([one.retention(name, diagonal=known) for name, known in diagonal.items()], axis=1)
        for one in transplants
    ]
    return Kept(group, np.concatenate(tables), all(diagonal.values()))


def _selection(evidence: Evidence, kept: list[Kept], spread: float) -> Measurement | Absence:
    declared = {name: facts.selective for name, facts in evidence.facts.components.items()}
    judged = [item for item in kept if declared[item.group.component]]
    if not judged:
        silent = [name for name, value in declared.items() if value is None]
        why = (
            "not declared selective (wrap(..., selective=True))"
            if silent
            else "its recurrence is declared time-invariant"
        )
        return Absence("D2.selection", Status.NOT_APPLICABLE, why)
    shares = [_share(dynamics.selection_spread(item.retention) < spread, item.retention) for item in judged]
    worst = int(np.argmax(shares))
    return Measurement.exact(
        "D2.selection", shares[worst], unit="of units", where=judged[worst].group.where, n=len(judged[worst].retention)
    )


def _decay(evidence: Evidence, kept: list[Kept], fast: float, slow: float) -> Measurement | Absence:
    longest = slow * evidence.training_length
    rows = []
    for item in kept:
        half_life = dynamics.half_life(item.retention)
        for label, stuck in (("forget at once", half_life < fast), ("never forget", half_life > longest)):
            rows.append((_share(stuck, item.retention), label, item))
    share, label, item = max(rows, key=lambda row: row[0])
    note = f"units that {label}; half-life under {fast:g} token or over {longest:g} tokens"
    return Measurement.exact(
        "D2.decay", share, unit="of units", where=item.group.where, n=len(item.retention), note=note
    )


def _share(flags: np.ndarray, kept: Array) -> float:
    """Share of the units with a known retention."""
    known = ~np.isnan(kept).all(axis=0)
    return float(flags[known].mean()) if known.any() else 0.0


def _shown(kept: list[Kept]) -> tuple[Measurement, ...]:
    """Half-lives of each layer: 10 %, median and 90 % of the units."""
    shown = []
    for item in kept:
        lives = dynamics.half_life(item.retention)
        lives = lives[~np.isnan(lives)]
        if len(lives):
            low, middle, high = (float(np.quantile(lives, q, method="nearest")) for q in (0.1, 0.5, 0.9))
            form = "diagonal, a unit" if item.diagonal else "units mix: of the whole state"
            shown.append(Measurement("half-life", middle, "tokens", item.group.where, low, high, len(lives), note=form))
    return tuple(shown)
