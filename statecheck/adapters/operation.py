"""Bare operations: functions with an initial and a final state, as libraries of kernels ship them.

The contract that is tested, for a function of tensors (batch, time, ...); (batch, heads, time, ...) with time_axis=2:

    no history      function(q, k, v, ...) with its initial state left out
    on a state      the same with initial_state= (or initial_states, state, h0 ...: found in the signature, or said) the
                    very object that the last call brought
    the state       the second thing that it returns, or the attribute `state` of what it returns; a switch such as
                    output_final_state or return_final_states is turned on
    packed          with cu_seqlens=: all rows in one, a state for each sequence; with seq_idx= or segments=: as they
                    are, a number for each element. A sequence starts from nothing, the first of a row from its state
    one element     `step` in its place on a warm state, where a library has another function for that
    uncached        `reference` over everything, where one is given, else the function itself

Inputs are vectors: their features are split into the arguments, in order, each by way of its transform (a log-sigmoid
for a decay, say). Tensors among the options (rates, bonuses) are parameters.

It can't carry on a function that takes no initial state. A state of one tensor with the batch in front goes in by
`set_states` as it is, so that a function that writes into it is caught (ALIAS); others are put together from copies.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import Declared, asking, copy_without_history, example
from statecheck.carrying import ROOT, Calls, Carrying, CarryingPacked, read_with
from statecheck.errors import ContractError, ModelRaised
from statecheck.protocol import States

Function = Callable[..., Any]
INITIAL = ("initial_state", "initial_states", "init_state", "init_states", "state", "states", "h0", "hx")
SWITCHES = ("output_final_state", "return_final_state", "return_final_states", "return_last_state", "return_state")
PACKING = ("cu_seqlens", "seq_idx", "segments")
CHUNKS = ("chunk_size", "block_size", "chunk")


@dataclass(frozen=True)
class Signature:
    """What is said of an operation: shapes of its arguments without batch and time, and how each is made."""

    arguments: Mapping[str, Sequence[int]]
    transforms: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    time_axis: int = 1
    initial: str | None = None
    packing: str | None = None

    @property
    def width(self) -> int:
        """Features of an input vector: the numbers of all arguments together."""
        return sum(prod(shape) for shape in self.arguments.values())


class Operation(Calls):
    """An operation as calls. `gain` is 1 for every feature: moving it by a unit in its last place measures noise."""

    def __init__(
        self,
        function: Function,
        said: Signature,
        *,
        reference: Function | None,
        step: Function | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.function, self.said, self.reference, self.step = function, said, reference, step
        self.gain = nn.Parameter(torch.ones(said.width, dtype=dtype))
        tensors = {name: value for name, value in said.options.items() if isinstance(value, Tensor)}
        self.tensors = nn.ParameterDict({name: nn.Parameter(value.detach().clone()) for name, value in tensors.items()})
        self.plain = {name: value for name, value in said.options.items() if name not in tensors}
        self.initial = _initial(function, said.initial)
        self.switches = {name: True for name in SWITCHES if name in _parameters(function) and name not in said.options}
        self.packing = said.packing or next((name for name in PACKING if name in _parameters(function)), None)
        if reference is not None:
            self.whole = self._whole

    def forward(self, inputs: Tensor, held: Any, segments: Tensor | None = None) -> tuple[Tensor, Any]:
        if segments is not None:
            return self._packed(inputs, held, segments)
        one = self.step is not None and held is not None and inputs.shape[1] == 1
        function = self.step if one and self.step is not None else self.function
        return self._called(function, self._given(inputs), held, {})

    def _called(self, function: Function, given: Mapping[str, Tensor], held: Any, extra: dict) -> tuple[Tensor, Any]:
        state = {} if held is None else {self.initial: held}
        returned = function(**given, **self._options(), **self.switches, **state, **extra)
        return self._outputs(returned), _state_of(returned, function)

    def _given(self, inputs: Tensor) -> dict[str, Tensor]:
        """The arguments, (batch, time, ...) or with time at its axis, from the features of the inputs."""
        features = inputs.to(self.gain.dtype) * self.gain
        parts = features.split([prod(shape) for shape in self.said.arguments.values()], dim=-1)
        made = {}
        for (name, shape), part in zip(self.said.arguments.items(), parts, strict=True):
            value = self.said.transforms.get(name, _as_it_is)(part.unflatten(-1, tuple(shape) or (1,)))
            value = value if shape else value.squeeze(-1)
            made[name] = value.movedim(1, self.said.time_axis)
        return made

    def _options(self) -> dict[str, Any]:
        return {**self.tensors, **self.plain}

    def _outputs(self, returned: Any) -> Tensor:
        """The outputs, (batch, time, features)."""
        outputs = getattr(returned, "outputs", returned)
        outputs = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        if not isinstance(outputs, Tensor):
            raise ContractError(f"the operation returned a {type(outputs).__name__} first: expected its outputs")
        return outputs.movedim(self.said.time_axis, 1).flatten(2)

    def _whole(self, inputs: Tensor) -> Tensor:
        assert self.reference is not None
        return self._outputs(asking(self.reference, **self._given(inputs), **self._options()))

    def _packed(self, inputs: Tensor, held: Any, segments: Tensor) -> tuple[Tensor, Any]:
        if self.packing != "cu_seqlens":
            return self._called(self.function, self._given(inputs), held, {str(self.packing): segments.int()})
        rows, time = segments.shape
        starts = torch.ones_like(segments, dtype=torch.bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        first = starts.flatten().nonzero()[:, 0]
        ends = torch.tensor([rows * time], device=first.device)
        given = {
            name: value.movedim(self.said.time_axis, 1).flatten(0, 1)[None].movedim(1, self.said.time_axis)
            for name, value in self._given(inputs).items()
        }
        if held is not None:
            held = _mapped(held, lambda state: _placed(state, first % time == 0))
        outputs, after = self._called(self.function, given, held, {"cu_seqlens": torch.cat([first, ends])})
        last = torch.cat([first[1:], ends]) % time == 0
        return outputs.unflatten(1, (rows, time))[0], _mapped(after, lambda state: state[last])


class Itself:
    """A state that is one tensor with the batch in front: no copy is made, that is what is looked for."""

    def read(self, root: object, rows: int) -> States:
        return {ROOT: cast(Mapping[str, Tensor], root)[ROOT]}

    def write(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if ROOT not in states:
            raise ContractError(f"expected a state named {ROOT!r}, found {', '.join(states) or 'none'}")
        return {ROOT: states[ROOT]}


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _mapped(held: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(held, (tuple, list)):
        return type(held)(_mapped(part, change) for part in held)
    return change(held)


def _placed(state: Tensor, where: Tensor) -> Tensor:
    """A state for each sequence: those of the rows `where` a row starts, zeros elsewhere."""
    placed = state.new_zeros(len(where), *state.shape[1:])
    return placed.index_copy(0, where.nonzero()[:, 0], state)


def _parameters(function: Function) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled functions have none
        return {}


def _initial(function: Function, said: str | None) -> str:
    """The argument that takes the state. Raises :class:`ContractError` for a function that has none."""
    have = _parameters(function)
    found = said or next((name for name in INITIAL if name in have), None)
    if found is None or (have and found not in have and not _takes_any(have)):
        raise ContractError(
            f"{getattr(function, '__name__', function)} takes no {said or 'initial state'}: it has"
            f" {', '.join(have) or 'no signature'}; say initial='name', or give a function that can go on from a state"
        )
    return found


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _state_of(returned: Any, function: Function) -> Any:
    """The final state in what was returned. Raises :class:`ContractError` where there is none."""
    found = getattr(returned, "state", None)
    if found is None and isinstance(returned, (tuple, list)) and len(returned) > 1:
        found = returned[1]
    if found is None:
        name = getattr(function, "__name__", type(function).__name__)
        raise ContractError(f"{name} returned no final state: expected (outputs, state); is a switch off in options=?")
    return found


def carried(
    function: Function,
    said: Signature,
    *,
    reference: Function | None,
    step: Function | None,
    dtype: torch.dtype,
    boundaries: Sequence[int],
) -> Carrying:
    """The operation as a module that holds its state, for `wrap_module`.

    Raises :class:`ContractError` for arguments that the function does not take, or one that returns no state.
    """
    _check(function, said, reference)
    calls = Operation(function, said, reference=reference, step=step, dtype=dtype)
    known = [_parameters(function)[name].default for name in CHUNKS if name in _parameters(function)]
    sizes = [size for size in (*known, *(said.options.get(name) for name in CHUNKS)) if isinstance(size, int)]
    calls.boundaries = tuple(dict.fromkeys((*boundaries, *sizes)))
    declared = Declared(width=said.width)
    inputs = partial(example, declared, calls.gain)
    with torch.no_grad():
        try:
            reading = asking(read_with, partial(copy_without_history, calls), inputs)
        except ModelRaised as error:
            raise ContractError(
                f"{error} (given one element at a time, 2 and 3 rows): say what it needs in options=, initial=,"
                " time_axis=, and wrap a function that takes calls of any length"
            ) from error
    alone = [(slot.name, slot.axis, slot.part) for slot in reading.slots] == [(ROOT, 0, None)]
    return (CarryingPacked if calls.packing else Carrying)(calls, Itself() if alone else reading)


def _check(function: Function, said: Signature, reference: Function | None) -> None:
    if not said.arguments:
        raise ContractError("arguments= names no tensor: expected e.g. {'q': (heads, width), 'g': (heads,)}")
    for one in [function, *([reference] if reference is not None else [])]:
        have = _parameters(one)
        unknown = [name for name in (*said.arguments, *said.options) if name not in have]
        if have and unknown and not _takes_any(have):
            name = getattr(one, "__name__", type(one).__name__)
            raise ContractError(f"{name} takes no {', '.join(unknown)}: it has {', '.join(have)}")
    strange = [name for name in said.transforms if name not in said.arguments]
    if strange:
        raise ContractError(f"transforms: no argument {', '.join(strange)}; they are {', '.join(said.arguments)}")
