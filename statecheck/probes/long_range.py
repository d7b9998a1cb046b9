"""D4: is a longer context read, is it of use, and does anything of it reach the state and the output?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from statecheck import states
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.experiments import calls, losses, read
from statecheck.probes.contract import Evidence
from statecheck.protocol import Capability, StatefulModel, States, fresh
from statecheck.recording import groups, values, walk
from statecheck.statistics import Estimate, Index, bca, exponentiated, extreme, mean_t
from statecheck.verdict import Absence, Measurement, Outcome, Series, Status, Where

BLOCK = 32  # target tokens of a block
BLOCKS = 2  # of a document, at every context length
GAIN_BLOCKS = 10  # of a document, at the two context lengths whose difference is D4.benefit: it is small
DOCUMENTS = 64  # for the losses; rows of one call
REACH_ROWS = 8

Ratios = Callable[[Index], Array]  # (resamples, n) documents -> log r(L), (resamples, lengths)


def remembers(
    evidence: Evidence, *, contexts: Sequence[int] = (64, 128, 256), lengths: Sequence[float] = (1.0, 2.0, 4.0)
) -> Outcome:
    """D4: the same targets after different amounts of context.

    Blocks of 32 target tokens, each after exactly L tokens of its document from no history; L in `contexts` and
    `lengths` x T_tr (T_tr < 64: T_tr/4, T_tr/2, T_tr, 2 T_tr). `D4.perplexity`: the largest over L of
    r(L) = exp(mean of nll(L) - nll(shortest), paired by target); vectors: the ratio of mean errors.
    `D4.benefit`: nll(64) - nll(256) in nats (vectors: the difference of log errors): what the longer context is worth.
    `D4.reach`: two inputs share their last L tokens and differ in all that is older, the shared tokens in a call of
    their own; the largest over units of the RMS difference of the states over that of unrelated documents; the
    smallest over L in {64, T_tr/2} (64: or T_tr, if less) and over positions up to 4 T_tr, aligned and unaligned, so
    that a reset anywhere shows as exactly 0. A linear state of retention a has a^L. A model whose memory is a cache
    alone has no such units: there it is the same of the outputs. `D4.readout`: relative difference of the outputs at
    one shared token after different pasts: 0 for an output that ignores the state.

    Losses need text, the others only states. Source: phase 3.9, D4.
    """
    reach = _reaches(evidence)
    loss = _losses(evidence, _context_lengths(evidence.training_length, contexts, lengths))
    return Outcome(
        (*loss.measurements, *reach.measurements),
        (*loss.absences, *reach.absences),
        (*loss.shown, *reach.shown),
        loss.series,
        loss.notes,
    )


def _context_lengths(training_length: int, contexts: Sequence[int], lengths: Sequence[float]) -> list[int]:
    if training_length < 64:
        return sorted({max(1, round(x * training_length)) for x in (0.25, 0.5, 1.0, 2.0)})
    return sorted({*contexts, *(round(x * training_length) for x in lengths)})


# What longer context is worth -------------------------------------------------------------------------------------


def _losses(evidence: Evidence, wanted: list[int]) -> Outcome:
    names = ("D4.perplexity", "D4.benefit")
    try:
        evidence.require_text()
    except CapabilityMissing as error:
        return Outcome(absences=tuple(Absence(name, Status.SKIP, str(error)) for name in names))
    lengths = _that_are_taken(evidence, _that_fit(evidence, wanted))
    rows = [row for row in evidence.rows if len(row) >= max(lengths, default=0) + BLOCK + 1][:DOCUMENTS]
    missing = evidence.too_few(names, len(rows))
    if len(lengths) < 2 or missing:
        reason = f"fewer than two of the contexts of {wanted} tokens fit into the documents and the model"
        return Outcome(absences=missing or tuple(Absence(n, Status.INCONCLUSIVE, reason) for n in names))
    ends = _nearest(lengths, 64, evidence.training_length), _nearest(lengths, 256, evidence.training_length)
    blocks = [GAIN_BLOCKS if i in ends else BLOCKS for i in range(len(lengths))]
    tables = [_block_losses(evidence, rows, c, max(lengths), b) for c, b in zip(lengths, blocks, strict=True)]
    left_out = [length for length in wanted if length not in lengths]
    notes = (f"contexts of {left_out} tokens do not fit into enough documents, or into the model",) if left_out else ()
    have = np.array([(len(row) - max(lengths)) // BLOCK for row in rows])
    table = np.stack([_mean(losses[:, :BLOCKS], have) for losses in tables], axis=1)  # (n, lengths)
    short, long = (_mean(tables[i], have) for i in ends)
    return _judged_losses(evidence, table, (short, long), lengths, ends, notes)


def _that_fit(evidence: Evidence, wanted: Sequence[int]) -> list[int]:
    """The context lengths after which at least 16 documents still have a block."""
    sizes = sorted((len(row) for row in evidence.rows), reverse=True)
    enough = sizes[15] if len(sizes) > 15 else sizes[-1]
    return [length for length in wanted if length + BLOCK + 1 <= enough]


@torch.no_grad()
def _that_are_taken(evidence: Evidence, lengths: list[int]) -> list[int]:
    """Without the longest ones, if the model raises there: beyond its training length it has promised nothing."""
    for i in range(len(lengths), 0, -1):
        needed = lengths[i - 1] + BLOCK
        row = next(row for row in evidence.rows if len(row) >= needed)
        if needed <= evidence.training_length:
            return lengths[:i]
        try:
            read(fresh(evidence.model), row[None, : needed - 1].to(evidence.facts.device))
        except ModelRaised:
            continue
        return lengths[:i]
    return []


def _block_losses(evidence: Evidence, rows: Sequence[Tensor], context: int, longest: int, blocks: int) -> Array:
    """Mean loss of each block of target tokens after exactly `context` tokens, (n, blocks); 0 past the document."""
    table = np.zeros((len(rows), blocks))
    for block in range(blocks):
        first = longest + block * BLOCK  # the first target's position; the same targets for every context
        inside = [i for i, row in enumerate(rows) if len(row) >= first + BLOCK]
        if not inside:
            break
        windows = torch.stack([rows[i][first - context : first + BLOCK] for i in inside]).to(evidence.facts.device)
        table[inside, block] = _block_loss(evidence.model, windows, context).mean(dim=1).numpy(force=True)
    return table


@torch.no_grad()
def _block_loss(model: StatefulModel, windows: Tensor, context: int) -> Tensor:
    """Loss of each of the last 32 elements of `windows` (n, context + 32), (n, 32). The targets are one call."""
    model = fresh(model)
    last = None
    for outputs in calls(model, windows[:, :context]):
        last = outputs[:, -1:]
    after = read(model, windows[:, context:-1])
    assert last is not None
    return losses(torch.cat([last, after], dim=1), windows[:, context:], model.facts.loss)


def _judged_losses(
    evidence: Evidence,
    table: Array,
    gain: tuple[Array, Array],
    lengths: list[int],
    ends: tuple[int, int],
    notes: tuple[str, ...],
) -> Outcome:
    """`table` (n, lengths) has the mean loss of each document; `gain` that after the two `ends`, on more blocks."""
    tokens = evidence.facts.loss == "cross_entropy"
    short, long = gain

    def ratios(index: np.ndarray) -> Array:
        """Logarithms of r(L)."""
        means = table[index].mean(axis=1) if tokens else _log(table[index].mean(axis=1))
        return means - means[:, :1]

    everyone = ratios(np.arange(len(table))[None])[0]
    worst = int(everyone[1:].argmax()) + 1
    estimate = extreme(lambda i: ratios(i)[:, 1:], len(table), evidence.generator("D4.perplexity"))
    gains = short - long if tokens else _log(short) - _log(long)
    benefit = mean_t(gains, evidence.generator("D4.benefit"))
    note = f"context of {lengths[ends[1]]} against {lengths[ends[0]]} tokens"
    measurements = (
        evidence.measure("D4.perplexity", exponentiated(estimate), Where(position=lengths[worst]), unit="x"),
        evidence.measure("D4.benefit", benefit, unit="nats", note=note),
    )
    shown = tuple(
        evidence.measure(f"loss after {length} tokens", mean_t(table[:, i], evidence.generator(f"D4.loss.{length}")))
        for i, length in enumerate(lengths)
    )
    return Outcome(
        measurements, shown=shown, series=(_curve(evidence, ratios, everyone, lengths, len(table)),), notes=notes
    )


def _log(errors: Array) -> Array:
    """Logarithms; of no error at all, that of the smallest number."""
    return np.log(np.maximum(errors, np.finfo(float).tiny))


def _mean(losses: Array, blocks: Index) -> Array:
    """Mean over the blocks that each document has; a NaN among those stays."""
    has = np.arange(losses.shape[1]) < blocks[:, None]
    return np.where(has, losses, 0.0).sum(axis=1) / has.sum(axis=1)


def _nearest(lengths: list[int], wanted: int, training_length: int) -> int:
    """Index of the context of `wanted` tokens; for short training lengths the first, and the training length."""
    if training_length >= 64:
        return min(range(len(lengths)), key=lambda i: abs(lengths[i] - wanted))
    return 0 if wanted == 64 else lengths.index(training_length) if training_length in lengths else len(lengths) - 1


def _curve(evidence: Evidence, ratios: Ratios, everyone: Array, lengths: list[int], n: int) -> Series:
    bands = [_band(evidence, ratios, column, length, n) for column, length in enumerate(lengths)]
    return Series(
        "loss ratio against context",
        "r(L)",
        tuple(map(float, lengths)),
        tuple(np.exp(np.minimum(everyone, 700)).tolist()),
        tuple(band.low for band in bands),
        tuple(band.high for band in bands),
        x_unit="tokens of context",
        y_unit="x the shortest",
    )


def _band(evidence: Evidence, ratios: Ratios, column: int, length: int, n: int) -> Estimate:
    return exponentiated(bca(lambda i: ratios(i)[:, column], n, evidence.generator(f"D4.curve.{length}")))


# What reaches the state and the output ----------------------------------------------------------------------------


def _reaches(evidence: Evidence) -> Outcome:
    names = ("D4.reach", "D4.readout")
    rows = min(REACH_ROWS, len(evidence.rows) // 3)
    if rows < 1:
        reason = f"{len(evidence.rows)} documents: two different pasts and a shared text need three"
        return Outcome(absences=tuple(Absence(name, Status.INCONCLUSIVE, reason) for name in names))
    documents = evidence.streams(4 * evidence.training_length, most=3 * rows, name="D4.reach")
    pasts, shared = documents[: 2 * rows], documents[2 * rows : 3 * rows].repeat(2, *[1] * (documents.dim() - 1))
    readout = _readout(evidence, pasts, shared)
    reach, shown = _least_reach(evidence, pasts, shared)
    both = (readout, reach)
    measurements = tuple(one for one in both if isinstance(one, Measurement))
    return Outcome(measurements, tuple(one for one in both if isinstance(one, Absence)), shown)


def _least_reach(
    evidence: Evidence, pasts: Tensor, shared: Tensor
) -> tuple[Measurement | Absence, tuple[Measurement, ...]]:
    try:
        found = [reach for length in _shared_lengths(evidence) for reach in _reach(evidence, pasts, shared, length)]
    except CapabilityMissing as error:
        return Absence("D4.reach", Status.SKIP, str(error)), ()
    if not found:
        reason = f"the model takes no more than {evidence.most_tokens} tokens: too few for a past and a shared text"
        return Absence("D4.reach", Status.INCONCLUSIVE, reason), ()
    broken = next((reach for reach in found if not np.isfinite(list(reach.places.values())).all()), None)
    if broken is not None:
        reason = f"states are not finite after {broken.past} tokens: see D1.nonfinite"
        return Absence("D4.reach", Status.INCONCLUSIVE, reason), ()
    least = min(found, key=lambda reach: reach.value)
    note = f"{least.length} shared tokens after {least.past}; the smallest of {len(found)} places"
    n = len(pasts) // 2
    judged = Measurement.exact("D4.reach", least.value, unit="relative", where=least.where, n=n, note=note)
    return judged, _by_layer(found)


def _shared_lengths(evidence: Evidence) -> list[int]:
    return sorted({min(64, evidence.training_length), max(1, evidence.training_length // 2)})


@dataclass(frozen=True)
class Reach:
    """What is left of different pasts after shared tokens: the largest ratio over the units of each layer, or over the
    outputs of a model that has no recurrent state."""

    length: int
    past: int
    places: dict[Where, float]

    @property
    def value(self) -> float:
        """The largest over all units of the model."""
        return max(self.places.values())

    @property
    def where(self) -> Where:
        """The layer with the longest memory, after this past."""
        place = max(self.places, key=lambda key: self.places[key])
        return replace(place, position=self.past + self.length)


@torch.no_grad()
def _reach(evidence: Evidence, pasts: Tensor, shared: Tensor, length: int) -> Iterator[Reach]:
    """Reach after each of several pasts. The first half of the rows and the second differ in the past alone."""
    model = evidence.model
    if {Capability.SET_STATES, Capability.RESET} <= model.facts.capabilities:
        for past, held, outputs in walk(model, pasts, _places(evidence, length)):
            model.set_states(states.clone(held))
            before = _units(evidence, held, outputs)
            outputs = read(model, shared[:, :length])
            yield Reach(length, past, _compared(before, _units(evidence, model.get_states(), outputs)))
            model.set_states(held)
        return
    for total in (512, 509, 4 * evidence.training_length):
        past = min(total, evidence.most_tokens) - length
        if past > 0:
            model = fresh(evidence.model)
            outputs = read(model, pasts[:, :past])
            before = _units(evidence, model.get_states(), outputs)
            outputs = read(model, shared[:, :length])
            yield Reach(length, past, _compared(before, _units(evidence, model.get_states(), outputs)))


def _places(evidence: Evidence, length: int) -> list[int]:
    """Lengths of the past, three quarters of `length` apart with a seeded jitter: every position up to 4 T_tr (or what
    the model takes) lies in some shared stretch, and no period of a reset is in step with all of them."""
    step, last = max(1, length * 3 // 4), evidence.most_tokens - length
    generator = evidence.generator(f"D4.places.{length}")
    regular = [*range(step, last, step), last]
    return sorted({max(1, p - int(generator.integers(0, max(1, step // 4)))) for p in regular if p > 0})


def _units(evidence: Evidence, held: States, outputs: Tensor) -> dict[Where, Tensor]:
    """What may differ after different pasts, (n, D) each: the states of every layer, else the last output."""
    layers = {group.where: values(held, evidence.facts, group) for group in groups(evidence.facts)}
    return layers or {Where(state="the output"): outputs[:, -1].double()}


def _compared(before: dict[Where, Tensor], after: dict[Where, Tensor]) -> dict[Where, float]:
    """The largest ratio over the units of each place; NaN where anything is not finite."""
    found = {}
    for place, then in before.items():
        now = after[place]
        shared, unrelated = _between_halves(now), _unrelated(then, now)
        usable = unrelated > 0
        if not bool(torch.isfinite(shared).all() & torch.isfinite(unrelated).all()):
            found[place] = float("nan")
        elif bool(usable.any()):
            found[place] = float((shared[usable] / unrelated[usable]).max())
        else:
            found[place] = 0.0
    return found


def _unrelated(then: Tensor, now: Tensor) -> Tensor:
    """RMS difference of unrelated documents, (D,): of the same pairs before the shared tokens, so that a linear unit
    has exactly a^L; of other rows after them for units that had none before (a delay line that was not yet full).

    0 for a unit without any but rounding.
    """
    pairs, half = _between_halves(then), len(now) // 2
    others = (now[:half] - now[:half].roll(1, dims=0)).square().mean(dim=0).sqrt()
    had = pairs > 1e-4 * then.square().mean().sqrt()
    has = others > 1e-4 * now.square().mean().sqrt()
    return torch.where(had, pairs, torch.where(has, others, 0.0))


def _between_halves(h: Tensor) -> Tensor:
    """RMS over rows of the difference between the first half of the rows and the second, (D,)."""
    half = len(h) // 2
    return (h[:half] - h[half:]).square().mean(dim=0).sqrt()


@torch.no_grad()
def _readout(evidence: Evidence, pasts: Tensor, shared: Tensor) -> Measurement | Absence:
    """Relative difference of the outputs at one shared token after different pasts."""
    model = fresh(evidence.model)
    read(model, pasts[:, : max(1, evidence.training_length // 2)])
    outputs = model(shared[:, :1])
    if not bool(torch.isfinite(outputs).all()):
        return Absence("D4.readout", Status.INCONCLUSIVE, "the output is not finite: see D1.nonfinite")
    half = len(outputs) // 2
    value = states.relative(outputs[:half], outputs[half:])
    return Measurement.exact("D4.readout", value, unit="relative", n=half)


def _by_layer(found: Sequence[Reach]) -> tuple[Measurement, ...]:
    """The median over places, for each layer and number of shared tokens."""
    shown = []
    for length in sorted({reach.length for reach in found}):
        places = [reach for reach in found if reach.length == length]
        for where in places[0].places:
            value = float(np.median([reach.places[where] for reach in places]))
            name = f"reach beyond {length} shared tokens"
            shown.append(Measurement.exact(name, value, unit="relative", where=where, n=len(places)))
    return tuple(shown)
