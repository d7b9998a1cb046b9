"""Any nn.Module that has `get_states` (with or without `set_states`) as a StatefulModel.

The module's own conventions are accepted as they come: states may be nested mappings, lists or tuples of tensors,
numbers and flags; they come out flat, with dotted names, as tensors that belong to the caller. Nothing tested is
repaired: the module's own tensors go in by `set_states`, and its own forward carries them on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statecheck import states as functions
from statecheck.adapters.contract import Declared, copy_without_history, discover
from statecheck.errors import ContractError, ModelRaised, StatecheckError
from statecheck.protocol import ModelFacts, States


class ModuleAdapter:
    """An nn.Module as a StatefulModel. Make one with :func:`statecheck.wrap`; `module` is the module itself."""

    def __init__(self, module: nn.Module, facts: ModelFacts | None, pristine: nn.Module | None) -> None:
        self.module = module
        self._facts = facts
        self._pristine = pristine
        self._batch: int | None = None
        self._template: Any = None

    @property
    def facts(self) -> ModelFacts:
        """What the model declares; found by :func:`wrap_module`."""
        assert self._facts is not None
        return self._facts

    def with_facts(self, facts: ModelFacts) -> ModuleAdapter:
        """The same module under other facts (a training length, say)."""
        return ModuleAdapter(self.module, facts, self._pristine)

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Outputs for `inputs`, continuing from the current states.

        Raises :class:`ContractError` for inputs that do not fit the facts or another batch size without a reset, and
        :class:`ModelRaised` when the module itself raises.
        """
        self._check_inputs(inputs)
        options = {name: value for name, value in (("mask", mask), ("segments", segments)) if value is not None}
        outputs = _output(_asking(self.module, inputs, **options))
        if outputs.shape[:2] != inputs.shape[:2] or outputs.dim() != 3:
            raise ContractError(
                f"the model's output has shape {tuple(outputs.shape)} for inputs {tuple(inputs.shape)}:"
                " expected (batch, time, features)"
            )
        self._batch = inputs.shape[0]
        return outputs

    def get_states(self) -> States:
        """All that the module remembers, as tensors of the caller's own; {} before the first call."""
        nested = _asking(self.module.get_states)  # type: ignore[arg-type]
        self._template = nested
        return {name: self._owned(name, value) for name, value in functions.flatten(nested).items()}

    def set_states(self, states: States | None) -> None:
        """Continue from `states`, the very tensors given; None: forget everything."""
        if states is None:
            self._forget()
            return
        if not callable(getattr(self.module, "set_states", None)):
            raise ContractError("the module has no set_states: its states can be observed, not put back")
        if self._template is None:
            self._template = _asking(self.module.get_states)  # type: ignore[arg-type]
        nested = self._as_module_has_them(states)
        _asking(self.module.set_states, nested)  # type: ignore[arg-type]
        self._batch = functions.batch_size(states)

    def rebuild(self) -> ModuleAdapter:
        """Another adapter on a copy of the module: same parameters, no history."""
        if self._pristine is None:
            raise ContractError("the module can't be copied, so it can't be rebuilt without history")
        module = copy_without_history(self._pristine)
        module.train(self.module.training)
        return ModuleAdapter(module, self._facts, self._pristine)

    def _forget(self) -> None:
        reset = _resetter(self.module)
        if reset is None:
            raise ContractError("the module can't forget in place: it has neither set_states(None) nor reset()")
        _asking(reset)
        self._batch = None

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

    def _as_module_has_them(self, states: States) -> Any:
        """The states in the module's own nesting, numbers and flags as Python values again."""
        if not self._template:
            return states
        own = functions.flatten(self._template)
        plain: dict[str, Any] = dict(states)
        for name, value in own.items():
            if name in states and not isinstance(value, Tensor):
                plain[name] = type(value)(states[name].reshape(-1)[0].item())
        return functions.unflatten(self._template, plain)


def _pristine(module: nn.Module) -> nn.Module | None:
    try:
        return copy_without_history(module)
    except Exception:  # a module may hold anything: locks, generators, graphs
        return None


def _asking(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the module; what it raises becomes ModelRaised, so that a check can tell its faults from ours."""
    try:
        return function(*arguments, **options)
    except (StatecheckError, MemoryError):
        raise
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelRaised(f"the model raised {type(error).__name__} in {name}: {first}") from error


def _output(value: Any) -> Tensor:
    """The tensor of outputs in what a forward returned: itself, `.logits`, or the first of a tuple."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    value = getattr(value, "logits", value)
    if not isinstance(value, Tensor):
        raise ContractError(f"the model returned a {type(value).__name__}: expected a tensor (batch, time, features)")
    return value


def _resetter(module: nn.Module) -> Callable[[], Any] | None:
    """The module's way to forget: set_states(None), or a reset method without required arguments."""
    if callable(getattr(module, "set_states", None)):
        return lambda: module.set_states(None)  # type: ignore[operator]
    for name in ("reset_states", "reset_state", "reset"):
        method = getattr(module, name, None)
        if callable(method) and not _needs_arguments(method):
            return method
    return None


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
    pristine = _pristine(module)

    def make() -> ModuleAdapter:
        if pristine is not None:
            return ModuleAdapter(copy_without_history(pristine), None, pristine)
        adapter = ModuleAdapter(module, None, None)
        adapter.set_states(None)
        return adapter

    facts = discover(make, module, declared, rebuilds=pristine is not None)
    return ModuleAdapter(module, facts, pristine)
