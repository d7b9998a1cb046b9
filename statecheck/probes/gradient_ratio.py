"""gradient-ratio: does the loss pull at the parameters of both components alike?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from statecheck import states as functions
from statecheck.adapters.contract import matches
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing, ModelRaised
from statecheck.experiments import loss_scale, losses
from statecheck.gradients import differentiable, gradients_of
from statecheck.probes.contract import ENOUGH_DOCUMENTS, Evidence
from statecheck.protocol import Capability, ModelFacts, StatefulModel, fresh
from statecheck.statistics import bca, exponentiated
from statecheck.verdict import Absence, Measurement, Outcome, Status, Where

WINDOWS = 2  # of a training length each, side by side: one batch
NAME = "gradient-ratio.first_to_second"

Parameters = Mapping[str, nn.Parameter]


def balanced(evidence: Evidence, *, predicted: Sequence[float] = (0.20, 0.46)) -> Outcome:
    """gradient-ratio: the norm of the gradient of the first component's parameters over that of the second's.

    Gradients of the mean loss of a batch, in evaluation mode and unclipped; a batch is two windows of a training
    length, side by side, from one document (one from shorter ones), each from no history: n documents are n batches.
    `gradient-ratio.first_to_second`: the median over batches; bootstrap over documents. First and second are the first
    two of `facts.components`; the parameters of a component are those that its patterns name, so that shared norms,
    fusion gates and embeddings, which no pattern names, are in neither. Parameters that were frozen count all the same.
    A component whose gradient is zero or not finite fails by name.

    Shown: the same ratio of gradients per parameter (RMS), and of |gradient| |parameters|, which stays when a
    component's parameters are scaled and its activations scaled back. For components named rwkv and mamba on byte pairs
    a note says whether the ratio lies in the `predicted` band. NOT_APPLICABLE with one component. Source: phase 3.9.
    """
    missing = evidence.incomparable(["gradient-ratio"])
    if missing:
        return Outcome(absences=missing)
    evidence.require_text()
    parameters = parameters_of(evidence.model, list(evidence.facts.components)[:2])
    missing = evidence.too_few([NAME])
    if missing:
        return Outcome(absences=missing)
    norms = _norms(evidence, parameters)
    broken = _broken(norms)
    if broken:
        return Outcome(absences=broken, notes=_notes(evidence.facts, parameters))
    return _judged(evidence, parameters, norms, predicted)


def parameters_of(model: StatefulModel, components: Sequence[str]) -> dict[str, Parameters]:
    """The parameters of each of `components`, by name: real or complex numbers, each once, whatever else holds it.

    Raises :class:`CapabilityMissing` with the fix for a component without any, and for a parameter of two of them.
    """
    module = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        raise CapabilityMissing("the model shows no module whose parameters could be read")
    named = [
        (n, p)
        for n, p in module.named_parameters(remove_duplicate=False)
        if p.dtype.is_floating_point or p.is_complex()
    ]
    found: dict[str, Parameters] = {}
    owners: dict[int, str] = {}
    for component in components:
        patterns = model.facts.components[component].parameters
        own = {id(value): (name, value) for name, value in named if matches(name, patterns)}
        if not own:
            said = " or ".join(patterns) or "no pattern is given"
            raise CapabilityMissing(
                f"component {component!r} has no parameters ({said}): say"
                f" wrap(..., parameters={{{component!r}: PATTERNS}})"
            )
        for key, (name, _) in own.items():
            if owners.setdefault(key, component) != component:
                both = f"{owners[key]} and {component}"
                raise CapabilityMissing(f"parameter {name!r} belongs to {both}: give it to one or to none")
        found[component] = dict(own.values())
    return found


# The gradients ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Norms:
    """Norms of the gradient of each batch, (n,), and of the parameters of a component, which are `size` numbers."""

    gradients: Array
    parameters: float
    size: int


def _norms(evidence: Evidence, parameters: Mapping[str, Parameters]) -> dict[str, _Norms]:
    batches = _batches(evidence)
    scale = loss_scale(batches.flatten(0, 1), evidence.facts)
    everything = [value for own in parameters.values() for value in own.values()]
    squares = {component: np.empty(len(batches)) for component in parameters}
    with _thawed(everything):
        for i, batch in enumerate(batches):
            slopes = iter(_gradients(evidence.model, batch, everything))
            for component, own in parameters.items():
                squares[component][i] = sum(_square(next(slopes)) for _ in own) / scale**2
    return {
        component: _Norms(
            np.sqrt(squares[component]),
            math.sqrt(sum(_square(value) for value in own.values())),
            sum(value.numel() for value in own.values()),
        )
        for component, own in parameters.items()
    }


def _square(value: Tensor) -> float:
    return float(functions.wide(value.detach()).abs().square().sum())


def _batches(evidence: Evidence) -> Tensor:
    """(n, windows, T_tr + 1[, features]): the same number of windows from all documents, one after the other.

    As many as at least 16 documents have in full; a document that has fewer is continued with others.
    """
    length = evidence.training_length
    sizes = sorted((len(row) for row in evidence.rows), reverse=True)
    windows = min(WINDOWS, max(1, (sizes[min(len(sizes), ENOUGH_DOCUMENTS) - 1] - 1) // length))
    stream = evidence.streams(windows * length + 1, name="gradient-ratio")
    return stream.unfold(1, length + 1, length).movedim(-1, 2)


def _gradients(model: StatefulModel, batch: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the mean loss of one batch (windows, T_tr + 1), read in one call as in training."""
    model = fresh(model)
    with differentiable():
        try:
            outputs = model(batch[:, :-1])
        except ModelRaised as error:
            if Capability.CHUNKS in model.facts.capabilities and "nference tensor" not in str(error):
                raise
            raise CapabilityMissing(f"no sequence can be read in one call with gradients: {error}") from error
        total = losses(outputs, batch[:, 1:], model.facts.loss).mean()
        return gradients_of(total, parameters)


@contextmanager
def _thawed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Frozen parameters ask for gradients while the block runs."""
    frozen = [value for value in parameters if not value.requires_grad]
    try:
        for value in frozen:
            value.requires_grad_(True)
        yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise CapabilityMissing("the parameters were loaded in inference mode: they can get no gradients") from error
    finally:
        for value in frozen:
            if value.requires_grad:
                value.requires_grad_(False)


# What is said of them ---------------------------------------------------------------------------------------------


def _broken(norms: Mapping[str, _Norms]) -> tuple[Absence, ...]:
    """A failure by name for each component whose gradient is zero or not finite in some batch."""
    found = []
    for component, measured in norms.items():
        own = measured.gradients
        zero, infinite = int(np.count_nonzero(own == 0)), int(np.count_nonzero(~np.isfinite(own)))
        if zero or infinite:
            what = f"zero in {zero}" if zero else f"not finite in {infinite}"
            reason = f"the gradient of the parameters of {component} is {what} of {len(own)} batches"
            found.append(Absence(NAME, Status.FAIL, reason, Where(component=component)))
    return tuple(found)


def _judged(
    evidence: Evidence, parameters: Mapping[str, Parameters], norms: Mapping[str, _Norms], predicted: Sequence[float]
) -> Outcome:
    (first, a), (second, b) = norms.items()
    logs = np.log(a.gradients) - np.log(b.gradients)
    estimate = bca(lambda i: np.median(logs[i], axis=1), len(logs), evidence.generator("gradient-ratio"))
    ratio = exponentiated(estimate)
    band = _band(evidence.facts, first, second, ratio.value, predicted)
    judged = evidence.measure(NAME, ratio, unit="x", note=f"{first} over {second}{band}")
    factors = {
        "ratio of gradients per parameter (RMS)": math.sqrt(b.size / a.size),
        "ratio of |gradient| |parameters|": a.parameters / b.parameters if b.parameters else math.inf,
    }
    n = len(logs)
    shown = [Measurement.exact(name, ratio.value * factor, unit="x", n=n) for name, factor in factors.items()]
    for component, own in norms.items():
        where = Where(component=component)
        shown.append(Measurement.exact("gradient norm, median", float(np.median(own.gradients)), where=where, n=n))
        shown.append(Measurement.exact("parameters", own.size, where=where))
    notes = (*_notes(evidence.facts, parameters), *([_other_rows(predicted)] if band else []))
    return Outcome((judged,), shown=tuple(shown), notes=notes)


def _other_rows(predicted: Sequence[float]) -> str:
    times = " to ".join(f"{1 / edge:.2g}x" for edge in sorted(predicted, reverse=True))
    return f"phase 3.9 predicts {times} here and asks for less of D3 and coupling, which are of other quantities"


def _band(facts: ModelFacts, first: str, second: str, ratio: float, predicted: Sequence[float]) -> str:
    """What phase 3.9 predicted for this pair on byte pairs, and whether it came so."""
    byte_pairs = facts.tokenizer is not None and (facts.vocabulary or 0) > 256
    if {first, second} != {"rwkv", "mamba"} or not byte_pairs:
        return ""
    low, high = predicted
    inside = low <= (ratio if first == "rwkv" else 1 / ratio) <= high
    return f"; {'' if inside else 'not '}in the predicted band {low:.2f}-{high:.2f} of rwkv over mamba on byte pairs"


def _notes(facts: ModelFacts, parameters: Mapping[str, Parameters]) -> tuple[str, ...]:
    frozen = {
        component: sum(not value.requires_grad for value in own.values()) for component, own in parameters.items()
    }
    notes = [f"{count} parameters of {component} are frozen" for component, count in frozen.items() if count]
    others = list(facts.components)[2:]
    return (*notes, *([f"not compared: {', '.join(others)} (first and second alone)"] if others else []))
