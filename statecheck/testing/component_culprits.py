"""Faults of a whole branch, for models of several components: the culprits of S4, D3, flow, coupling, gradient-ratio.

What a branch gives out is changed by forward hooks on its modules, what it remembers through `get_states` and
`set_states`, so that a fault is the same whatever the model is. All is done to a copy that shares the parameters: the
model itself is left as it was. :func:`statecheck.testing.plant` is the door.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product

import torch
from torch import Tensor, nn

from statecheck.errors import UsageError
from statecheck.experiments import ablated_modules, hooked, states_of
from statecheck.faults import Fault
from statecheck.probes.contract import gather
from statecheck.protocol import Capability, ModelFacts, StatefulModel, States, fresh
from statecheck.states import clone

FAR = 60.0  # before a sigmoid: as good as 0 or 1
WARM, TRIED = 24, 8  # elements read before a retention is measured, and those that it is measured at

Change = Callable[[str, Tensor], Tensor | None]
Read = Callable[[StatefulModel, Tensor], Tensor]


class PlantedBranch:
    """A model with a fault in one component, and in one `layer` of it if that is not None.

    `change` is what hooks on `modules` make of their outputs, `read` how inputs are read. The inner model is a copy of
    its own, whose hooks stay until this one is gone.
    """

    def __init__(
        self,
        inner: StatefulModel,
        component: str,
        *,
        modules: Sequence[str] = (),
        change: Change | None = None,
        read: Read | None = None,
        layer: int | None = None,
    ) -> None:
        self.inner, self.component, self.layer = inner, component, layer
        self._read = read
        self._hooks = ExitStack()
        if change is not None:
            self._hooks.enter_context(hooked(_module(inner), modules, change))

    @property
    def facts(self) -> ModelFacts:
        """Those of the healthy model: it claims to be one. Its Native operations are not offered."""
        return self.inner.facts

    @property
    def module(self) -> nn.Module:
        """The module underneath, with its hooks."""
        return _module(self.inner)

    def get_states(self) -> States:
        """The states, as the fault leaves them."""
        return self.inner.get_states()

    def set_states(self, states: States | None) -> None:
        """Continue from `states`; None forgets everything."""
        self.inner.set_states(states)

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Outputs, with the fault."""
        return self.inner(inputs) if self._read is None else self._read(self.inner, inputs)


def plant_in_branch(
    model: StatefulModel, fault: Fault, severity: float, component: str | None, layer: int | None
) -> PlantedBranch:
    """The model with a fault of a branch. `component` defaults to the first that the fault can sit in.

    Raises :class:`UsageError` for a model of one component, one that shows no modules to hook, no gates that join its
    branches or no diagonal recurrence where the fault needs them, and for a fault that sits in no model.
    """
    for capability in (Capability.SET_STATES, Capability.RESET, Capability.REBUILD):
        model.facts.require(capability)
    names = list(model.facts.components)
    if len(names) < 2:
        raise UsageError(f"fault {fault.name!r} sits in one of several components, and {model.facts.title} has one")
    if component is not None and component not in names:
        raise UsageError(f"no component {component!r}: the model has {', '.join(names)}")
    if layer is not None and not fault.layered:
        raise UsageError(f"fault {fault.name!r} sits in all layers of a component: leave layer={layer} out")
    refused = []
    for name in names if component is None else [component]:
        inner = model.rebuild()  # type: ignore[attr-defined]
        try:
            return _planted(inner, fault.name, severity, name, layer)
        except UsageError as error:
            refused.append(error)
    raise refused[0]


def _planted(inner: StatefulModel, fault: str, severity: float, component: str, layer: int | None) -> PlantedBranch:
    match fault:
        case "branch-off" | "branch-faint":
            return _hooked(inner, component, lambda name, value: severity * value)
        case "branch-detached":
            return _hooked(inner, component, lambda name, value: torch.lerp(value, value.detach(), severity))
        case "branch-duplicated":
            return _duplicated(inner, component, severity)
        case "gate-stuck":
            return _stuck(inner, component, severity)
        case "branch-not-carried":
            return _forgetful(inner, component, severity)
        case "constant-selection":
            return _unselective(inner, component, severity, layer)
    raise UsageError(
        f"fault {fault!r} sits in how a model is trained: statecheck.testing.training.train writes the log of it"
    )


def _module(model: StatefulModel) -> nn.Module:
    return model.module  # type: ignore[attr-defined]


# What a branch gives out ------------------------------------------------------------------------------------------


def _branches(model: StatefulModel) -> dict[str, tuple[str, ...]]:
    modules = ablated_modules(model)
    if not modules:
        raise UsageError(
            f"{model.facts.title} names no modules of each component whose outputs could be changed: say"
            " wrap(..., modules={component: PATTERNS})"
        )
    return modules


def _hooked(inner: StatefulModel, component: str, change: Change) -> PlantedBranch:
    return PlantedBranch(inner, component, modules=_branches(inner)[component], change=change)


def _duplicated(inner: StatefulModel, component: str, severity: float) -> PlantedBranch:
    """Each module of the component gives out what its neighbour in the first other component just gave out."""
    modules = _branches(inner)
    other = next(name for name in modules if name != component)
    if len(modules[other]) != len(modules[component]):
        found = f"{component} has {len(modules[component])} modules, {other} has {len(modules[other])}"
        raise UsageError(f"a branch is duplicated module by module, and {found}")
    neighbour = dict(zip(modules[component], modules[other], strict=True))
    given: dict[str, Tensor] = {}

    def copy(name: str, value: Tensor) -> Tensor | None:
        if name not in neighbour:
            given[name] = value
            return None
        original = given.pop(neighbour[name], None)
        if original is None or original.shape != value.shape:
            what = "is called before" if original is None else "gives out another shape than"
            raise UsageError(f"{name} {what} {neighbour[name]}, so that it can't give out the same")
        return torch.lerp(value, original, severity)

    planted = PlantedBranch(inner, component, modules=(*neighbour.values(), *neighbour), change=copy)
    planted(_few(inner))  # refused here, not in the middle of a check
    planted.set_states(None)
    return planted


def _stuck(inner: StatefulModel, component: str, severity: float) -> PlantedBranch:
    sides = closing_gates(inner, component)

    def move(name: str, value: Tensor) -> Tensor:
        return torch.lerp(value, torch.full_like(value, sides[name]), severity)

    return PlantedBranch(inner, component, modules=tuple(sides), change=move)


@torch.no_grad()
def closing_gates(model: StatefulModel, component: str) -> dict[str, float]:
    """The modules that compute the gates before which a component's outputs are lost: name -> the side to hold it at.

    Found by trying: a gate is a module outside of all branches whose output, held far to one side, leaves a module of
    the component without effect on the model's output, and its neighbour in another component with one. Raises
    :class:`UsageError` if some module of the component has none. The model is left without history.
    """
    modules = _branches(model)
    others = next(names for name, names in modules.items() if name != component)
    branches = [name for names in modules.values() for name in names]
    inputs = _few(model)
    found: dict[str, float] = {}
    for index, own in enumerate(modules[component]):
        neighbour = others[min(index, len(others) - 1)]
        candidates = [name for name in _leaves(_module(model)) if not _inside(name, branches)]
        for gate, side in product(candidates, (FAR, -FAR)):
            held = {gate: side}
            if not _matters(model, inputs, own, held) and _matters(model, inputs, neighbour, held):
                found[gate] = side
                break
        else:
            raise UsageError(f"no module of {model.facts.title} is a gate that can close {own}: tried {candidates}")
    model.set_states(None)
    return found


def _few(model: StatefulModel) -> Tensor:
    """Two seeded rows of eight elements."""
    return torch.stack(gather(model, None).rows[:2])[:, :8].to(model.facts.device)


def _leaves(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if name and not list(child.children())]


def _inside(name: str, branches: Sequence[str]) -> bool:
    return any(name == branch or name.startswith(f"{branch}.") for branch in branches)


def _matters(model: StatefulModel, inputs: Tensor, branch: str, held: dict[str, float]) -> bool:
    """True if the model's output changes with that of the module `branch`, when other modules give out constants."""
    outputs = []
    for factor in (1.0, 0.0):

        def change(name: str, value: Tensor, factor: float = factor) -> Tensor:
            return factor * value if name == branch else torch.full_like(value, held[name])

        model = fresh(model)
        with hooked(_module(model), (branch, *held), change):
            outputs.append(model(inputs))
    intact, without = outputs
    return bool((intact - without).abs().max() > 1e-6 * intact.abs().max())


# What a branch remembers ------------------------------------------------------------------------------------------


def _forgetful(inner: StatefulModel, component: str, severity: float) -> PlantedBranch:
    """All states of the component are moved towards zero before each call."""
    names = states_of(inner.facts, component)

    def read(model: StatefulModel, inputs: Tensor) -> Tensor:
        held = model.get_states()
        if held:
            model.set_states({**held, **{name: (1 - severity) * held[name] for name in names}})
        return model(inputs)

    return PlantedBranch(inner, component, read=read)


def _unselective(inner: StatefulModel, component: str, severity: float, layer: int | None) -> PlantedBranch:
    """h' = a h + w of a diagonal recurrence becomes h' = a_mean h + w, unit by unit, whatever is read.

    w is what the same step makes of h = 0, so that the recurrence must be linear in h.
    """
    facts = inner.facts
    diagonal = [name for name in facts.names(component=component) if facts.states[name].recurrence == "diagonal"]
    layers = [facts.states[name].layer for name in diagonal]
    chosen = layer if layer is not None or not layers else layers[-1]
    names = [name for name, at in zip(diagonal, layers, strict=True) if at == chosen]
    if not names:
        raise UsageError(
            "constant-selection sits in a state declared diagonal (states={PATTERN: {'recurrence': 'diagonal'}}), and"
            f" {component} has none{'' if layer is None else f' in layer {layer}'}"
        )
    mean = _mean_retention(inner, names)

    def read(model: StatefulModel, inputs: Tensor) -> Tensor:
        outputs = []
        for token in inputs.split(1, dim=1):
            before, written = _written(model, token, names)
            outputs.append(model(token))
            after = model.get_states()
            for name in names if before else ():
                after[name] = torch.lerp(after[name], mean[name] * before[name] + written[name], severity)
            model.set_states(after)
        return torch.cat(outputs, dim=1) if outputs else model(inputs)

    return PlantedBranch(inner, component, read=read, layer=chosen)


def _written(model: StatefulModel, token: Tensor, names: Sequence[str]) -> tuple[States, States]:
    """The states before `token`, and what it makes of them when those of `names` are zero; the former are put back."""
    before = model.get_states()
    if not before:
        return {}, {}
    model.set_states({**before, **{name: torch.zeros_like(before[name]) for name in names}})
    model(token)
    written = model.get_states()
    model.set_states(before)
    return clone(before), written


@torch.no_grad()
def _mean_retention(model: StatefulModel, names: Sequence[str]) -> States:
    """What each unit keeps of its state: the mean over seeded inputs at which it held something."""
    inputs = torch.stack(gather(model, None).rows[:16])[:, : WARM + TRIED].to(model.facts.device)
    model = fresh(model)
    model(inputs[:, :WARM])
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for token in inputs[:, WARM:].split(1, dim=1):
        before, written = _written(model, token, names)
        model(token)
        after = model.get_states()
        for name in names:
            held = before[name].abs() > 1e-3 * before[name].square().mean().sqrt()
            share = (after[name] - written[name]) / before[name]
            kept[name].append(torch.where(held, share, torch.nan))
    model.set_states(None)
    return {name: torch.stack(shares).flatten(0, 1).nanmean(dim=0).nan_to_num(0.0) for name, shares in kept.items()}
