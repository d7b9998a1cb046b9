"""NUM: long inputs, extreme gates and low precision stay finite and within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from statecheck.deviation import deviation
from statecheck.errors import ContractError, ModelRaised
from statecheck.histories.drawing import LONGEST, edges, far_edges, values
from statecheck.histories.playing import plain
from statecheck.laws.contract import WORTH, Evidence, Outcome, floor_of, probe
from statecheck.noise import copied, default_dtype, float64_twin, widened
from statecheck.protocol import StatefulModel, fresh
from statecheck.verdict import Absence, Measurement, Status

LONG = (127, 512, 1025, 2000)
ROWS = 2
PREFILL, STEPS = 5, 4
SHIFTS = (20.0, -20.0)  # softplus, exp and sigmoid of it are at their ends, and far from overflow in float32
MOST_SHIFTED = 24  # parameters


@probe("NUM", "Long inputs, extreme gates and low precision stay within bounds", cost="calls of 1 to 2,000 elements")
def numerics(evidence: Evidence) -> Outcome:
    """Does the model stay finite where its float64 self does, and does a low precision drift no further by steps?

    NUM.long      lengths of one call that bring outputs that are not finite: every edge of windows and chunks, and up
                  to 2,000 elements; a length that raises although a longer one is read counts as well
    NUM.extreme   vectors of parameters (biases, decays, gates) that bring outputs that are not finite, of a call or of
                  single steps, though those in float64 are, when they are moved by 20 up or down, one at a time
    NUM.low       error of single steps in bfloat16 over that of one whole call in bfloat16, both against float64

    The dtypes of the states after a step are told, in the model's own precision and in bfloat16.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = numerics(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 5) for m in found.measurements]
    [('NUM.long', True), ('NUM.extreme', True), ('NUM.low', True)]
    """
    measured = [_long(evidence)]
    absent: list[Absence] = []
    for part in (_extreme(evidence), _low(evidence)):
        (measured if isinstance(part, Measurement) else absent).append(part)  # type: ignore[arg-type]
    told = f"states after a step: {_dtypes(evidence.model, evidence)}"
    return Outcome(tuple(measured), tuple(absent), notes=(told, *_low_dtypes(evidence)))


def _long(evidence: Evidence) -> Measurement:
    facts = evidence.facts
    lengths = sorted({*edges(facts), *range(1, LONGEST), *far_edges(facts), *LONG})
    bad: dict[int, str] = {}
    read = 0
    for length in lengths:
        inputs = values(facts, ROWS, length, evidence.seed)
        try:
            outputs = plain(evidence.model, inputs)
        except ModelRaised as error:
            bad[length] = str(error)
            continue
        read = length
        wrong = int((~torch.isfinite(outputs)).sum())
        if wrong:
            bad[length] = f"{wrong} outputs are not finite"
    held = {length: reason for length, reason in bad.items() if length < read or "not finite" in reason}
    note = "; ".join(f"{length} elements: {reason}" for length, reason in list(held.items())[:3])
    return Measurement.exact("NUM.long", len(held), unit="lengths", n=len(lengths), note=note)


def _extreme(evidence: Evidence) -> Measurement | Absence:
    name, twin = "NUM.extreme", copied(evidence.model)
    if twin is None:
        return Absence(name, Status.SKIP, "the model can't be copied: its parameters are left alone")
    inputs = values(evidence.facts, ROWS, PREFILL + STEPS, evidence.seed)
    vectors = [key for key, value in _module(twin).named_parameters() if value.dim() == 1 and value.is_floating_point()]
    chosen = sorted(evidence.generator(name).permutation(vectors)[:MOST_SHIFTED])
    truth = float64_twin(evidence.model)
    assert truth is not None
    with default_dtype(torch.float64):
        wide = widened(inputs)
        tried = [(key, shift) for key in chosen for shift in SHIFTS if _finite(truth, wide, key, shift)]
    found = [f"{key} {shift:+g}" for key, shift in tried if not _finite(twin, inputs, key, shift)]
    note = f"not finite with {', '.join(found[:4])}" if found else ""
    return Measurement.exact(name, len(found), unit="moves", n=len(SHIFTS) * len(chosen), note=note)


def _finite(model: StatefulModel, inputs: Tensor, key: str, shift: float) -> bool:
    """Are a whole call's outputs and those of a prefill and steps finite, with this parameter moved?"""
    parameter = dict(_module(model).named_parameters())[key]
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(shift)
        try:
            outputs = (plain(model, inputs), _stepwise(model, inputs))
            return all(bool(torch.isfinite(value).all()) for value in outputs)
        except (ModelRaised, ContractError):
            return True  # another law's matter
        finally:
            parameter.copy_(kept)


def _stepwise(model: StatefulModel, inputs: Tensor, prefill: int = PREFILL) -> Tensor:
    model = fresh(model)
    parts = [inputs[:, :prefill], *inputs[:, prefill:].split(1, dim=1)]
    return torch.cat([model(part) for part in parts], dim=1)


def _low(evidence: Evidence) -> Measurement | Absence:
    name, twin = "NUM.low", _in_bfloat16(evidence)
    if twin is None:
        return Absence(name, Status.SKIP, "the model can't be copied into bfloat16")
    inputs = _rounded(values(evidence.facts, ROWS, LONGEST, evidence.seed))
    if _steps_are_wrong(evidence):
        return Absence(name, Status.SKIP, "single steps are wrong in the model's own precision already: see STEP")
    try:
        truth = float64_twin(twin)
        assert truth is not None
        with default_dtype(torch.float64):
            expected = plain(truth, widened(inputs))
        whole = deviation(plain(twin, inputs), expected).error
    except (ModelRaised, ContractError) as error:
        return Absence(name, Status.NOT_APPLICABLE, f"no call in bfloat16: {error}")
    try:
        steps = deviation(_stepwise(twin, inputs, 1), expected)
    except (ModelRaised, ContractError) as error:
        return Measurement.exact(name, float("inf"), unit="times", note=f"by steps in bfloat16: {error}")
    spacing = torch.finfo(torch.bfloat16).eps
    note = f"{steps.error:.2g} by steps, {whole:.2g} in one call, relative"
    return Measurement.exact(name, steps.error / max(whole, spacing), unit="times", note=note)


def _steps_are_wrong(evidence: Evidence) -> bool:
    inputs = values(evidence.facts, ROWS, LONGEST, evidence.seed)
    try:
        apart = deviation(_stepwise(evidence.model, inputs, 1), plain(evidence.model, inputs)).error
    except (ModelRaised, ContractError):
        return True
    return apart > WORTH * floor_of(evidence).value


def _in_bfloat16(evidence: Evidence) -> StatefulModel | None:
    twin = copied(evidence.model)
    if twin is not None:
        _module(twin).bfloat16()
    return twin


def _rounded(inputs: Tensor) -> Tensor:
    return inputs.bfloat16() if inputs.is_floating_point() else inputs


def _low_dtypes(evidence: Evidence) -> Iterator[str]:
    twin = _in_bfloat16(evidence)
    with suppress(ModelRaised, ContractError):
        if twin is not None:
            yield f"states after a step in bfloat16: {_dtypes(twin, evidence)}"


def _dtypes(model: StatefulModel, evidence: Evidence) -> str:
    model = fresh(model)
    inputs = values(evidence.facts, 1, 3, evidence.seed)
    low = next((p.dtype for p in _parameters(model) if p.is_floating_point()), inputs.dtype)
    _stepwise(model, inputs.to(low) if inputs.is_floating_point() else inputs, 2)
    kinds = {str(value.dtype).removeprefix("torch.") for value in model.get_states().values()}
    return ", ".join(sorted(kinds))


def _parameters(model: StatefulModel) -> Sequence[Tensor]:
    module = getattr(model, "module", None)
    return list(module.parameters()) if isinstance(module, nn.Module) else []


def _module(model: StatefulModel) -> nn.Module:
    return model.module  # type: ignore[attr-defined]
