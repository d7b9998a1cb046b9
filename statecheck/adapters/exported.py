"""Modules whose forward takes a state and brings the next: TorchScript and exported programs, and eager ones like them.

The contract that is tested:

    a call          module(x, state) -> (outputs, state), or module(x, h, c) -> (outputs, h, c): all arguments after the
                    first are the state, all results after the first the next one, in the same order
    no history      module(x) where the state has a default, else with what `start` makes for so many rows
    the state       goes into the next call as the last one brought it

The arguments are read off the signature, or off the schema of TorchScript. Shapes of a first state are not told there:
`start` is needed where it can't be left out. Gradients reach the state as far as the program lets them.

It takes neither masks nor packed sequences, and no module that has further arguments without a default.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import Declared, asking, copy_without_history, example, infer_inputs, quiet
from statecheck.carrying import Calls, Carrying, begun, read_with
from statecheck.errors import ContractError, ModelRaised

Start = Callable[[int], Any]
#: Names of a second argument by which a forward that was not said to take a state is known to take one.
STATES = (
    "state",
    "states",
    "hidden",
    "hidden_state",
    "hidden_states",
    "hx",
    "h",
    "h0",
    "carry",
    "cache",
    "caches",
    "mems",
)


class Explicit(Calls):
    """Calls of a module with its state as arguments; `names` are theirs."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], start: Start | None) -> None:
        super().__init__()
        self.names, self.start = names, start
        self.module = module if hasattr(module, "training") or isinstance(module, _Frozen) else _Frozen(module)

    def forward(self, inputs: Tensor, held: Any) -> tuple[Tensor, Any]:
        if held is None and self.start is not None:
            held = begun(self.start, len(inputs), self.module)
        several = len(self.names) > 1
        state = () if held is None else tuple(held) if several else (held,)
        returned = self.module(inputs, *state)
        if not isinstance(returned, tuple) or len(returned) < 1 + len(self.names):
            found = f"{len(returned)} results" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
            raise ContractError(
                f"forward returned {found}: expected a tuple of the outputs and the next {', '.join(self.names)}"
            )
        return returned[0], returned[1 : 1 + len(self.names)] if several else returned[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Explicit:
        with torch.enable_grad():  # a copy of TorchScript made without gradients has parameters that take none
            made = Explicit(copy.deepcopy(self.module, memo), self.names, copy.deepcopy(self.start, memo))  # type: ignore[arg-type]
        made.training = self.training
        return made


class _Frozen:
    """A frozen program: it has no parameters and no mode any more, and is not to be registered as a part."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def is_script(module: nn.Module) -> bool:
    """True if forward is TorchScript's, scripted or traced, whose signature Python can't read."""
    return getattr(module.forward, "schema", None) is not None


def takes_state(module: nn.Module, said: bool) -> bool:
    """True if forward takes a state after its input: by its name, or because a `start` was `said`.

    >>> takes_state(nn.GRUCell(2, 2), said=False), takes_state(nn.Linear(2, 2), said=True)
    (True, False)
    """
    names = list(_arguments(module))
    return len(names) > 1 and (said or names[1] in STATES)


def carried_explicitly(module: nn.Module, declared: Declared, start: Start | None) -> tuple[Carrying, Declared]:
    """The module as one that holds its state, for `wrap_module`, and what it reads.

    Raises :class:`ContractError` for a call that fails or brings no state; the message says what may be missing.
    """
    said = infer_inputs(module, declared) if hasattr(module, "training") else declared
    if not said.width and not said.vocabulary:
        raise ContractError("a frozen program does not tell what it reads: say wrap(..., vocabulary=N) or width=N")
    _, *names = _arguments(module)
    if not names:
        raise ContractError(
            "forward takes one argument alone, so no state can be given to it: export one that takes it"
        )
    calls = Explicit(module, tuple(names), start)
    inputs = partial(example, said, next(module.parameters(), None))
    with quiet(calls):
        try:
            reading = asking(read_with, partial(copy_without_history, calls), inputs)
        except ModelRaised as error:
            raise ContractError(
                f"{error} (called with 2 and 3 rows of one element): say width= or vocabulary= if it reads something"
                f" else, and start=, a function of the number of rows that brings the first {', '.join(names)}"
            ) from error
    return Carrying(calls, reading), said


def _arguments(module: nn.Module) -> dict[str, bool]:
    """Names of the arguments of forward, and whether each has a default."""
    schema = getattr(module.forward, "schema", None)
    if schema is not None:
        return {argument.name: argument.has_default_value() for argument in schema.arguments[1:]}
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default is not p.empty for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
