"""What the training log tells beside the loss: gradients, updates, gates; sizes, evenness and health of states.

Nothing here changes the model, its states or the random numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from statecheck import wrap
from statecheck.adapters.contract import copy_without_history, matches
from statecheck.probes import StateHealthMonitor
from statecheck.probes.health import HealthReading
from statecheck.protocol import ComponentFacts
from statecheck.recording import groups
from statecheck_reference.evaluation import Windows
from statecheck_reference.models import LanguageModel
from statecheck_reference.settings import TrainingSettings

Parts = Mapping[str, list[nn.Parameter]]
HEALTH_WINDOWS = 4  # documents of four training lengths: what the row `health` of a suite reads


def parts_of(model: nn.Module, components: Mapping[str, ComponentFacts]) -> Parts:
    """The parameters by part: the components where there are several, else the model's children and its layers.

    >>> from statecheck_reference.settings import TrainingSettings
    >>> settings = TrainingSettings("lstm", {"vocabulary": 8, "width": 4})
    >>> model = settings.architecture.build(settings.shape)
    >>> {name: len(parameters) for name, parameters in parts_of(model, settings.components).items()}
    {'embedding': 1, 'layers.0': 4, 'layers.1': 4}
    """
    if len(components) > 1:
        return parts_by_component(model, components)
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if child := _child_of(name):
            parts.setdefault(child, []).append(parameter)
    return parts


def parts_by_component(model: nn.Module, components: Mapping[str, ComponentFacts]) -> Parts:
    """The parameters that each component names; those of none are left out."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if owner := _component_of(name, components):
            parts.setdefault(owner, []).append(parameter)
    return parts


def _component_of(name: str, components: Mapping[str, ComponentFacts]) -> str:
    owners = (component for component, facts in components.items() if matches(name, facts.parameters))
    return next(owners, "")


def _child_of(name: str) -> str:
    """`layers.0.weight` is of `layers.0`, `embedding.weight` of `embedding`, `output_bias` of no child."""
    words = name.split(".")
    return ".".join(words[: 2 if len(words) > 2 and words[1].isdigit() else 1]) if len(words) > 1 else ""


def gradient_norms(parts: Parts) -> dict[str, float]:
    """Norm of the gradient of each part, as it is now."""
    return {name: _norm(p.grad for p in parameters if p.grad is not None) for name, parameters in parts.items()}


def values_of(parts: Parts) -> dict[str, list[Tensor]]:
    """Copies of the parameters, to compare with after a step."""
    return {name: [parameter.detach().clone() for parameter in parameters] for name, parameters in parts.items()}


def relative_updates(parts: Parts, before: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """RMS of the change since `before` over the RMS before, of each part; one that was all zero is left out."""
    found: dict[str, float] = {}
    for name, parameters in parts.items():
        size = _norm(before[name])
        if size > 0:
            pairs = zip(parameters, before[name], strict=True)
            found[name] = _norm(parameter.detach() - value for parameter, value in pairs) / size
    return found


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [tensor.norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0


def gates(model: nn.Module) -> dict[str, float]:
    """Mean of the fusion gate of each layer over the last call; {} for a model that shows no such signals."""
    get_signals = getattr(model, "get_signals", None)
    signals = get_signals() if get_signals is not None else {}
    return {
        name.removesuffix(".gate"): float(signal.detach().mean())
        for name, signal in signals.items()
        if name.endswith(".gate")
    }


def state_rms(states: Mapping[str, Tensor]) -> dict[str, float]:
    """Root mean square of each state over the whole tensor.

    >>> state_rms({"layers.0.h": torch.tensor([[3.0, 4.0], [0.0, 0.0]])})
    {'layers.0.h': 2.5}
    """
    return {name: float(state.detach().square().mean().sqrt()) for name, state in states.items()}


def state_entropy(states: Mapping[str, Tensor]) -> dict[str, float]:
    """How evenly the energy of each state is spread over its n numbers: -sum p log p / log n, p = h^2 / sum h^2.

    0: one number has it all; 1: all have the same. The mean over the rows that hold anything; a state of one number,
    or of zeros, is left out. It depends on the coordinates of the state.

    >>> state_entropy({"layers.0.h": torch.tensor([[1.0, -1.0, 0.0, 0.0]])})
    {'layers.0.h': 0.5}
    """
    found = {}
    for name, state in states.items():
        energy = state.detach().double().flatten(1).square()  # (B, n)
        energy = energy[energy.sum(1) > 0]
        if energy.numel() and energy.shape[1] > 1:
            shares = energy / energy.sum(1, keepdim=True)
            entropy = -torch.special.xlogy(shares, shares).sum(1) / math.log(energy.shape[1])
            found[name] = float(entropy.mean())
    return found


def gradient_ratio(norms: Mapping[str, float], components: Sequence[str]) -> float | None:
    """Gradient norm of the first component over that of the second; None unless there are two, with gradients.

    >>> gradient_ratio({"rwkv": 1.0, "mamba": 4.0}, ["rwkv", "mamba", "attention"])
    0.25
    """
    found = [norms.get(name, 0.0) for name in components[:2]]
    return found[0] / found[1] if len(found) == 2 and all(found) else None


@dataclass(frozen=True)
class StateReading:
    """By "component.layer": health 0..1, and G3.5: the cosine of centred states 64 tokens apart, which is 1 if nothing
    moves, and the share of units pinned to their largest value."""

    health: dict[str, float] = field(default_factory=dict)
    evolution: dict[str, float] = field(default_factory=dict)
    pinned: dict[str, float] = field(default_factory=dict)


def read_states(model: LanguageModel, settings: TrainingSettings, windows: Windows) -> StateReading:
    """Health and evolution of the states on the first four of `windows`; their length counts as the training's.

    Empty for a model whose memory is a cache alone, which has neither.
    """
    wrapped = wrap(
        copy_without_history(model),  # it shares the parameters, and nothing else
        training_length=windows[0][0].shape[1],
        title=settings.architecture.title,
        **settings.architecture.declared(settings.shape).for_wrap(),
    )
    if not groups(wrapped.facts):
        return StateReading()
    inputs = torch.cat([inputs for inputs, _ in windows[:HEALTH_WINDOWS]], dim=1)  # (rows, 4 windows)
    reading = StateHealthMonitor().measure(wrapped, inputs)
    return StateReading(
        {f"{component}.{layer}": score for (component, layer), score in reading.scores.items()},
        {name: 1 - value for name, value in _values(reading, "moving").items()},
        _values(reading, "unpinned"),
    )


def _values(reading: HealthReading, name: str) -> dict[str, float]:
    """What a sub-score of health is the score of, by "component.layer", where it could be had."""
    found = {
        f"{component}.{layer}": values.get(name, math.nan) for (component, layer), values in reading.values.items()
    }
    return {place: value for place, value in found.items() if math.isfinite(value)}
