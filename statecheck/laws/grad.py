"""GRAD: gradients are there with default flags, finite, right, and flow through a state that is carried."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from statecheck.deviation import Deviation, deviation
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.histories.drawing import long_lengths, rows, seeds, values
from statecheck.histories.playing import plain
from statecheck.laws.contract import WORTH, WORTH_OF_GRADIENTS, Evidence, Held, Outcome, floor_of, probe, run_search
from statecheck.noise import copied, default_dtype, float64_twin, nudged, widened
from statecheck.protocol import Capability, StatefulModel, fresh
from statecheck.slopes import Gradients, apart, gradients, slope_error
from statecheck.verdict import Absence, Measurement, Status

Case = tuple[int, int, int]  # rows, length, seed
Carried = tuple[int, int, int, int]  # rows, elements before the cut, behind it, seed
MOST_SLOPES = 48  # parameters whose gradients are compared with differences of the loss
FAINT = 1e-2  # of the largest gradient: below it a difference of losses says little
LENGTH = 12  # elements of the call on which slopes are measured


@probe("GRAD", "Gradients are there, finite and right, through the state too", cost="gradients in float32 and float64")
def gradients_right(evidence: Evidence) -> Outcome:
    """Are the gradients of the parameters those of the function that the model computes?

    GRAD.native       of a whole call as training makes it, without a cache where there is one, against the same in
                      float64; in floors of gradients (how far they move when every parameter does by a unit in its
                      last place), infinite for NaN or an error
    GRAD.slope        against central differences of the loss in float64, parameter by parameter, relative
    GRAD.functional   of outputs behind a cut, the state carried over it by get_states and set_states, against those of
                      one call over all, in floors; SKIP where no gradient reaches a state that is given
    GRAD.missing      parameters that get no gradient at all

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = gradients_right(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < (1e-3 if m.unit == "relative" else 30)) for m in found.measurements]
    [('GRAD.native', True), ('GRAD.slope', True), ('GRAD.functional', True), ('GRAD.missing', True)]
    """
    if evidence.effort.case:
        raise CapabilityMissing("GRAD has no case of its own to look at: leave --case out")
    twin = copied(evidence.model)
    if twin is None:
        raise CapabilityMissing("the model can't be copied: its gradients are left alone")
    twin = cast(StatefulModel, twin)
    if not any(value.requires_grad for value in _module(twin).parameters()):
        reason = "the model has no parameters that take gradients"
        return Outcome(
            absences=tuple(Absence(f"GRAD.{p}", Status.NOT_APPLICABLE, reason) for p in ("native", *_OTHERS))
        )
    try:
        floor = _floor(evidence, twin)
    except ModelRaised as error:
        failed = Measurement.exact("GRAD.native", float("inf"), unit="floors", note=str(error))
        return Outcome((failed,), tuple(Absence(f"GRAD.{p}", Status.SKIP, str(error)) for p in _OTHERS))
    parts = [_native(evidence, twin, floor), _slope(evidence), _functional(evidence, twin, floor)]
    held = [part.measurement for part in parts if isinstance(part, Held)]
    return Outcome(
        (*held, _missing(evidence, twin)),
        tuple(part for part in parts if isinstance(part, Absence)),
        (Measurement.exact("gradient floor", floor, unit="relative"),),
    )


_OTHERS = ("slope", "functional", "missing")


def _module(model: StatefulModel) -> nn.Module:
    return model.module  # type: ignore[attr-defined]


def _of(model: StatefulModel, inputs: Tensor) -> Gradients:
    return gradients(_module(model), lambda: plain(model, inputs))


def _floor(evidence: Evidence, twin: StatefulModel) -> float:
    """How far gradients move when every parameter does by a unit in its last place; of three draws the largest."""
    inputs = values(evidence.facts, 2, LENGTH, evidence.seed)
    generator = torch.Generator().manual_seed(evidence.seed)
    own = _of(twin, inputs)
    moved = [apart(_of(nudged(evidence.model, generator), inputs), own)[0] for _ in range(3)]
    spacing = torch.finfo(getattr(torch, evidence.facts.dtype)).eps
    return max([spacing, *(error for error in moved if error < float("inf"))])


def _native(evidence: Evidence, twin: StatefulModel, floor: float) -> Held | Absence:
    name, truth = "GRAD.native", float64_twin(evidence.model)
    assert truth is not None

    def measure(case: Case) -> Deviation:
        inputs = values(evidence.facts, *case)
        try:
            with default_dtype(torch.float64):
                expected = _of(truth, widened(inputs))
        except ModelRaised as error:
            raise CapabilityMissing(f"there is nothing to compare with: in float64, {error}") from error
        try:
            found, outputs = _of(twin, inputs), _outputs(twin, inputs)
        except ModelRaised as raised:
            return Deviation(float("inf"), str(raised))
        wrong = [key for key, value in found.items() if not bool(torch.isfinite(value).all())]
        if wrong and bool(torch.isfinite(outputs).all()):  # in float64 as well, perhaps
            return Deviation(float("inf"), f"not finite for parameter {wrong[0]}, though outputs are")
        furthest, parameter = apart(found, expected)
        return Deviation(furthest, f"largest for parameter {parameter}")

    drawn = st.tuples(rows(), long_lengths(evidence.facts), seeds())
    return run_search(evidence, name, drawn, measure, floor=floor, worth=WORTH_OF_GRADIENTS)


def _slope(evidence: Evidence) -> Held | Absence:
    name, truth = "GRAD.slope", float64_twin(evidence.model)
    assert truth is not None
    inputs = widened(values(evidence.facts, 2, LENGTH, evidence.seed))
    with default_dtype(torch.float64):
        try:
            found = _of(truth, inputs)
        except ModelRaised as error:
            return Absence(name, Status.SKIP, f"in float64: {error}")
        largest = max((value.norm().item() / value.numel() ** 0.5 for value in found.values()), default=0.0)
        named, padding = dict(_module(truth).named_parameters()), _padding_rows(_module(truth))
        chosen = evidence.generator(name).permutation(sorted(found))[:MOST_SLOPES]
        call, least = partial(_outputs, truth, inputs), FAINT * largest
        tried = {
            key: slope_error(named[key], found[key], call, least, seed=evidence.seed, still=padding.get(key))
            for key in chosen
        }
    errors = {key: error for key, error in tried.items() if error is not None}
    if not errors:
        return Absence(
            name, Status.INCONCLUSIVE, "no two differences of the loss agree: it bends, or rounding hides it"
        )
    worst = max(errors, key=lambda key: errors[key])
    note = f"largest for {worst}; of {len(tried)} parameters {len(errors)} can be told"
    return Held(Measurement.exact(name, errors[worst], unit="relative", n=len(errors), note=note))


def _padding_rows(module: nn.Module) -> dict[str, int]:
    """Rows of embeddings that torch gives no gradient on purpose, by the parameter's name."""
    return {
        f"{name}.weight": child.padding_idx
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding) and child.padding_idx is not None
    }


def _outputs(model: StatefulModel, inputs: Tensor) -> Tensor:
    return plain(model, inputs)


def _functional(evidence: Evidence, twin: StatefulModel, floor: float) -> Held | Absence:
    name = "GRAD.functional"
    found = evidence.facts.capabilities & {Capability.GRADIENT_SEQUENCE, Capability.GRADIENT_STEP}
    if not found:
        return Absence(name, Status.SKIP, evidence.facts.missing.get(Capability.GRADIENT_SEQUENCE, "not declared"))
    whole = Capability.GRADIENT_SEQUENCE in found

    def measure(case: Carried) -> Deviation:
        count, before, behind, seed = case
        inputs = values(evidence.facts, count, before + behind, seed)
        outputs = fresh(twin)(inputs)[:, before:]  # what raises up to here is for CHUNK and STEP to tell
        if deviation(_cut(twin, inputs, before, in_one_call=whole), outputs).error > WORTH * floor_of(evidence).value:
            raise CapabilityMissing("what is read behind the cut differs already: see CHUNK and STEP")
        expected = gradients(_module(twin), lambda: fresh(twin)(inputs)[:, before:])
        try:
            carried = gradients(_module(twin), lambda: _cut(twin, inputs, before, in_one_call=whole))
        except ModelRaised as raised:
            return Deviation(float("inf"), str(raised))
        error, parameter = apart(carried, expected)
        return Deviation(error, f"largest for parameter {parameter}")

    drawn = st.tuples(rows(), st.integers(1, 12), st.integers(2, 6), seeds())
    return run_search(evidence, name, drawn, measure, floor=floor, worth=WORTH_OF_GRADIENTS)


def _cut(model: StatefulModel, inputs: Tensor, before: int, *, in_one_call: bool) -> Tensor:
    """Outputs behind a cut over which the state is carried as a value."""
    model = fresh(model)
    model(inputs[:, :before])
    rest = inputs[:, before:]
    outputs = []
    for part in (rest,) if in_one_call else rest.split(1, dim=1):
        model.set_states(model.get_states())
        outputs.append(model(part))
    return torch.cat(outputs, dim=1)


def _missing(evidence: Evidence, twin: StatefulModel) -> Measurement:
    inputs = values(evidence.facts, 3, LENGTH, evidence.seed)
    found = _of(twin, inputs)
    named = [name for name, value in _module(twin).named_parameters() if value.requires_grad]
    idle = [name for name in named if name not in found or not bool(found[name].any())]
    note = f"without a gradient: {', '.join(idle[:5])}" if idle else ""
    return Measurement.exact("GRAD.missing", len(idle), unit="parameters", n=len(named), note=note)
