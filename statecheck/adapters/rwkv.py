"""Models that are called as those of the package `rwkv`: a list of tokens of one sequence, and a list of states.

The contract that is tested:

    a call          model.forward(tokens, state, full_output=True) -> (logits, state), tokens a list of numbers; one
                    element gives (vocabulary,), more give (time, vocabulary)
    no history      state None
    a batch         such a call for each row, with a list of states of its own: the library has no batch
    the states      the tensors of the list, which are the same number for each layer; their rows are stacked to look at

The list that a call brought goes into the next one as it is: models of this kind write into it. Copies of a model that
can't be copied (TorchScript holds it) share it, as it holds no state itself.

Calls are computed without gradients, so that none reach the state; there are neither masks nor packed sequences.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import Declared
from statecheck.carrying import ROOT, Calls, Carrying
from statecheck.errors import ContractError
from statecheck.protocol import States


def takes_lists(module: nn.Module) -> bool:
    """True if forward is called as these models are: with tokens, a state, and whether all outputs are wanted.

    >>> takes_lists(nn.GRU(2, 2))
    False
    """
    return list(inspect.signature(module.forward).parameters)[1:] == ["state", "full_output"]


class RowByRow(Calls):
    """A call for each row of a batch; what is held is a list of states for each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._of = {"model": model}  # in a mapping: it is not to be registered as a part

    def forward(self, inputs: Tensor, held: list[list[Tensor]] | None) -> tuple[Tensor, list[list[Tensor]]]:
        outputs, after = [], []
        for row, tokens in enumerate(inputs.tolist()):
            logits, state = self._of["model"].forward(tokens, None if held is None else held[row], full_output=True)
            outputs.append(logits if len(tokens) > 1 else logits.reshape(1, -1))
            after.append(state)
        return torch.stack(outputs), after

    def __deepcopy__(self, memo: dict[int, Any]) -> RowByRow:
        model = self._of["model"]
        with suppress(Exception):
            copied = copy.deepcopy(model, memo)
            if type(copied) is type(model):  # TorchScript gives another, without a forward that is Python's
                return RowByRow(copied)
        return RowByRow(model)


@dataclass(frozen=True)
class Stacked:
    """Lists of states, one for each row, as tensors with the rows in front; `each` states are one layer's."""

    each: int

    def read(self, root: object, rows: int) -> States:
        lists: list[list[Tensor]] = root[ROOT]  # type: ignore[index]
        return {self._name(i): torch.stack(parts) for i, parts in enumerate(zip(*lists, strict=True))}

    def write(self, states: Mapping[str, Tensor]) -> dict[str, list[list[Tensor]]]:
        names = [self._name(i) for i in range(len(states))]
        missing = [name for name in names if name not in states]
        if missing:
            raise ContractError(f"expected a state named {missing[0]!r}, found {', '.join(states)}")
        rows = len(states[names[0]])
        return {ROOT: [[states[name][row].clone() for name in names] for row in range(rows)]}

    def _name(self, i: int) -> str:
        return f"layers.{i // self.each}.{i % self.each}"


def carried_by_rows(model: Any, declared: Declared) -> tuple[Carrying, Declared]:
    """The model as a module that holds its lists of states, for `wrap_module`, and what it reads.

    Raises :class:`ContractError` where its vocabulary can't be told, or its states are no list of tensors.
    """
    said = replace(declared, vocabulary=declared.vocabulary or _vocabulary(model))
    calls = RowByRow(model)
    with torch.no_grad():
        _, (state,) = calls(torch.zeros(1, 1, dtype=torch.long), None)
    if not isinstance(state, (list, tuple)) or not all(isinstance(part, Tensor) for part in state):
        raise ContractError(f"forward brought a state of {type(state).__name__}: expected a list of tensors")
    layers = getattr(getattr(model, "args", None), "n_layer", 1)
    return Carrying(calls, Stacked(len(state) // layers if len(state) % layers == 0 else len(state))), said


def _vocabulary(model: Any) -> int:
    """As the arguments of the model or the weights of its embedding tell."""
    told = getattr(getattr(model, "args", None), "vocab_size", None)
    if isinstance(told, int):
        return told
    for weights in (getattr(model, name, None) for name in ("w", "z")):
        if isinstance(weights, Mapping) and isinstance(weights.get("emb.weight"), Tensor):
            return len(weights["emb.weight"])
    raise ContractError("can't tell how many tokens the model knows: say wrap(..., vocabulary=N)")
