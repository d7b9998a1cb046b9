"""D1: does the state grow past the length that the model was trained at?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from statecheck.dynamics import Array, weights_of
from statecheck.probes.contract import Evidence
from statecheck.recording import GroupRecord, Part, Record, record
from statecheck.statistics import exponentiated, extreme
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where

CANDIDATES = 64  # channels with the largest point estimates, among which a resample looks for its maximum
FLOOR = 0.3  # of the group's RMS: a channel below it has no baseline of its own
STRESS_ROWS = 4  # of the constant-token and uniform streams


def diverges(evidence: Evidence) -> Outcome:
    """D1: the ratio of the state's RMS at four training lengths to its RMS at one.

    R = median over documents of RMS over positions (T - W, T] / RMS over (T0 - W, T0], T0 = T_tr, T = 4 T_tr,
    W = T_tr / 8. `D1.growth`: the largest R of any head (or whole tensor) of any layer. `D1.channel`: the same ratio
    of any single channel, energies pooled over documents, since explosions start in a few channels (a baseline under
    0.3 of its layer's RMS counts as that). `D1.silent`: layers with no norm at all at T0. `D1.nonfinite`: 1 if any
    state or output becomes NaN or infinite; `where` has the first position.

    For any non-negative retention of at most 1 under stationary drive R is at most 4 in expectation (2 under zero-mean
    drive): a = .9999 gives 1.9 / 3.9 (zero-mean / constant drive), 1.0 2 / 4, 1.003 11 / 18, 1.01 2,090 / 2,261 at
    T_tr = 256. Shown, not judged: R on constant tokens and on uniform tokens. A model that can't run 2 T_tr is
    INCONCLUSIVE. Bootstrap over documents, simultaneous over groups. Source: phase 3.9, D1.
    """
    trace = evidence.standard_record()
    finite = _finite(trace)
    series = tuple(_rms_series(trace, item) for item in trace.groups if item.rms)
    names = ["D1.growth", "D1.channel", "D1.silent"]
    missing = evidence.unfit(names, trace, trace.schedule.final)
    if missing:
        return Outcome((finite,), missing, series=series)
    if not any(item.baseline_square.any() for item in trace.groups):
        reason = "every recurrent state is exactly zero at the training length"
        return Outcome(
            (finite, _silent(trace)), tuple(Absence(n, Status.FAIL, reason) for n in names[:2]), series=series
        )
    found = (_growth(evidence, trace), _channel_growth(evidence, trace))
    judged = (finite, _silent(trace), *(one for one in found if isinstance(one, Measurement)))
    absent = tuple(one for one in found if isinstance(one, Absence))
    table, places = _parts(trace)
    each = zip(np.exp(np.median(table, axis=0)), places, strict=True) if places else ()
    shown = tuple(Measurement.exact("R", float(value), where=place, n=trace.n) for value, place in each)
    return Outcome(judged, absent, (*shown, *_stress(evidence, trace)), series, _shortened(trace))


def _finite(trace: Record) -> Measurement:
    if trace.nonfinite is None:
        return Measurement.exact("D1.nonfinite", 0, n=trace.n)
    position, what = trace.nonfinite
    state = next((name for name in what if name in trace.facts.states), None)
    facts = trace.facts.states[state] if state else None
    where = Where(facts.component, facts.layer, state=state, position=position) if facts else Where(position=position)
    return Measurement.exact(
        "D1.nonfinite", 1, where=where, n=trace.n, note=f"{', '.join(what)} after token {position}"
    )


def _silent(trace: Record) -> Measurement:
    """Groups whose states are exactly zero over the whole baseline window, in every document."""
    silent = [item.group.where for item in trace.groups if not item.baseline_square.any()]
    note = "; ".join(map(str, silent))
    return Measurement.exact("D1.silent", len(silent), where=silent[0] if silent else None, n=trace.n, note=note)


def _parts(trace: Record) -> tuple[Array, list[Where]]:
    """Log R of each document and part, (n, parts); parts without a baseline in any document are left out."""
    columns, places = [], []
    for item in trace.groups:
        for column, part in zip(item.growth().T, item.group.parts, strict=True):
            if np.isfinite(column).all() and (column > 0).all():
                columns.append(np.log(column))
                places.append(item.group.place(part))
    return (np.stack(columns, axis=1) if columns else np.empty((trace.n, 0))), places


def _channels(trace: Record) -> tuple[Array, Array, list[Where]]:
    """Mean squares (n, channels) at the baseline and at the end, of the channels whose ratio could be the largest.

    A baseline below 0.3 of its group's RMS counts as that: the ratio of a unit that is hardly ever written is
    noise until it shows beside the others.
    """
    first, last = [], []
    for item in trace.groups:
        first.append(np.maximum(item.baseline_square, (FLOOR**2) * item.baseline_square.mean()))
        last.append(item.final_square)
    before, after = np.concatenate(first, axis=1), np.concatenate(last, axis=1)
    places = [(item, i) for item in trace.groups for i in range(item.group.size)]
    total = before.sum(axis=0)
    ratio = np.where(total > 0, after.sum(axis=0) / np.where(total > 0, total, 1.0), -1.0)
    top = np.argsort(-ratio)[: min(CANDIDATES, np.count_nonzero(total))]
    return before[:, top], after[:, top], [places[i][0].group.channel(places[i][1]) for i in top]


def _growth(evidence: Evidence, trace: Record) -> Measurement | Absence:
    table, places = _parts(trace)
    if not places:
        reason = "every head is exactly zero at the training length in some document"
        return Absence("D1.growth", Status.INCONCLUSIVE, reason)
    estimate = extreme(lambda i: np.median(table[i], axis=1), trace.n, evidence.generator("D1.growth"))
    worst = places[int(np.median(table, axis=0).argmax())]
    return evidence.measure("D1.growth", exponentiated(estimate), worst, unit="x")


def _channel_growth(evidence: Evidence, trace: Record) -> Measurement | Absence:
    """Energies are pooled over documents first: a single unit of a single document is too noisy for a ratio."""
    first, last, places = _channels(trace)

    def log_ratios(index: np.ndarray) -> Array:
        weights = weights_of(index, trace.n)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = 0.5 * np.log((weights @ last) / (weights @ first))
        return np.where(np.isfinite(logs), logs, -np.inf)

    everyone = log_ratios(np.arange(trace.n)[None])[0]
    if not np.isfinite(everyone).any():
        return Absence("D1.channel", Status.INCONCLUSIVE, "no channel has a ratio")
    estimate = extreme(log_ratios, trace.n, evidence.generator("D1.channel"))
    return evidence.measure("D1.channel", exponentiated(estimate), places[int(everyone.argmax())], unit="x")


def _rms_series(trace: Record, item: GroupRecord) -> Series:
    """RMS of the state against position: median over documents with the middle 80 %."""
    table = np.stack(item.rms)  # (positions, n)
    low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=1)
    label = f"{item.group.component}, layer {item.group.layer}"
    x = tuple(float(p) for p in trace.positions)
    return Series(
        "state RMS", label, x, tuple(middle.tolist()), tuple(low.tolist()), tuple(high.tolist()), where=item.group.where
    )


def _shortened(trace: Record) -> tuple[str, ...]:
    times = trace.schedule.final / trace.schedule.baseline
    return () if times > 2 else (f"the model does not take 4 training lengths: R is taken at {times:g}",)


def _stress(evidence: Evidence, whole: Record) -> list[Measurement]:
    """R on a constant token and on uniform tokens (vectors: one vector repeated, and normal noise)."""
    streams = {"constant": _constant(evidence), "uniform": _uniform(evidence)}
    schedule = whole.schedule
    shown = []
    for title, inputs in streams.items():
        trace = record(evidence.model, inputs, schedule)
        if trace.reached < schedule.final:
            shown.append(
                Measurement.exact(f"R on {title} input", float("inf"), note=f"stopped after token {trace.reached}")
            )
            continue
        ratios = [(r, item.group.place(p)) for item in trace.groups for r, p in _medians(item)]
        if ratios:
            value, place = max(ratios, key=lambda pair: pair[0])
            shown.append(Measurement.exact(f"R on {title} input", value, where=place, n=trace.n))
    return shown


def _medians(item: GroupRecord) -> list[tuple[float, Part]]:
    """R of each part that has a baseline."""
    medians = np.median(item.growth(), axis=0)
    return [(float(r), part) for r, part in zip(medians, item.group.parts, strict=True) if np.isfinite(r)]


def _constant(evidence: Evidence) -> Tensor:
    """One element of the documents, repeated."""
    first = evidence.streams(1, most=STRESS_ROWS, name="D1.constant")
    return first.expand(-1, evidence.schedule().final, *first.shape[2:])


def _uniform(evidence: Evidence) -> Tensor:
    generator = torch.Generator().manual_seed(int(evidence.generator("D1.uniform").integers(2**31)))
    length, facts = evidence.schedule().final, evidence.facts
    if facts.inputs == "tokens":
        assert facts.vocabulary is not None
        return torch.randint(0, facts.vocabulary, (STRESS_ROWS, length), generator=generator).to(facts.device)
    like = evidence.rows[0]
    noise = torch.randn(STRESS_ROWS, length, like.shape[1], generator=generator).to(facts.device, like.dtype)
    return noise * like.float().std().to(like.dtype)
