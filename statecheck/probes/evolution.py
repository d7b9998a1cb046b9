"""G3.5: does the state evolve with what is read, and do its units have room to move?"""

from __future__ import annotations

import numpy as np

from statecheck import dynamics
from statecheck.probes.contract import Evidence
from statecheck.recording import Record
from statecheck.statistics import extreme
from statecheck.verdict import Absence, Measurement, Outcome, Status


def evolves(evidence: Evidence) -> Outcome:
    """G3.5: is the state a lag ago another one, and are few units at their bound?

    `G3.5.cosine`: cosine of h(t) and h(t - k), each minus its mean over documents at that position, k = min(64,
    T_tr/4); the mean over documents and over t >= T_tr/4, a (component, layer); the largest counts. A linear state of
    retention a under independent input has a^k.
    `G3.5.pinned`: a unit is pinned when half of its values over (documents, positions) lie within 1 % of its own
    largest magnitude; share of pinned units, a (component, layer); the largest counts.
    Shown: the raw cosine at lag 1, which is near the retention for every slow state and says nothing about health.

    Bootstrap over documents, simultaneous over groups. Source: phase 3.9, G3.5.
    """
    record = evidence.standard_record()
    missing = evidence.unfit(["G3.5.cosine", "G3.5.pinned"], record, record.schedule.baseline)
    if missing:
        return Outcome(absences=missing)
    cosines, frozen = _cosines(evidence, record)
    shown = [
        Measurement.exact("raw cosine at lag 1", float(np.mean(item.raw)), where=item.group.where, n=record.n)
        for item in record.groups
        if item.raw
    ]
    return Outcome((*cosines, _pinned(evidence, record)), frozen, tuple(shown))


def _cosines(evidence: Evidence, record: Record) -> tuple[tuple[Measurement, ...], tuple[Absence, ...]]:
    moving = [item for item in record.groups if item.moves]
    frozen = tuple(
        Absence(
            "G3.5.cosine", Status.FAIL, "no variance across documents: the state is the same for all", item.group.where
        )
        for item in record.groups
        if item not in moving
    )
    if not moving:
        return (), frozen
    table = np.stack([item.cosine() for item in moving], axis=1)  # (n, groups)
    estimate = extreme(lambda i: table[i].mean(axis=1), record.n, evidence.generator("G3.5.cosine"))
    worst = moving[int(table.mean(axis=0).argmax())]
    note = f"lag {record.schedule.lag}"
    return (evidence.measure("G3.5.cosine", estimate, worst.group.where, note=note),), frozen


def _pinned(evidence: Evidence, record: Record) -> Measurement:
    tables = [item.pinned() for item in record.groups]

    def shares(weights: dynamics.Array) -> dynamics.Array:
        return np.stack([dynamics.pinned_share(weights, *table) for table in tables], axis=1)

    worst = int(shares(np.ones((1, record.n)))[0].argmax())
    estimate = extreme(lambda i: shares(dynamics.weights_of(i, record.n)), record.n, evidence.generator("G3.5.pinned"))
    return evidence.measure("G3.5.pinned", estimate, record.groups[worst].group.where, unit="of units")
