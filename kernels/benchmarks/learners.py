"""A model under training on one batch: whole steps, as the trainer of the reference models takes them, to be timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from statecheck_reference.models import LanguageModel
from statecheck_reference.optimiser import make_optimiser
from statecheck_reference.settings import TrainingSettings
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.ours import largest_error, relative_error

LOSS, GRADIENTS = 1e-4, 1e-3  # largest relative errors of a first step that are agreement

Read = Callable[[Tensor], Tensor]  # ids (B, T) to logits (B, T, V)
Names = Callable[[str], str]  # of a parameter of ours, that in another model


class Learner:
    """A model, its optimiser, and the batch (B, T + 1) that every step learns.

    >>> model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4))
    >>> learner = Learner(model, model, torch.tensor([[0, 1, 2, 3]]), TrainingSettings())
    >>> losses = [learner.step() for _ in range(20)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(self, model: nn.Module, read: Read, batch: Tensor, settings: TrainingSettings) -> None:
        self.model, self.read, self.batch, self.clip = model, read, batch, settings.clip
        self.optimiser = make_optimiser(model, settings)
        self.losses: list[float] = []

    def step(self) -> float:
        """Forward, cross-entropy, backward, gradients clipped, AdamW; the loss."""
        logits = self.read(self.batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), self.batch[:, 1:].flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        self.losses.append(loss.item())
        return self.losses[-1]

    @property
    def parameters(self) -> int:
        """How many numbers are learned; a shared table counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def falls(self) -> bool:
        """True if the last loss is below the first: the steps learn."""
        return self.losses[-1] < self.losses[0]


@dataclass(frozen=True)
class First:
    """What a step from the first weights gave: the loss, and the clipped gradient of every parameter."""

    loss: float
    gradients: Mapping[str, Tensor]

    @classmethod
    def of(cls, learner: Learner) -> "First":
        """Of a learner that has taken no step yet: it takes one."""
        learner.step()
        return cls.taken(learner)

    @classmethod
    def taken(cls, learner: Learner) -> "First":
        """Of a learner that has just taken its first step."""
        named = learner.model.named_parameters()
        return cls(learner.losses[0], {name: one.grad.clone() for name, one in named if one.grad is not None})

    def errors(self, other: "First", names: Names = str) -> tuple[float, float]:
        """How far the other's loss and gradients are from these, relative; it calls our `name` `names(name)`."""
        theirs = {name: other.gradients[names(name)] for name in self.gradients}
        loss = relative_error(torch.tensor(other.loss), torch.tensor(self.loss))
        return loss, largest_error(theirs, self.gradients)


def agree(loss: float, gradients: float) -> bool:
    """True if two first steps said the same, by the errors of their losses and gradients.

    >>> agree(1e-6, 1e-5), agree(2e-4, 1e-5)
    (True, False)
    """
    return loss <= LOSS and gradients <= GRADIENTS


def forgetting(model: LanguageModel) -> Read:
    """Reads every batch from states of zero."""

    def read(inputs: Tensor) -> Tensor:
        model.set_states(None)
        logits: Tensor = model(inputs)
        return logits

    return read


def copy_weights(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Gives `theirs` the weights of `ours`; ValueError unless each parameter has its counterpart of the same shape."""
    given = {names(name): parameter for name, parameter in ours.named_parameters()}
    held = dict(theirs.named_parameters())
    for name in sorted(given.keys() ^ held.keys()):
        raise ValueError(f"expected the same parameters in both models, but {name} has no counterpart")
    for name, parameter in held.items():
        if parameter.shape != given[name].shape:
            raise ValueError(f"{name}: expected {tuple(given[name].shape)}, found {tuple(parameter.shape)}")
        parameter.data.copy_(given[name])
