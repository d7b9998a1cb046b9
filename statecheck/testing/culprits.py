"""Faults that can be planted by name, at a severity, in any healthy model: each proves a check that must catch it.

A planted model reads one token a call and has its states edited in between, through the protocol alone, so that the
fault is the same whatever the model is. `plant(model, "none")` goes the same way and changes nothing: the control.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statecheck.errors import UsageError
from statecheck.faults import FAULTS, Fault
from statecheck.protocol import Capability, ModelFacts, StateFacts, StatefulModel, StateKind, States
from statecheck.testing.component_culprits import plant_in_branch

#: The faults that make sense in a cache of keys and values, whose entries are written once and grow in number.
OF_CACHES = (
    "none",
    "nan-at-step-k",
    "reset-every-k",
    "not-carried",
    "shared-across-batch",
    "output-ignores-state",
    "non-deterministic",
)


def plant(
    model: StatefulModel,
    fault: str,
    *,
    severity: float | None = None,
    layer: int | None = None,
    component: str | None = None,
) -> StatefulModel:
    """The model with a fault in it. `layer` defaults to the last; `severity` to the fault's own.

    `component` is for the faults of a branch, and defaults to the first that can have it. The model needs SET_STATES
    and RESET, for faults of a branch REBUILD as well. Raises :class:`UsageError` for an unknown fault, and for one that
    the model has no place for.

    >>> from statecheck.adapters import wrap
    >>> broken = plant(wrap(torch.nn.GRU(4, 4)), "nan-at-step-k", severity=3)
    >>> _ = broken(torch.zeros(1, 5, 4))
    >>> bool(broken.get_states()["layers.0.h"].isnan().any())
    True
    """
    if fault not in FAULTS:
        raise UsageError(f"unknown fault {fault!r}; known are {', '.join(FAULTS)}")
    for capability in (Capability.SET_STATES, Capability.RESET):
        model.facts.require(capability)
    chosen = FAULTS[fault]
    strength = chosen.severity if severity is None else severity
    if chosen.branch:
        return plant_in_branch(model, chosen, strength, component, layer)
    if component is not None:
        raise UsageError(f"fault {fault!r} sits in a layer, not in a component: say layer=N")
    return Planted(model, chosen, strength, layer)


class Planted:
    """A model with a fault. The inner model is reset when this one is."""

    def __init__(self, inner: StatefulModel, fault: Fault, severity: float, layer: int | None) -> None:
        self.inner, self.fault, self.severity = inner, fault, severity
        memory = _memory(inner.facts, fault)
        self.layer = list(dict.fromkeys(state.layer for state in memory.values()))[-1] if layer is None else layer
        own = {name: state for name, state in memory.items() if state.layer == self.layer or not fault.layered}
        self.names = [name for name, state in own.items() if state.recurrence != "derived"]
        self.read = 0

    @property
    def facts(self) -> ModelFacts:
        """Those of the healthy model: it claims to be one. Its Native operations are not offered."""
        return self.inner.facts

    @property
    def module(self) -> object:
        """The healthy module underneath."""
        return getattr(self.inner, "module", None)

    def get_states(self) -> States:
        """The edited states."""
        return self.inner.get_states()

    def set_states(self, states: States | None) -> None:
        """Continue from `states`; None forgets everything."""
        self.inner.set_states(states)
        if states is None:
            self.read = 0

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Outputs, one token at a time, with the fault."""
        if self.fault.name == "not-carried":
            self.inner.set_states(None)
            return self.inner(inputs)
        outputs = [self._token(inputs[:, t : t + 1]) for t in range(inputs.shape[1])]
        return torch.cat(outputs, dim=1) if outputs else self.inner(inputs)

    def _token(self, token: Tensor) -> Tensor:
        before = self.inner.get_states()
        if self.fault.name == "forgets-at-once" and before:
            before = {n: v * (1 - self.severity) if n in self.names else v for n, v in before.items()}
            self.inner.set_states(before)
        outputs = self.inner(token)
        after = self.inner.get_states()
        self.read += 1
        edited = {n: self._edited(n, before.get(n), v) if n in self.names else v for n, v in after.items()}
        if self.fault.name == "output-ignores-state":
            self.inner.set_states(None)
            outputs = self.inner(token)
        if self.fault.name != "none":
            self.inner.set_states(edited)
        return outputs

    def _edited(self, name: str, before: Tensor | None, after: Tensor) -> Tensor:
        match self.fault.name:
            case "retention-above-1":
                return after if before is None else after + self.severity * before
            case "channel-explodes":
                return after if before is None else _one_unit(after, _grown(before, after, self.severity))
            case "frozen":
                return torch.lerp(after, _constant(after), self.severity)
            case "stuck":
                return after if before is None else torch.lerp(after, before, self.severity)
            case "reset-every-k":
                return torch.zeros_like(after) if self.read % int(self.severity) == 0 else after
            case "saturated":
                return torch.where(_share_of_units(after, self.severity), _signs(after), after)
            case "dead":
                return torch.where(_share_of_units(after, self.severity), torch.zeros_like(after), after)
            case "nan-at-step-k":
                return _one_unit(after, torch.full_like(after, torch.nan)) if self.read == int(self.severity) else after
            case "shared-across-batch":
                return torch.lerp(after, after.mean(0, keepdim=True).expand_as(after), self.severity)
            case "non-deterministic":
                return after + self.severity * after.square().mean().sqrt() * torch.randn_like(after)
        return after


def _memory(facts: ModelFacts, fault: Fault) -> dict[str, StateFacts]:
    """Where faults are planted: the recurrent states, or the caches of a model that has no other memory."""
    recurrent = {name: state for name, state in facts.states.items() if state.kind.recurrent}
    if recurrent:
        return recurrent
    if fault.name not in OF_CACHES:
        raise UsageError(
            f"fault {fault.name!r} sits in a recurrent state, and {facts.title} has none;"
            f" a cache can have {', '.join(OF_CACHES)}"
        )
    return {name: state for name, state in facts.states.items() if state.kind is StateKind.KV}


def _one_unit(value: Tensor, other: Tensor) -> Tensor:
    """`value` with its first unit taken from `other`, in every row."""
    flat, source = value.flatten(1).clone(), other.flatten(1)
    flat[:, 0] = source[:, 0]
    return flat.view_as(value)


def _grown(before: Tensor, after: Tensor, factor: float) -> Tensor:
    """`after`, but at least `factor` times as large as `before` was."""
    return torch.where(after.abs() < factor * before.abs(), factor * before, after)


def _constant(like: Tensor) -> Tensor:
    """One seeded vector for every row, of one sign for a state that has one sign."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape[1:], generator=generator).to(like)
    return (vector.abs() if bool((like >= 0).all()) else vector).expand_as(like)


def _signs(value: Tensor) -> Tensor:
    """Plus or minus one by sign; a state that is never negative has only its upper bound."""
    return torch.where(value >= 0, 1.0, -1.0).to(value.dtype)


def _share_of_units(like: Tensor, share: float) -> Tensor:
    """True for the first `share` of the units."""
    units = like[0].numel()
    chosen = torch.arange(units, device=like.device) < round(share * units)
    return chosen.view(like.shape[1:]).expand_as(like)
