"""The optimiser of a training run: which parameters decay, and which learn at a rate of their own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import matches
from statecheck_reference.parallel import share
from statecheck_reference.settings import TrainingSettings

# Parameters of recurrences that set time scales and mixing shares: pulled to zero, they would remember otherwise.
KEPT_NAMES = ("A_log", "D", "dt_bias", "bonus")
KEPT_PARTS = ("decay", ".mu")


def decays(name: str, parameter: Tensor) -> bool:
    """True for what weight decay may shrink: matrices, those of recurrence that set time scales apart.

    >>> matrix = nn.Parameter(torch.zeros(2, 2))
    >>> [decays(name, matrix) for name in ("layers.0.mamba.in_proj.weight", "layers.0.mamba.A_log", "x.decay_lora")]
    [True, False, False]
    """
    kept = name.rpartition(".")[2] in KEPT_NAMES or any(part in name for part in KEPT_PARTS)
    return parameter.dim() > 1 and not kept


def make_optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW of what is to be learned, with one group of parameters for each multiplier of the rate, decaying or not."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiplier, decaying = _multiplier(name, settings), decays(name, parameter)
        group = {"params": [], "multiplier": multiplier, "weight_decay": settings.weight_decay if decaying else 0.0}
        groups.setdefault((multiplier, decaying), group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=settings.peak_rate, betas=(0.9, 0.99), fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiplier"]


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from the `state_dict()` of an optimiser whose tensors were whole; here each may be a share."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    own = {number: _shares(found, parameters[number]) for number, found in state["state"].items()}
    optimiser.load_state_dict({**state, "state": own})


def _shares(found: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """What AdamW keeps of one parameter: moments of its shape, and a number of steps."""
    shape = parameter.shape
    return {name: share(value, parameter) if value.shape == shape else value for name, value in found.items()}


def _multiplier(name: str, settings: TrainingSettings) -> float:
    for component, facts in settings.components.items():
        if matches(name, facts.parameters):
            return float(settings.component_rates.get(component, 1.0))
    return 1.0
