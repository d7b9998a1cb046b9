"""One step of training: the gradient of the loss on a batch, what is clipped and frozen of it, and the update."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference import diagnostics
from statecheck_reference.diagnostics import Parts
from statecheck_reference.models import LanguageModel
from statecheck_reference.optimiser import make_optimiser, set_rate
from statecheck_reference.parallel import ALONE, World, whole
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import Batch
from statecheck_reference.training_log import significant

Row = dict[str, Any]


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite: the run is of no use from here on."""


@dataclass(frozen=True)
class Stepped:
    """What one step did: loss, norm of the gradient before clipping, and the details where they were asked for."""

    loss: float
    norm: float
    details: Row


@dataclass
class Stepper:
    """Trains `model` step by step; `parts` are its parameters by component, or by layer where it has only one.

    `owned` are those by component, even of one alone: what is frozen and clipped.
    `reader` is called in the model's place: with several processes it makes their gradients one.
    """

    settings: TrainingSettings
    model: LanguageModel
    reader: nn.Module
    optimiser: torch.optim.Optimizer
    parts: Parts
    owned: Parts
    world: World

    @classmethod
    def of(cls, settings: TrainingSettings, model: LanguageModel, world: World = ALONE) -> "Stepper":
        """Of a model that is about to be trained by the processes of `world`."""
        reader = world.spread(model)  # first: it may leave this process a share of each parameter
        parts = diagnostics.parts_of(model, settings.components)
        owned = diagnostics.parts_by_component(model, settings.components)
        return cls(settings, model, reader, make_optimiser(model, settings), parts, owned, world)

    def step(self, batch: Batch, number: int, *, detailed: bool) -> Stepped:
        """Update the model on `batch`, this process's rows, in step `number`, counted from 1.

        What it tells is of all processes, which must call it together. Raises TrainingDiverged if the loss or the
        gradient is not finite, and leaves the model as it was; or if a detail is not finite.
        """
        set_rate(self.optimiser, self.settings.rate(number))
        loss = self._backward(batch)
        details = self._gradients() if detailed else {}
        norm = self._clipped(number)
        self.require_finite(number, {"the loss": loss, "the gradient norm": norm})
        before = diagnostics.values_of(self.parts) if detailed else {}
        self.optimiser.step()
        if detailed:
            details["relative_updates"] = _rounded(diagnostics.relative_updates(self.parts, before))
            self.require_finite(number, details)
        return Stepped(loss, norm, {name: value for name, value in details.items() if value not in ({}, None)})

    @property
    def rate(self) -> float:
        """The learning rate of the last step, of parameters whose multiplier is 1."""
        group = max(self.optimiser.param_groups, key=lambda group: group["multiplier"])
        return group["lr"] / group["multiplier"] if group["multiplier"] else 0.0

    def require_finite(self, number: int, figures: Mapping[str, Any]) -> None:
        """Raise TrainingDiverged for the first of the figures, or of tables of them, that is NaN or infinite."""
        for name, figure in figures.items():
            values = figure.values() if isinstance(figure, Mapping) else (figure,)
            wrong = [value for value in values if isinstance(value, float) and not math.isfinite(value)]
            if wrong:
                raise TrainingDiverged(
                    f"step {number}: {name} is {wrong[0]}; try a lower --peak-rate than {self.settings.peak_rate}"
                )

    def _backward(self, batch: Batch) -> float:
        """The loss on the rows of all processes, and its gradient with respect to the parameters."""
        # Back-propagation is cut at the window's edge; rows that begin a passage forget the one before.
        fresh = batch.fresh if self.settings.carry else torch.ones_like(batch.fresh)
        held = {} if bool(fresh.all()) else self.model.get_states()  # a cache forgets by being dropped, not by zeros
        states = {name: _without(state.detach(), fresh) for name, state in held.items()}
        self.model.set_states(states or None)
        with self._precision(batch.inputs.device.type):
            logits = self.reader(batch.inputs)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return self.world.mean([loss.item()])[0]

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16) if self.settings.precision == "bfloat16" else nullcontext()

    def _gradients(self) -> Row:
        """What the log tells of the gradient as it came, and of the fusion gates that made it."""
        norms = diagnostics.gradient_norms(self.parts)
        ratio = diagnostics.gradient_ratio(norms, list(self.settings.components))
        return {
            "gradient_norms": _rounded(norms),
            "gradient_ratio": None if ratio is None else significant(ratio),
            "gates": _rounded(self._gates()),
        }

    def _gates(self) -> dict[str, float]:
        found = diagnostics.gates(self.model)
        return dict(zip(found, self.world.mean(list(found.values())), strict=True))

    def _clipped(self, number: int) -> float:
        """Drop the gradients of what is frozen, clip the others; the norm of these before."""
        for name in self.settings.frozen(number):
            for parameter in self.owned[name]:
                parameter.grad = None
        norm = None
        if self.settings.component_clips:
            norm = _norm(self.model.parameters())
            for name, limit in self.settings.component_clips.items():
                nn.utils.clip_grad_norm_(self.owned[name], limit)
        total = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)).item()
        return total if norm is None else norm


def _norm(parameters: Iterable[nn.Parameter]) -> float:
    return whole(nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])).item()


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: significant(value) for name, value in values.items()}


def _without(state: Tensor, rows: Tensor) -> Tensor:
    """`state` (B, ...) with zeros in the `rows` (B) that are True."""
    kept = (~rows).to(state.dtype).view(-1, *[1] * (state.dim() - 1))  # (B, 1, ...)
    return state * kept
