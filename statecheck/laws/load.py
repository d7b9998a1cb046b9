"""LOAD: saving and loading changes no parameter and no output."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import asking
from statecheck.deviation import deviation
from statecheck.errors import ModelRaised
from statecheck.histories.drawing import LONGEST, MOST_ROWS, values
from statecheck.histories.playing import plain
from statecheck.laws.contract import Evidence, Held, Outcome, floor_of, outcome_of, probe
from statecheck.noise import copied
from statecheck.protocol import StatefulModel, native_of
from statecheck.states import relative
from statecheck.verdict import Absence, Measurement, Status


@probe("LOAD", "Saving and loading changes no parameter and no output", cost="two copies of the model")
def loads(evidence: Evidence) -> Outcome:
    """Is a model that was saved and loaded the model?

    LOAD.functional   a copy whose parameters and buffers were overwritten with noise, and then got the model's
                      state_dict: what is missing there, or changed by a hook after loading, shows in its outputs
    LOAD.native       the library's own way: saved into a folder and loaded from it

    Both in floors of the outputs; a parameter that changed counts as much as an output.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = loads(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value) for m in found.measurements], [a.name for a in found.absences]
    ([('LOAD.functional', 0.0)], ['LOAD.native'])
    """
    ways = {"LOAD.functional": _through_state_dict, "LOAD.native": _through_a_folder}
    return outcome_of(evidence, [_loaded(evidence, name, way) for name, way in ways.items()])


def _loaded(evidence: Evidence, name: str, way: Callable[[StatefulModel], StatefulModel | str]) -> Held | Absence:
    try:
        other = way(evidence.model)
    except ModelRaised as error:
        return Held(Measurement.exact(name, float("inf"), unit="floors", note=str(error)))
    if isinstance(other, str):
        return Absence(name, Status.NOT_APPLICABLE, other)
    inputs = values(evidence.facts, MOST_ROWS, LONGEST, evidence.seed)
    outputs = deviation(plain(other, inputs), plain(evidence.model, inputs))
    changed, parameter = _changed(evidence.model, other)
    worst = max(outputs.error, changed) / floor_of(evidence).value
    told = f"parameter {parameter} changed by {changed:.3g} relative" if changed else str(outputs)
    return Held(Measurement.exact(name, worst, unit="floors", note=told if worst else ""))


def _changed(model: StatefulModel, other: StatefulModel) -> tuple[float, str]:
    """The largest relative change of a parameter, and its name."""
    there = _parameters(other)
    changes = {
        name: relative(value, there[name]) if name in there else float("inf")
        for name, value in _parameters(model).items()
    }
    worst = max(changes, key=lambda name: changes[name], default="")
    return changes.get(worst, 0.0), worst


def _parameters(model: StatefulModel) -> dict[str, Tensor]:
    module = getattr(model, "module", None)
    return dict(module.named_parameters()) if isinstance(module, nn.Module) else {}


def _through_state_dict(model: StatefulModel) -> StatefulModel | str:
    other = copied(model)
    if other is None:
        return "no copy of the module can be made to load into"
    module: nn.Module = other.module  # type: ignore[attr-defined]
    there = asking(module.state_dict)
    saved = copy.deepcopy(asking(model.module.state_dict))  # type: ignore[attr-defined]
    saved = {name: value for name, value in saved.items() if name in there}
    learned = {name: value for name, value in module.named_parameters() if value.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in {**learned, **there}.values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
    asking(module.load_state_dict, saved)
    return other


def _through_a_folder(model: StatefulModel) -> StatefulModel | str:
    reloaded = native_of(model).reloaded
    if reloaded is None:
        return "the library offers no saving and loading of its own"
    with tempfile.TemporaryDirectory() as folder:
        return reloaded(Path(folder))
