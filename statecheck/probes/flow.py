"""Information flow: whose memory carries what the model knows of the past?

Two doors to one computation: the row `flow` of a suite, and :class:`InformationFlowTracer` for a notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from statecheck import plots
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing, InputRefused, ModelRaised
from statecheck.experiments import AFTER, boundaries
from statecheck.probes.contract import Evidence, gather, lent
from statecheck.protocol import Capability, ModelFacts, StatefulModel
from statecheck.signals import gates
from statecheck.statistics import bca, extreme, mean_t
from statecheck.transplants import HeadPlace, Key, Place, Worth, players_of, worth_of_memories
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_COMPONENTS = 5  # 2^5 sets of components
LAYER_SHARES = "share of the memory against layer"


def flow(evidence: Evidence, *, negligible: float = 0.005) -> Outcome:
    """flow: how much of what the memory is worth is each component's?

    v(S) is minus the mean loss of the 64 tokens after a boundary near the training length, when the components in S
    keep their states and the others have another document's at the same position (all layers; convolution windows,
    keys and values count as state); the mean of four boundaries, T_tr - {0, 7, 19, 31}, each with other donors.
    `flow.memory` = v(all) - v(none), what all states together are worth: nats for tokens; for vectors mean squared
    error as a share of the targets' variance. Where its interval includes 0 it is a FAIL ("no state carries
    information") if the upper bound is under `negligible`, else INCONCLUSIVE, and there is nothing to share.
    `flow.share` = max(phi_b, 0) / sum of them, phi the Shapley value: what a component adds to v, over all orders in
    which components may join; the smallest.

    This is the memory alone: D3 ablates a component's whole path, the present token included. Shown, not judged: each
    component's share, Shapley value, first-in value v(b) - v(none), last-in value v(all) - v(all but b), and redundancy
    (Shapley less last-in: what others hold as well); the rise of the loss when one layer of one component alone has
    another document's state; the fusion gates over positions, if the model declares `signals`. By hand, for additive
    memories under squared error, A and B the variances of what two states add to the output and C their covariance:
    share (A + C) / (A + B + 2 C), redundancy 2 C. NOT_APPLICABLE with states in one component; needs text and at most
    five components.

    Paired bootstrap over documents, as recipients and as donors. Source: phase 3.9, information flow; science 7.
    """
    missing = evidence.incomparable(["flow"]) or _one_memory(evidence.facts)
    if missing:
        return Outcome(absences=missing)
    evidence.require_text()
    missing = evidence.too_few(["flow.memory", "flow.share"])
    if missing:
        return Outcome(absences=missing)
    worth = evidence.once("worth of memories", lambda: _measured(evidence, heads=False))
    if not np.isfinite(worth.values).all():
        reason = "a loss is not finite: see D1.nonfinite"
        return Outcome(absences=_absences(Status.INCONCLUSIVE, reason, reason))
    judged = _judged(evidence, worth, negligible)
    fused = gates(evidence.model, evidence.streams(evidence.training_length, name="flow"))
    return replace(judged, series=(*judged.series, *fused))


def _one_memory(facts: ModelFacts) -> tuple[Absence, ...]:
    alone = len(players_of(facts)) < 2
    return (Absence("flow", Status.NOT_APPLICABLE, _alone(facts)),) if alone else ()


def _alone(facts: ModelFacts) -> str:
    return f"one component has states ({', '.join(players_of(facts))}), and all memory is its"


def _absences(memory: Status, why: str, share: str) -> tuple[Absence, Absence]:
    return Absence("flow.memory", memory, why), Absence("flow.share", Status.INCONCLUSIVE, share)


def _judged(evidence: Evidence, worth: Worth, negligible: float) -> Outcome:
    memory = mean_t(worth.memory(), evidence.generator("flow.memory"))
    shown, notes = _shown(evidence, worth), worth.notes
    measured = evidence.measure("flow.memory", memory, unit=worth.unit)
    if not memory.low > 0:
        said = f"{memory.value:.3g} [{memory.low:.3g}, {memory.high:.3g}] {worth.unit}"
        nothing = "there may be no memory to share: see flow.memory"
        if memory.high < negligible:
            why = "look for states that calls do not carry on, or that the output does not read"
            reason = f"no state carries information: other documents' states cost {said}, under {negligible:g}; {why}"
            return Outcome(absences=_absences(Status.FAIL, reason, nothing), shown=(measured, *shown), notes=notes)
        absent = Absence("flow.share", Status.INCONCLUSIVE, nothing)
        return Outcome((measured,), (absent,), shown, notes=notes)
    share = extreme(worth.shares, worth.n, evidence.generator("flow.share"), largest=False)
    least = worth.players[int(worth.shares(np.arange(worth.n)[None])[0].argmin())]
    judged = evidence.measure("flow.share", share, Where(component=least), unit="of the memory")
    series = _layer_series(worth.players, _means(worth.layers))
    return Outcome((measured, judged), shown=shown, series=series, notes=notes)


def _shown(evidence: Evidence, worth: Worth) -> tuple[Measurement, ...]:
    """What each component, and each of its layers, adds."""

    def mean(name: str, values: Array, where: Where) -> Measurement:
        estimate = mean_t(values, evidence.generator(f"flow.{name}.{where}"))
        return evidence.measure(name, estimate, where, unit=worth.unit)

    def share(column: int, where: Where) -> Measurement:
        estimate = bca(lambda i: worth.shares(i)[:, column], worth.n, evidence.generator(f"flow.share.{where}"))
        return evidence.measure("share of the memory", estimate, where, unit="of the memory")

    shown = []
    for column, player in enumerate(worth.players):
        where = Where(component=player)
        shown.append(share(column, where))
        shown += [mean(name, table[:, column], where) for name, table in worth.tables().items()]
    shown += [mean("last-in value", values, Where(*place)) for place, values in worth.layers.items()]
    return tuple(shown)


# The experiment ---------------------------------------------------------------------------------------------------


def _measured(evidence: Evidence, *, heads: bool) -> Worth:
    """The worth of memories near the training length; further down in models that take no more than that."""
    players, length = players_of(evidence.facts), evidence.training_length
    if len(players) > MOST_COMPONENTS:
        found = f"{len(players)} components have states"
        raise CapabilityMissing(f"{found}: all sets of them are tried, and 2 to {MOST_COMPONENTS} are taken")
    evidence.facts.require(Capability.SET_STATES)
    windows = evidence.streams(length + min(AFTER, length) + 1, name="flow")

    def worth(last: int, after: int) -> Worth:
        generator = evidence.generator("flow")
        return worth_of_memories(evidence.model, windows, boundaries(last), after, generator, heads=heads)

    try:
        return worth(length, min(AFTER, length))
    except ModelRaised:  # beyond its training length it has promised nothing
        after = min(AFTER, max(1, length // 2))
        note = f"the model takes no more than {length} tokens: it is cut {after} tokens before that"
        return replace(worth(max(1, length - after), after), notes=(note,))


def _means(values: Mapping[Key, Array]) -> dict[Key, float]:
    return {place: float(own.mean()) for place, own in values.items()}


def _layer_series(players: Sequence[str], rises: Mapping[Place, float]) -> tuple[Series, ...]:
    """The rise of the loss by each layer alone, as a share of the sum of all that are above 0."""
    total = sum(max(0.0, rise) for rise in rises.values()) or 1.0
    curves = []
    for player in players:
        own = {layer: max(0.0, rise) / total for (component, layer), rise in rises.items() if component == player}
        x = tuple(float(layer) for layer in own)
        curves.append(Series(LAYER_SHARES, player, x, tuple(own.values()), x_unit="layer", y_unit="of all layers"))
    return tuple(curves)


# The same in a notebook -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowReading:
    """Information flow as point estimates over `documents` documents; losses and their differences in `unit`.

    By component: `shares` of the memory (0..1), `shapley`, `first_in` and `last_in` values, `redundancy`. `total` is
    v(all) - v(none). `layers` and `heads` hold the rise of the loss when that (component, layer) or (component, layer,
    head) alone has another document's state, at the last of the `boundaries`; heads where a head axis is declared.
    """

    title: str
    documents: int
    unit: str
    boundaries: tuple[int, ...]
    total: float
    shares: dict[str, float]
    shapley: dict[str, float]
    first_in: dict[str, float]
    last_in: dict[str, float]
    redundancy: dict[str, float]
    layers: dict[Place, float]
    heads: dict[HeadPlace, float]
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """One line a component, a layer of one, and a head of that.

        Columns: component, layer, head, last_in (the rise of the loss when this place alone has another document's
        state), and for components share, shapley, first_in, redundancy.
        """
        import pandas as pd

        parts = {
            "share": self.shares,
            "shapley": self.shapley,
            "first_in": self.first_in,
            "redundancy": self.redundancy,
        }
        rows: list[dict[str, object]] = [
            {"component": name, "last_in": value, **{key: part[name] for key, part in parts.items()}}
            for name, value in self.last_in.items()
        ]
        rows += [{"component": c, "layer": layer, "last_in": value} for (c, layer), value in self.layers.items()]
        rows += [
            {"component": c, "layer": layer, "head": head, "last_in": value}
            for (c, layer, head), value in self.heads.items()
        ]
        frame = pd.DataFrame(rows, columns=["component", "layer", "head", "last_in", *parts])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def plot(self) -> Figure:
        """The shares of the layers, a curve a component."""
        curves = _layer_series(tuple(self.shares), self.layers)
        return plots.lines(LAYER_SHARES, list(curves))


class InformationFlowTracer:
    """The row `flow` as a tool: whose memory carries what the model knows, with its layers and heads.

    The computation is that of :func:`flow`, without its bootstrap: point estimates, so two documents are enough for a
    reading, where a verdict asks for 16.

    >>> from statecheck.adapters import wrap
    >>> from statecheck.testing.branches import AdditiveBranches
    >>> module = AdditiveBranches({"short": [(0.85, 0.06)], "long": [(0.95, 0.025)]})
    >>> documents = module.sample(16, 97)
    >>> names = {"short": "layers.*.short.h", "long": "layers.*.long.h"}
    >>> model = wrap(module, width=16, components=names, training_length=32)
    >>> reading = InformationFlowTracer().measure(model, documents)
    >>> max(reading.shares, key=reading.shares.get), round(sum(reading.shares.values()), 6)
    ('long', 1.0)
    """

    def measure(self, model: StatefulModel, inputs: Tensor | Sequence[Tensor], *, seed: int = 0) -> FlowReading:
        """Read `inputs` from no history up to boundaries near the training length and exchange states there.

        `inputs` are ids (batch, time), vectors (batch, time, features), or a sequence of documents; a row that is too
        short is continued with others. The model runs in evaluation mode without gradients; its modes, its states and
        the global random numbers are left as they were.

        Raises :class:`InputRefused` for fewer than two documents or inputs that do not fit the model, and
        :class:`CapabilityMissing` for a model whose states are all of one component, can't be put back, or that has no
        loss.
        """
        evidence = gather(model, inputs, seed=seed)
        if len(players_of(model.facts)) < 2:
            raise CapabilityMissing(f"information flow compares components with states: {_alone(model.facts)}")
        evidence.require_text()
        if len(evidence.rows) < 2:
            raise InputRefused("inputs: expected at least 2 documents, found 1: states are exchanged between documents")
        with lent(model):
            worth = _measured(evidence, heads=True)
        return _reading(model.facts.title, worth)


def _reading(title: str, worth: Worth) -> FlowReading:
    tables = {name: table.mean(axis=0) for name, table in worth.tables().items()}
    tables["share"] = worth.shares(np.arange(worth.n)[None])[0]
    named = {name: dict(zip(worth.players, row.tolist(), strict=True)) for name, row in tables.items()}
    return FlowReading(
        title,
        worth.n,
        worth.unit,
        worth.boundaries,
        total=float(worth.memory().mean()),
        shares=named["share"],
        shapley=named["Shapley value"],
        first_in=named["first-in value"],
        last_in=named["last-in value"],
        redundancy=named["redundancy"],
        layers=_means(worth.layers),
        heads=_means(worth.heads),
        note="; ".join(worth.notes),
    )
