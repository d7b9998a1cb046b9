"""PACK: sequences packed into one row equal the same sequences apart, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from statecheck.deviation import Deviation, deviation
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised
from statecheck.histories.drawing import lengths, seeds, values
from statecheck.laws.contract import Evidence, Outcome, outcome_of, probe, run_search
from statecheck.protocol import Capability, StatefulModel, fresh
from statecheck.slopes import apart, gradients

Case = tuple[tuple[int, ...], int]  # lengths of the sequences in a row, seed
Found = TypeVar("Found")
LONGEST_PACKED = 20
MOST = 4


@probe("PACK", "Packed sequences equal separate ones, gradients too", cost="each packed row, and its sequences alone")
def packs(evidence: Evidence) -> Outcome:
    """Does no sequence of a packed row see the one before it, at every boundary, in outputs and in gradients?

    Sequences of one element, and of a chunk's length and one more or less, are among those drawn. SKIP for a model
    whose calls take no segments.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> packs(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    Traceback (most recent call last):
    statecheck.errors.CapabilityMissing: the model has no capability 'segments': its calls take no segments
    """
    evidence.facts.require(Capability.SEGMENTS)
    parts = st.lists(lengths(evidence.facts, LONGEST_PACKED), min_size=2, max_size=MOST).map(tuple)
    drawn = st.tuples(parts, seeds())
    held = [run_search(evidence, "PACK.native", drawn, partial(_outputs, evidence))]
    if isinstance(getattr(evidence.model, "module", None), nn.Module):
        held.append(run_search(evidence, "PACK.gradient", drawn, partial(_gradients, evidence)))
    return outcome_of(evidence, held)


def _packed(evidence: Evidence, case: Case) -> tuple[Tensor, Tensor]:
    """One row of inputs, and the number of the sequence of each of its elements."""
    sizes, seed = case
    inputs = values(evidence.facts, 1, sum(sizes), seed)
    segments = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None]
    return inputs, segments.to(inputs.device)


def _together(model: StatefulModel, inputs: Tensor, segments: Tensor) -> Tensor:
    return fresh(model)(inputs, segments=segments)


def _alone(model: StatefulModel, inputs: Tensor, case: Case) -> Tensor:
    return torch.cat([fresh(model)(part) for part in inputs.split(list(case[0]), dim=1)], dim=1)


def _outputs(evidence: Evidence, case: Case) -> Deviation:
    inputs, segments = _packed(evidence, case)
    expected = _expected(partial(_alone, evidence.model, inputs, case))
    try:
        return deviation(_together(evidence.model, inputs, segments), expected)
    except (ModelRaised, ContractError) as error:
        return Deviation(float("inf"), str(error))


def _gradients(evidence: Evidence, case: Case) -> Deviation:
    inputs, segments = _packed(evidence, case)
    module: nn.Module = evidence.model.module  # type: ignore[attr-defined]
    expected = _expected(lambda: gradients(module, partial(_alone, evidence.model, inputs, case)))
    try:
        found = gradients(module, partial(_together, evidence.model, inputs, segments))
    except (ModelRaised, ContractError) as error:
        return Deviation(float("inf"), str(error))
    furthest, parameter = apart(found, expected)
    return Deviation(furthest, f"largest for parameter {parameter}")


def _expected(make: Callable[[], Found]) -> Found:
    try:
        return make()
    except (ModelRaised, ContractError) as error:
        raise CapabilityMissing(f"there is nothing to compare with: {error}") from error
