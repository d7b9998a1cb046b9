"""A call that takes a state and brings the next, as a module that holds the library's own state between calls.

Adapters of such libraries say how they are called (:class:`Calls`); the state that a call brought goes into the next
one as it is, the very object, so that nothing that the library does to it is repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from statecheck.errors import CapabilityMissing
from statecheck.layout import Layout, learn
from statecheck.protocol import Capability, Native, States

ROOT = "state"  # names of states start with it: "state" itself is one tensor, "state.0.h" a part of a larger one


class Reading(Protocol):
    """Where the states are in what a library carries: :class:`statecheck.layout.Layout`, or an adapter's own."""

    def read(self, root: object, rows: int) -> States: ...
    def write(self, states: Mapping[str, Tensor]) -> Any: ...


class Calls(nn.Module):
    """How a library is called. It holds no state of its own beside the library's parameters.

    `boundaries` are lengths at which another path is taken; `reasons` say what can't be done, and why; `whole` is a
    call over everything that shares nothing with the calls, where there is one.
    """

    boundaries: tuple[int, ...] = ()
    reasons: Mapping[Capability, str] = {}
    whole: Callable[[Tensor], Tensor] | None = None

    def forward(self, inputs: Tensor, held: Any) -> tuple[Tensor, Any]:
        """Outputs for `inputs` and the state after them; `held` is the state before, None for no history."""
        raise NotImplementedError


def begun(start: Callable[[int], Any], rows: int, module: object) -> Any:
    """The state that `start` makes for so many rows, torch's default dtype being that of the parameters of `module`."""
    parameters = module.parameters() if isinstance(module, nn.Module) else iter(())
    own = next((p.dtype for p in parameters if p.dtype in (torch.float32, torch.float64)), None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(own or before)
    try:
        return start(rows)
    finally:
        torch.set_default_dtype(before)


class Carrying(nn.Module):
    """A module that goes on from call to call with the state that the last one brought; `subject` is the model itself.

    >>> class Sum(Calls):
    ...     def forward(self, inputs, held):
    ...         sums = inputs.cumsum(1) if held is None else inputs.cumsum(1) + held[:, None]
    ...         return sums, sums[:, -1]
    >>> module = Carrying(Sum(), read_with(Sum, lambda rows, time: torch.ones(rows, time, 1)))
    >>> _ = module(torch.ones(2, 3, 1))
    >>> module.get_states()["state"].tolist(), module(torch.ones(2, 1, 1)).flatten().tolist()
    ([[3.0], [3.0]], [4.0, 4.0])
    """

    def __init__(self, calls: Calls, reading: Reading) -> None:
        super().__init__()
        self.calls = calls
        self._reading = reading
        self._held: Any = None
        self._rows = 0

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, self._held = self.calls(inputs, self._held)
        self._rows = len(inputs)
        return outputs

    def get_states(self) -> States:
        return self._reading.read({ROOT: self._held}, self._rows) if self._rows else {}

    def set_states(self, states: States | None) -> None:
        if states is None:
            self._restart()
            return
        self._held = self._reading.write(states)[ROOT]
        self._rows = len(next(iter(states.values())))

    @property
    def native(self) -> Native:
        """The state as the library has it. A call without a state is how such a library forgets."""
        return Native(
            reset=self._restart,
            held=lambda: (self._held, self._rows),
            hold=self._hold,
            uncached=None if self.calls.whole is None else self._uncached,
        )

    def _restart(self) -> None:
        self._held, self._rows = None, 0

    def _hold(self, held: Any) -> None:
        self._held, self._rows = held

    def _uncached(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            raise CapabilityMissing("a call takes no mask")
        assert self.calls.whole is not None
        return self.calls.whole(inputs)


class CarryingPacked(Carrying):
    """The same, for calls that take `segments` as well: (batch, time), a number for each packed sequence."""

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        outputs, self._held = self.calls(inputs, self._held, segments)
        self._rows = len(inputs)
        return outputs


def read_with(make: Callable[[], Calls], inputs: Callable[[int, int], Tensor]) -> Layout:
    """Where the states are, found by trying: after one element of 2 rows, after 3 more, and after one of 3 rows.

    `make` gives calls on a copy without history, `inputs` example inputs of so many rows and elements.
    """

    def after(rows: int, steps: int) -> dict[str, Any]:
        calls, held, given = make(), None, inputs(rows, steps)
        for t in range(steps):
            held = calls(given[:, t : t + 1], held)[1]
        return {ROOT: held}

    return learn(after(2, 1), after(2, 4), after(3, 1))
