"""A short real training of a copy of a model, and its log: for faults that sit in how a model is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.experiments import document_losses, losses
from statecheck.gradients import differentiable, gradients_of
from statecheck.probes.contract import Evidence, gather
from statecheck.probes.gradient_ratio import parameters_of
from statecheck.protocol import StatefulModel, fresh

BATCH, VALIDATE_EVERY = 8, 2


def train(
    model: StatefulModel,
    inputs: Iterable[Tensor],
    log: Path,
    *,
    component: str,
    multiplier: float,
    steps: int = 60,
    rate: float = 1e-4,
    seed: int = 0,
) -> None:
    """Train a copy of `model` on `inputs` with Adam at `rate`, `multiplier` times that for the parameters of
    `component`, and write a row a step to the JSONL file `log`.

    Rows hold `step`, `train_loss`, `gradient_norms` and `relative_updates` by component, and at every second step
    `validation_loss`, on windows of the same documents that stay the same: of how well the model generalises it says
    nothing. The model itself is left as it was. Raises :class:`CapabilityMissing` for a model without a loss, or with
    parameters that can't be told apart by component.
    """
    evidence = gather(_own(model), list(inputs), seed=seed)
    evidence.require_text()
    owned = parameters_of(evidence.model, list(model.facts.components))
    named = {name: list(own.values()) for name, own in owned.items()}
    rest = _others(evidence.model, [parameter for own in named.values() for parameter in own])
    groups = {name: (own, multiplier if name == component else 1.0) for name, own in named.items()} | {"": (rest, 1.0)}
    optimiser = torch.optim.Adam(
        [{"params": own, "lr": rate * factor} for own, factor in groups.values() if own], lr=rate
    )
    validation = evidence.streams(evidence.training_length + 1, name="training.validation")
    with log.open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            row = {"step": step, **_step(evidence, optimiser, named, step)}
            if step % VALIDATE_EVERY == 0:
                row["validation_loss"] = _validated(evidence, validation)
            file.write(json.dumps(row) + "\n")


def _own(model: StatefulModel) -> StatefulModel:
    """The model on a copy of its module that shares nothing with it."""
    rebuilt = model.rebuild()  # type: ignore[attr-defined]
    rebuilt.module = copy.deepcopy(rebuilt.module)
    return rebuilt


def _others(model: StatefulModel, taken: Iterable[Tensor]) -> list[nn.Parameter]:
    known = {id(parameter) for parameter in taken}
    module: nn.Module = model.module  # type: ignore[attr-defined]
    return [parameter for parameter in module.parameters() if id(parameter) not in known]


def _step(
    evidence: Evidence, optimiser: torch.optim.Optimizer, named: Mapping[str, list[nn.Parameter]], step: int
) -> dict[str, Any]:
    """One step on a batch of windows; what the log tells of it."""
    windows = evidence.streams(evidence.training_length + 1, most=BATCH, name=f"training.{step}")
    everything = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    model = fresh(evidence.model)
    with differentiable():
        loss = losses(model(windows[:, :-1]), windows[:, 1:], evidence.facts.loss).mean()
        for parameter, slope in zip(everything, gradients_of(loss, everything), strict=True):
            parameter.grad = slope
    before = {name: [parameter.detach().clone() for parameter in own] for name, own in named.items()}
    optimiser.step()
    return {
        "train_loss": float(loss.detach()),
        "gradient_norms": {name: _norm(p.grad for p in own) for name, own in named.items()},
        "relative_updates": {
            name: _norm(p - old for p, old in zip(own, before[name], strict=True)) / _norm(before[name])
            for name, own in named.items()
        },
    }


@torch.no_grad()
def _norm(values: Iterable[Tensor | None]) -> float:
    return float(torch.cat([value.flatten() for value in values if value is not None]).norm())


@torch.no_grad()
def _validated(evidence: Evidence, windows: Tensor) -> float:
    return float(document_losses(fresh(evidence.model), windows).mean())
