"""S0-S3: the state exists as declared, is finite and of sane scale, depends on the input, and is deterministic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from statecheck import dynamics, states
from statecheck.errors import CapabilityMissing
from statecheck.probes.contract import Evidence
from statecheck.protocol import ModelFacts, StateFacts, StatefulModel, States
from statecheck.recording import Group, Record, walk
from statecheck.statistics import extreme
from statecheck.verdict import Absence, Measurement, Outcome, Status, Where

SHORT = 8  # tokens of S0, and no more than the training length
LONG = 64  # tokens of S2.isolation and S3, and no more than the training length


def declared(evidence: Evidence) -> Outcome:
    """S0: do the states that the model returns equal what its facts declare, and is dimension 0 the batch?

    After one token of 2 and of 3 rows, names, shapes and dtypes of `get_states()` equal `facts.states`; after more
    tokens names and dtypes are the same and shapes differ along a declared time axis alone. `S0.changed` counts the
    differences (exact).

    Source: phase 3.9, S0.
    """
    inputs = _rows(evidence, 3, SHORT)
    found: list[tuple[Where, str]] = []
    for batch in (2, 3):
        for position, held, _ in walk(evidence.model, inputs[:batch], sorted({1, inputs.shape[1]})):
            found += _differences(held, evidence.facts, batch, grown=position > 1)
    place = found[0][0] if found else Where()
    note = "; ".join(dict.fromkeys(text for _, text in found))
    return Outcome((Measurement.exact("S0.changed", len(found), unit="differences", where=place, note=note),))


def _differences(found: Mapping[str, Tensor], facts: ModelFacts, batch: int, *, grown: bool) -> list[tuple[Where, str]]:
    lost = [(_place(facts, name), f"{name} is declared and not returned") for name in facts.states if name not in found]
    extra = [(Where(state=name), f"{name} is returned and not declared") for name in found if name not in facts.states]
    both = [(name, facts.states[name], found[name]) for name in facts.states if name in found]
    wrong = [
        (_place(facts, name), text)
        for name, state, value in both
        for text in _mismatch(name, state, value, batch, grown)
    ]
    return lost + extra + wrong


def _mismatch(name: str, state: StateFacts, value: Tensor, batch: int, grown: bool) -> list[str]:
    expected, shape = [batch, *state.shape], list(value.shape)
    if grown and state.time_axis is not None and state.time_axis < len(shape):
        expected[state.time_axis] = shape[state.time_axis]
    problems = []
    if shape != expected:
        problems.append(f"{name} has shape {tuple(shape)} for {batch} rows, expected {tuple(expected)}")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != state.dtype:
        problems.append(f"{name} has dtype {dtype}, expected {state.dtype}")
    return problems


def _place(facts: ModelFacts, name: str) -> Where:
    state = facts.states[name]
    return Where(component=state.component, layer=state.layer, state=name)


def sane(evidence: Evidence) -> Outcome:
    """S1: are all states finite, none of them all zero, and far from the largest number of their dtype?

    Over the shared trace (4 training lengths): `S1.nonfinite` (1 if any state or output is NaN or infinite; `where`
    has the first position), `S1.zero` (layers whose state is always exactly zero), `S1.magnitude` (largest magnitude
    over the dtype's maximum; the worst layer).

    Source: phase 3.9, S1.
    """
    record = evidence.standard_record()
    finite = nonfinite_measurement("S1.nonfinite", evidence, record)
    if not record.positions:
        reason = "nothing is finite after the first token: see S1.nonfinite"
        return Outcome((finite,), tuple(Absence(f"S1.{x}", Status.INCONCLUSIVE, reason) for x in ("zero", "magnitude")))
    if not record.groups:
        return Outcome((finite,), evidence.unfit(("S1.zero", "S1.magnitude"), record, 0))
    zero = [item.group.where for item in record.groups if item.largest == 0]
    magnitudes = [item.largest / _limit(evidence.facts, item.group) for item in record.groups]
    worst = int(np.argmax(magnitudes))
    measurements = (
        finite,
        Measurement.exact(
            "S1.zero",
            len(zero),
            unit="layers",
            where=zero[0] if zero else None,
            n=record.n,
            note="; ".join(map(str, zero)),
        ),
        Measurement.exact("S1.magnitude", magnitudes[worst], where=record.groups[worst].group.where, n=record.n),
    )
    shown = tuple(
        Measurement.exact("largest magnitude", item.largest, where=item.group.where, n=record.n)
        for item in record.groups
    )
    return Outcome(measurements, shown=shown)


def _limit(facts: ModelFacts, group: Group) -> float:
    """The largest number of the group's narrowest dtype."""
    return min(torch.finfo(getattr(torch, facts.states[name].dtype)).max for name in group.names)


def nonfinite_measurement(name: str, evidence: Evidence, record: Record) -> Measurement:
    """1 with the first position and the state's layer if anything is not finite, else 0."""
    if record.nonfinite is None:
        return Measurement.exact(name, 0, n=record.n)
    position, what = record.nonfinite
    states_hit = [name for name in what if name in evidence.facts.states]
    place = _place(evidence.facts, states_hit[0]) if states_hit else Where()
    where = Where(component=place.component, layer=place.layer, state=place.state, position=position)
    note = f"{', '.join(what)} not finite after token {position}{_nonfinite_weights(evidence.model)}"
    return Measurement.exact(name, 1, where=where, n=record.n, note=note)


def _nonfinite_weights(model: StatefulModel) -> str:
    module = getattr(model, "module", None)
    if not isinstance(module, torch.nn.Module):
        return ""
    bad = [name for name, p in module.named_parameters() if p.is_floating_point() and not torch.isfinite(p).all()]
    return f"; the weights themselves are not finite: {', '.join(bad[:5])}" if bad else ""


def input_dependent(evidence: Evidence) -> Outcome:
    """S2: do different inputs give different states, each row its own?

    `S2.dependence`: I = sum_i Var_docs(h_i) / E||h||^2 at the training length (mean of 4 positions, documents not
    matched at the last token), all layers of a component together; the smallest component.
    `S2.isolation`: the rows of a batch are kept while their neighbours are changed (even rows kept, odd changed, then
    the reverse); largest relative change of a kept row's state or output, beyond ten times that of two equal runs.

    Source: phase 3.9, S2; I is science note C1.
    """
    isolation = _isolation(evidence)
    try:
        record = evidence.standard_record()
    except CapabilityMissing as error:
        return Outcome((isolation,), (Absence("S2.dependence", Status.SKIP, str(error)),))
    missing = evidence.unfit(["S2.dependence"], record, record.schedule.baseline)
    if missing:
        return Outcome((isolation,), missing)
    components = list(dict.fromkeys(item.group.component for item in record.groups))
    grams = [_component_grams(record, component) for component in components]

    def table(weights: dynamics.Array) -> dynamics.Array:
        return np.stack([dynamics.dependence(weights, gram) for gram in grams], axis=1)

    everyone = table(np.ones((1, record.n)))[0]
    worst = int(np.argmin(everyone))
    estimate = extreme(
        lambda i: table(dynamics.weights_of(i, record.n)), record.n, evidence.generator("S2"), largest=False
    )
    judged = evidence.measure("S2.dependence", estimate, Where(component=components[worst]))
    shown = tuple(
        Measurement.exact("dependence on the input", float(v), where=Where(component=c), n=record.n)
        for c, v in zip(components, everyone, strict=True)
    )
    return Outcome((judged, isolation), shown=shown)


def _component_grams(record: Record, component: str) -> list[dynamics.Array]:
    """h h^T at each position, h all states of the component."""
    own = [item.grams for item in record.groups if item.group.component == component]
    return [np.sum(parts, axis=0) for parts in zip(*own, strict=True)]


def _isolation(evidence: Evidence) -> Measurement:
    inputs = _rows(evidence, 8, LONG)
    other = _otherwise(inputs, evidence.facts)
    kept = torch.arange(len(inputs)) % 2 == 0
    base = _run(evidence.model, inputs)
    floor = _worst_change(base, _run(evidence.model, inputs), torch.ones_like(kept), evidence.facts)[0]
    worst, place = 0.0, Where()
    for rows in (kept, ~kept):
        mask = rows.to(inputs.device).view(-1, *[1] * (inputs.dim() - 1))
        changed = _run(evidence.model, torch.where(mask, inputs, other))
        value, where = _worst_change(base, changed, rows, evidence.facts)
        if value > worst:
            worst, place = value, where
    beyond = max(0.0, worst - 10 * floor)
    return Measurement.exact("S2.isolation", beyond, where=place if beyond else None, n=len(inputs), unit="relative")


def _otherwise(inputs: Tensor, facts: ModelFacts) -> Tensor:
    """Inputs that differ from `inputs` everywhere."""
    if facts.inputs == "tokens":
        assert facts.vocabulary is not None
        return (inputs + 1 + inputs.flip(1)) % facts.vocabulary
    return -inputs.flip(1) - 0.5


def _run(model: StatefulModel, inputs: Tensor) -> States:
    """States after `inputs` from no history, with the outputs beside them."""
    _, held, outputs = next(walk(model, inputs, [inputs.shape[1]]))
    return {**held, "the output": outputs}


def _worst_change(a: States, b: States, keep: Tensor, facts: ModelFacts) -> tuple[float, Where]:
    rows = torch.nonzero(keep).flatten()
    worst, place = 0.0, Where()
    for name in a:
        batched = a[name].shape == b[name].shape and a[name].shape[0] == len(keep)
        value = states.relative(a[name][rows], b[name][rows]) if batched else states.relative(a[name], b[name])
        if value > worst:
            worst, place = value, _place(facts, name) if name in facts.states else Where(state=name)
    return worst, place


def deterministic(evidence: Evidence) -> Outcome:
    """S3: does the same input give the same state? Two runs from no history, same batch, same threads.

    `S3.difference`: the largest relative difference ||a - b|| / max(||a||, ||b||) of any state or of the output after
    64 tokens (exact).

    Source: phase 3.9, S3.
    """
    inputs = _rows(evidence, 4, LONG)
    value, where = _worst_change(
        _run(evidence.model, inputs), _run(evidence.model, inputs), torch.ones(4, dtype=torch.bool), evidence.facts
    )
    return Outcome((Measurement.exact("S3.difference", value, where=where, n=4, unit="relative"),))


def _rows(evidence: Evidence, n: int, length: int) -> Tensor:
    """(n, length) inputs, no longer than the training length; documents repeat if there are fewer than n."""
    streams = evidence.streams(min(length, evidence.training_length), most=n)
    return streams[torch.arange(n) % len(streams)]
