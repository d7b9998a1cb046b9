"""What the caller of `wrap` said, held against the model: a pattern that names nothing is a slip, not a wish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from statecheck.adapters.contract import Declared, Patterns, as_patterns, matches
from statecheck.errors import ContractError
from statecheck.protocol import ModelFacts, SignalKind, StateFacts, StateKind

OF_A_STATE = tuple(field.name for field in fields(StateFacts) if field.name not in ("component", "shape", "dtype"))


def check_said(declared: Declared) -> None:
    """Raise :class:`ContractError` for a field, kind, component or length that can't be meant, before any trial."""
    length = declared.training_length
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ContractError(f"training_length: expected a number of elements, 1 or more, found {length!r}")
    for pattern, kind in declared.signals.items():
        if kind not in (signal_kinds := [one.value for one in SignalKind]):
            raise ContractError(f"signals[{pattern!r}]: no kind {kind!r}; expected one of {', '.join(signal_kinds)}")
    for pattern, said in declared.states.items():
        unknown = [name for name in said if name not in OF_A_STATE]
        if unknown:
            raise ContractError(
                f"states[{pattern!r}]: no field {', '.join(map(repr, unknown))}; expected {', '.join(OF_A_STATE)}"
            )
        kinds = [kind.value for kind in StateKind]
        if "kind" in said and said["kind"] not in (*kinds, *StateKind):
            raise ContractError(f"states[{pattern!r}]: no kind {said['kind']!r}; expected one of {', '.join(kinds)}")
    known = tuple(declared.components or ("state",))
    for option in ("parameters", "modules", "selective"):
        value: Any = getattr(declared, option)
        for name in value if isinstance(value, Mapping) else ():
            if name not in known:
                raise ContractError(f"{option}: no component {name!r}; the components are {', '.join(known)}")


def check_found(declared: Declared, module: nn.Module, facts: ModelFacts) -> None:
    """Raise :class:`ContractError` for a pattern that names nothing, a head axis or a normaliser that is not there."""
    _check_named("states", {pattern: pattern for pattern in declared.states}, facts.states)
    _check_named("parameters", declared.parameters or {}, [name for name, _ in module.named_parameters()])
    _check_named("modules", declared.modules or {}, [name for name, _ in module.named_modules() if name])
    for name, state in facts.states.items():
        if state.head_axis is not None and not 1 <= state.head_axis <= len(state.shape):
            raise ContractError(
                f"state {name!r}: head_axis={state.head_axis}, but it has axes 0 (batch) to {len(state.shape)}"
            )
        if state.normaliser is not None and state.normaliser not in facts.states:
            raise ContractError(
                f"state {name!r}: its normaliser {state.normaliser!r} is not a state;"
                f" the model has {', '.join(facts.states)}"
            )


def _check_named(option: str, said: Patterns, names: Iterable[str]) -> None:
    have = list(names)
    for key, value in said.items():
        for pattern in as_patterns(value):
            if not any(matches(name, [pattern]) for name in have):
                listed = ", ".join(have[:12]) + (f" and {len(have) - 12} more" if len(have) > 12 else "")
                where = f"{option}[{key!r}]" if key != pattern else option
                raise ContractError(f"{where}: nothing matches {pattern!r}; the model has {listed or 'none'}")
