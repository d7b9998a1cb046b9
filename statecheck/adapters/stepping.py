"""Modules with two ways to read: a forward over whole sequences, and a step of one element from a state to the next.

The contract that is tested:

    step            module.step(x, state) -> (y, state), x of one element, (batch, 1, ...) or (batch, ...) as the module
                    takes it; a state of several arguments may come back as a mapping of their names, or one by one
    no history      step without a state where it has a default, else with None, with what `start` makes for so many
                    rows, with allocate_inference_cache(rows, 1), or as the library's own generation starts
    several         one step after the other: the library has no call of several elements on a warm state, so CHUNKS is
                    missing, and the law CHUNK with it
    uncached        forward over everything
    with gradients  the outputs of a first call are those of forward, which is what is trained; its state is the steps'

So STEP holds a library's steps against its own forward. The state that a step brought goes into the next as it is.

It can't hand a state from a forward on to steps, as no such module offers one, and takes neither masks nor packed
sequences. A module whose forward takes and brings a state is not of this kind.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import (
    Declared,
    asking,
    copy_without_history,
    example,
    infer_inputs,
    output_of,
    quiet,
)
from statecheck.carrying import Calls, Carrying, begun, read_with
from statecheck.errors import ContractError, StatecheckError
from statecheck.protocol import Capability
from statecheck.wording import one_line

Start = Callable[[int], Any]
WARM = "the library has no call of several elements on a warm state"


@dataclass(frozen=True)
class Form:
    """How step is called: `timed` with x (batch, 1, ...); `state` are the names of the arguments that carry it."""

    timed: bool
    state: tuple[str, ...]  # () where they go by whatever names come back


class Steps(Calls):
    """The steps of a module as calls, and its forward as the whole."""

    def __init__(self, module: nn.Module, form: Form, start: Start | None) -> None:
        super().__init__()
        self.module, self.form, self.start = module, form, start
        self.whole = self._whole
        self.reasons = {Capability.CHUNKS: WARM}

    def forward(self, inputs: Tensor, held: Any) -> tuple[Tensor, Any]:
        outputs, after = self.steps(inputs, held)
        return self._whole(inputs) if held is None and torch.is_grad_enabled() else outputs, after

    def steps(self, inputs: Tensor, held: Any) -> tuple[Tensor, Any]:
        """One step after the other."""
        if held is None and self.start is not None:
            held = begun(self.start, len(inputs), self.module)
        outputs = []
        for t in range(inputs.shape[1]):
            x = inputs[:, t : t + 1] if self.form.timed else inputs[:, t]
            y, held = _parts(self.module.step(x, **self._state(held)))  # type: ignore[operator]
            outputs.append(self._timed(y, x))
        return torch.cat(outputs, 1), held

    def _state(self, held: Any) -> dict[str, Any]:
        """The state as arguments of step."""
        names = self.form.state
        if held is None:
            required = _required(self.module)
            return {name: None for name in names if name in required}
        if len(names) == 1:
            return {names[0]: held}
        return dict(held) if isinstance(held, Mapping) else dict(zip(names, held, strict=True))

    def _timed(self, y: Any, x: Tensor) -> Tensor:
        """The outputs of a step, (batch, 1, features)."""
        dimensions = 3 if self.form.timed else 2
        if not isinstance(y, Tensor) or y.dim() != dimensions or y.shape[: dimensions - 1] != x.shape[: dimensions - 1]:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ContractError(
                f"step returned {found} for x {tuple(x.shape)}: expected (batch, features) as x has them"
            )
        return y if self.form.timed else y[:, None]

    def _whole(self, inputs: Tensor) -> Tensor:
        return output_of(self.module(inputs))


def takes_steps(module: nn.Module) -> bool:
    """True if the module has a step that takes an element and a state.

    >>> takes_steps(nn.GRU(2, 2))
    False
    """
    step = getattr(module, "step", None)
    return callable(step) and len(inspect.signature(step).parameters) > 1


def carried_by_steps(module: nn.Module, declared: Declared, start: Start | None) -> tuple[Carrying, Declared]:
    """The module's steps as a module that holds their state, for `wrap_module`, and what it reads.

    `start` makes the state before the first element for so many rows. Raises :class:`ContractError` with what was
    tried, if step can't be called.
    """
    said = infer_inputs(module, declared)
    start = start or _of_the_library(module)
    inputs = partial(example, said, next(module.parameters(), None))
    failed = []
    with quiet(module):
        for form in (Form(timed, _names(module)) for timed in (True, False)):
            calls = Steps(module, form, start)
            try:
                reading = asking(read_with, partial(copy_without_history, calls), inputs)
            except StatecheckError as error:
                failed.append(f"x (batch{', 1' if form.timed else ''}, ...): {error}")
                continue
            calls.reasons = {Capability.CHUNKS: WARM, **_without_gradients(calls, inputs(2, 3))}
            return Carrying(calls, reading), said
    _check_compiled(module)
    raise ContractError(
        f"{type(module).__name__}.step can't be called: {'; '.join(failed)}. Say width= or vocabulary= if it reads"
        " something else, and start=, a function of the number of rows, if it needs a first state"
    )


def _without_gradients(original: Steps, inputs: Tensor) -> dict[Capability, str]:
    """Why no gradient goes back through several steps, for what needs that; {} if one does."""
    calls = cast(Steps, copy_without_history(original))
    trained = [parameter for parameter in calls.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            outputs, _ = calls.steps(inputs, None)
            if trained and outputs.requires_grad:
                torch.autograd.grad(outputs.square().sum(), trained, allow_unused=True)
    except RuntimeError as error:
        reason = f"no gradient goes back through several steps: {one_line(str(error), 120)}"
        return {Capability.GRADIENT_STEP: reason, Capability.GRADIENT_SEQUENCE: reason}
    return {}


def _check_compiled(module: nn.Module) -> None:
    """Raise :class:`ContractError` where the module's library lacks the compiled part that its steps run on."""
    compiled = _COMPILED.get(_package(module))
    if compiled is not None and importlib.util.find_spec(compiled) is None:
        raise ContractError(
            f"{_package(module)} has no compiled module {compiled} here, and runs on that alone: install it built for"
            " CUDA, and check it on a machine with a GPU"
        )


def _names(module: nn.Module) -> tuple[str, ...]:
    """The arguments of step that carry the state; () where it takes any."""
    _, *later = inspect.signature(module.step).parameters.values()  # type: ignore[arg-type]
    return tuple(p.name for p in later if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))


def _required(module: nn.Module) -> set[str]:
    parameters = inspect.signature(module.step).parameters.values()  # type: ignore[arg-type]
    return {p.name for p in parameters if p.default is p.empty}


def _parts(returned: Any) -> tuple[Any, Any]:
    """Outputs and state in what step returned."""
    if not isinstance(returned, tuple) or len(returned) < 2:
        raise ContractError(f"step returned a {type(returned).__name__}: expected (outputs, state)")
    return returned[0], returned[1] if len(returned) == 2 else returned[1:]


def _of_the_library(module: nn.Module) -> Start | None:
    """What the generation of the module's library starts from, where steps need that; None where they don't."""
    make = _STARTS.get(_package(module))
    if make is None and callable(getattr(module, "allocate_inference_cache", None)):
        make = _allocated
    return partial(make, module) if make is not None else None


def _package(module: nn.Module) -> str:
    return type(module).__module__.split(".")[0]


def _allocated(module: nn.Module, rows: int) -> Any:
    """As the module allocates it; of the length that is asked for its states take no note."""
    return module.allocate_inference_cache(rows, 1)  # type: ignore[operator]


def _empty_windows(module: nn.Module, rows: int) -> list[tuple[None, Tensor]]:
    """As mambapy's generation starts: no hidden state and an empty window of the convolution, for each layer."""
    config: Any = module.config
    like = next(module.parameters())
    return [(None, like.new_zeros(rows, config.d_inner, config.d_conv - 1)) for _ in range(config.n_layers)]


#: Package -> what its generation starts from, for packages that offer no function for that.
_STARTS: Mapping[str, Callable[[nn.Module, int], Any]] = {"mambapy": _empty_windows}
#: Package -> the compiled module without which it computes nothing.
_COMPILED = {"mamba_ssm": "selective_scan_cuda"}
