"""What the training log tells beside the loss: gradients, updates, gates, sizes of states, and their health.

Nothing here changes the model, its states or the random numbers.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from statecheck import wrap
from statecheck.adapters.contract import copy_without_history, matches
from statecheck.probes import StateHealthMonitor
from statecheck.recording import groups
from statecheck_reference.evaluation import Windows
from statecheck_reference.models import Architecture, LanguageModel

Parts = Mapping[str, list[nn.Parameter]]
HEALTH_WINDOWS = 4  # documents of four training lengths: what the row `health` of a suite reads


def parts_of(model: nn.Module, architecture: Architecture) -> Parts:
    """The parameters by part: the components where there are several, else the model's children and its layers.

    >>> from statecheck_reference.models import MODELS
    >>> model = MODELS["lstm"].build({"vocabulary": 8, "width": 4, "layers": 2})
    >>> {name: len(parameters) for name, parameters in parts_of(model, MODELS["lstm"]).items()}
    {'embedding': 1, 'layers.0': 4, 'layers.1': 4}
    """
    several = len(architecture.components) > 1
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = _component_of(name, architecture) if several else _child_of(name)
        if part:
            parts.setdefault(part, []).append(parameter)
    return parts


def _component_of(name: str, architecture: Architecture) -> str:
    owners = (component for component, facts in architecture.components.items() if matches(name, facts.parameters))
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


def health(model: LanguageModel, architecture: Architecture, windows: Windows) -> dict[str, float]:
    """Health of each "component.layer", 0..1, on the first four of `windows`; their length counts as the training's.

    {} for a model whose memory is a cache alone, which has none.
    """
    wrapped = wrap(
        copy_without_history(model),  # it shares the parameters, and nothing else
        training_length=windows[0][0].shape[1],
        title=architecture.title,
        **architecture.declaration(),
    )
    if not groups(wrapped.facts):
        return {}
    inputs = torch.cat([inputs for inputs, _ in windows[:HEALTH_WINDOWS]], dim=1)  # (rows, 4 windows)
    reading = StateHealthMonitor().measure(wrapped, inputs)
    return {f"{component}.{layer}": score for (component, layer), score in reading.scores.items()}
