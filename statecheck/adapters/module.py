"""Any nn.Module that has `get_states` (with or without `set_states`) as a StatefulModel.

The module's own conventions are accepted as they come: states may be nested mappings, lists or tuples of tensors,
numbers and flags; they come out flat, with dotted names, as tensors that belong to the caller. Nothing tested is
repaired: the module's own tensors go in by `set_states`, and its own forward carries them on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from statecheck import states as functions
from statecheck.adapters.contract import Declared, asking, copy_without_history, discover, output_of
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised
from statecheck.protocol import Capability, ModelFacts, Native, States, Statistics
from statecheck.wording import one_line


class Nesting:
    """How a module nests its states, learned from what its `get_states` returned last: types stand for the values.

    All adapters of one module share it, so that states can be put into a copy that was never called.
    """

    def __init__(self) -> None:
        self.types: Any = None

    def learn(self, nested: Any) -> None:
        """Remember the nesting of `nested`; {} teaches nothing."""
        flat = functions.flatten(nested)
        if flat:
            self.types = functions.unflatten(nested, {name: type(value) for name, value in flat.items()})

    def restore(self, states: States) -> Any:
        """Flat states in the module's own nesting, numbers and flags as Python values again."""
        plain: dict[str, Any] = dict(states)
        for name, kind in functions.flatten(self.types).items():
            if name in states and kind in (bool, int, float):
                plain[name] = kind(states[name].reshape(-1)[0].item())
        return plain if self.types is None else functions.unflatten(self.types, plain)


class ModuleAdapter:
    """An nn.Module as a StatefulModel. Make one with :func:`statecheck.wrap`; `module` is the module itself."""

    def __init__(
        self, module: nn.Module, facts: ModelFacts | None, pristine: nn.Module | None, nesting: Nesting | None = None
    ) -> None:
        self.module = module
        self._facts = facts
        self._pristine = pristine
        self._nesting = nesting or Nesting()
        self._batch: int | None = None

    @property
    def facts(self) -> ModelFacts:
        """What the model declares; found by :func:`wrap_module`."""
        assert self._facts is not None
        return self._facts

    def with_facts(self, facts: ModelFacts) -> ModuleAdapter:
        """The same module under other facts (a training length, say)."""
        return ModuleAdapter(self.module, facts, self._pristine, self._nesting)

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Outputs for `inputs`, continuing from the current states.

        Raises :class:`ContractError` for inputs that do not fit the facts or another batch size without a reset, and
        :class:`ModelRaised` when the module itself raises.
        """
        self._check_inputs(inputs)
        options = {name: value for name, value in (("mask", mask), ("segments", segments)) if value is not None}
        return self._checked(asking(self.module, inputs, **options), inputs)

    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Statistics]:
        """A call that tells the statistics of the states as well: :class:`statecheck.protocol.Observing`.

        Raises what a call raises, and :class:`CapabilityMissing` with the reason where they can't be used.
        """
        if self._facts is not None:
            self._facts.require(Capability.STATISTICS)
        offered = getattr(self.module, "forward_with_statistics", None)
        if not callable(offered):
            raise CapabilityMissing("the module has no forward_with_statistics: its states are read instead")
        self._check_inputs(inputs)
        given = asking(offered, inputs, every=every, entropy=entropy, running=running)
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
            raise ContractError(
                f"forward_with_statistics returned a {type(given).__name__}: expected (outputs, statistics), the second"
                " a mapping of names of states"
            )
        return self._checked(given[0], inputs), cast(Statistics, given[1])

    @property
    def backend(self) -> str:
        """What computes, as the module's attribute `backend` tells it; "torch" if that is no word."""
        told: object = None
        with suppress(Exception):  # a property of the module's own
            told = getattr(self.module, "backend", None)
        return (one_line(told, 80) if isinstance(told, str) else "") or "torch"

    @property
    def native(self) -> Native:
        """What the module offers of its library's own operations, as its attribute `native`."""
        offered = getattr(self.module, "native", None)
        if not isinstance(offered, Native):
            return Native()
        ways = {field.name: getattr(offered, field.name) for field in fields(Native)}
        return Native(**{name: None if way is None else partial(self._asked, way) for name, way in ways.items()})

    def get_states(self) -> States:
        """All that the module remembers, as tensors of the caller's own; {} before the first call."""
        nested = asking(self.module.get_states)  # type: ignore[arg-type]
        self._nesting.learn(nested)
        return {name: self._owned(name, value) for name, value in functions.flatten(nested).items()}

    def set_states(self, states: States | None) -> None:
        """Continue from `states`, the very tensors given; None: forget everything."""
        if states is None:
            self._forget()
            return
        if not callable(getattr(self.module, "set_states", None)):
            raise ContractError("the module has no set_states: its states can be observed, not put back")
        asking(self.module.set_states, self._nesting.restore(states))  # type: ignore[arg-type]
        self._batch = functions.batch_size(states)

    def get_signals(self) -> dict[str, Tensor]:
        """Gates of the last call by name, (batch, time, ...) each; {} where the module offers none."""
        if not callable(getattr(self.module, "get_signals", None)):
            return {}
        signals = functions.flatten(asking(self.module.get_signals))  # type: ignore[arg-type]
        return {name: value.detach().clone() for name, value in signals.items() if isinstance(value, Tensor)}

    def rebuild(self) -> ModuleAdapter:
        """Another adapter on a copy of the module: same parameters, no history."""
        if self._pristine is None:
            raise ContractError("the module can't be copied, so it can't be rebuilt without history")
        module = copy_without_history(self._pristine)
        module.train(self.module.training)
        return ModuleAdapter(module, self._facts, self._pristine, self._nesting)

    def _asked(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """An operation of the library's own; the batch that follows is read off its states."""
        self._batch = None
        return asking(operation, *arguments)

    def _forget(self) -> None:
        ways = _resetters(self.module)
        if not ways:
            raise ContractError("the module can't forget in place: it has neither set_states(None) nor reset()")
        for reset in ways[:-1]:
            with suppress(ModelRaised):
                asking(reset)
                break
        else:
            asking(ways[-1])
        self._batch = None

    def _checked(self, value: Any, inputs: Tensor) -> Tensor:
        """The outputs in what a call returned; notes the batch."""
        outputs = output_of(value)
        if outputs.shape[:2] != inputs.shape[:2] or outputs.dim() != 3:
            raise ContractError(
                f"the model's output has shape {tuple(outputs.shape)} for inputs {tuple(inputs.shape)}:"
                " expected (batch, time, features)"
            )
        self._batch = inputs.shape[0]
        return outputs

    def _check_inputs(self, inputs: Tensor) -> None:
        facts = self._facts
        if facts is None:
            return
        expected = 2 if facts.inputs == "tokens" else 3
        if inputs.dim() != expected:
            form = "(batch, time) token ids" if expected == 2 else "(batch, time, features) vectors"
            raise ContractError(f"expected inputs {form}, found shape {tuple(inputs.shape)}")
        if expected == 3 and inputs.shape[2] != facts.width:
            raise ContractError(f"expected vectors of width {facts.width}, found {inputs.shape[2]}")
        vocabulary = facts.vocabulary or 0
        if expected == 2 and inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < vocabulary:
            found = f"{int(inputs.min())} .. {int(inputs.max())}"
            raise ContractError(f"expected ids 0 .. {vocabulary - 1}, found {found}: another tokenizer?")
        if self._batch is not None and inputs.shape[0] != self._batch and self.get_states():
            raise ContractError(
                f"the states hold {self._batch} rows, the inputs {inputs.shape[0]}:"
                " call set_states(None) between batches"
            )

    def _owned(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, (bool, int, float)):
            return torch.full((self._batch or 1,), value)
        raise ContractError(f"state {name!r} is a {type(value).__name__}: expected a tensor, a number or a flag")


def _pristine(module: nn.Module) -> nn.Module | None:
    """A copy without history; None where the module can't be copied, or holds a history that it can't forget."""
    try:
        copied = copy_without_history(module)
        return copied if _forgets(copied) or not _has_history(module) else None
    except Exception:  # a module may hold anything: locks, generators, graphs
        return None


def _forgets(module: nn.Module) -> bool:
    """Reset the module in place if it offers that; False if it does not, or raises."""
    for reset in _resetters(module):
        with suppress(Exception):
            reset()
            return True
    return False


def _has_history(module: nn.Module) -> bool:
    """True if any state is there that is not zero."""
    held = functions.flatten(module.get_states())  # type: ignore[operator]
    return any(bool(torch.as_tensor(value).any()) for value in held.values())


def _resetters(module: nn.Module) -> list[Callable[[], Any]]:
    """The module's ways to forget: set_states(None), and reset methods without required arguments."""
    puts = [lambda: module.set_states(None)] if callable(getattr(module, "set_states", None)) else []  # type: ignore[operator]
    methods = [getattr(module, name, None) for name in ("reset_states", "reset_state", "reset")]
    return [*puts, *(method for method in methods if callable(method) and not _needs_arguments(method))]


def _needs_arguments(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def wrap_module(module: nn.Module, declared: Declared) -> ModuleAdapter:
    """The adapter of a module that has `get_states`, with facts found by trying it on copies.

    Raises :class:`ContractError` when the module breaks the protocol; the message says how to mend it.
    """
    if not callable(getattr(module, "get_states", None)):
        raise ContractError(
            f"{type(module).__name__} has no get_states(): add one that returns a dict of tensors, batch first,"
            " {} before the first call (docs/wrapping.md)"
        )
    pristine, nesting = _pristine(module), Nesting()
    history = None if pristine is not None else asking(module.get_states)  # type: ignore[arg-type]

    def make() -> ModuleAdapter:
        if pristine is not None:
            return ModuleAdapter(copy_without_history(pristine).eval(), None, pristine, nesting)
        adapter = ModuleAdapter(module, None, None, nesting)
        adapter.set_states(None)
        return adapter

    facts = discover(make, module, declared, rebuilds=pristine is not None)
    if history:
        asking(module.set_states, history)  # type: ignore[arg-type]
    return ModuleAdapter(module, facts, pristine, nesting)
