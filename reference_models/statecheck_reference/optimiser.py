"""The optimiser of a training run: which parameters decay, and which learn at a rate of their own."""

from typing import Any

import torch
from torch import nn

from statecheck.adapters.contract import matches
from statecheck_reference.settings import TrainingSettings

# Parameters of recurrences that set time scales and mixing shares: pulled to zero, they would remember otherwise.
KEPT_NAMES = ("A_log", "D", "dt_bias", "bonus")
KEPT_PARTS = ("decay", ".mu")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """True for what weight decay may shrink: matrices, those of recurrence that set time scales apart.

    >>> matrix = nn.Parameter(torch.zeros(2, 2))
    >>> [decays(name, matrix) for name in ("layers.0.mamba.in_proj.weight", "layers.0.mamba.A_log", "x.decay_lora")]
    [True, False, False]
    """
    kept = name.rpartition(".")[2] in KEPT_NAMES or any(part in name for part in KEPT_PARTS)
    return parameter.dim() > 1 and not kept


def make_optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW with one group of parameters for each multiplier of the rate, decaying or not."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        multiplier, decaying = _multiplier(name, settings), decays(name, parameter)
        group = {"params": [], "multiplier": multiplier, "weight_decay": settings.weight_decay if decaying else 0.0}
        groups.setdefault((multiplier, decaying), group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=settings.peak_rate, betas=(0.9, 0.99))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiplier"]


def _multiplier(name: str, settings: TrainingSettings) -> float:
    for component, facts in settings.architecture.components.items():
        if matches(name, facts.parameters):
            return float(settings.component_rates.get(component, 1.0))
    return 1.0
