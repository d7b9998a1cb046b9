"""What adapters share: finding out by trying what a module is, and saying so as :class:`ModelFacts`.

All trials run on copies that share the module's parameters and nothing else, so that the module is left as it was.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from statecheck.errors import ContractError, ModelRaised, StatecheckError
from statecheck.protocol import Capability, ComponentFacts, ModelFacts, SignalKind, StateFacts, StateKind, States
from statecheck.proving import ELEMENTS, Reader, with_statistics
from statecheck.states import clone, distance, relative, wide

#: Why a set_states that is there is no capability: a check can tell it from one that is not.
NOT_GIVEN_BACK = "does not give s back"

Patterns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Declared:
    """What the caller of `wrap` said, and what an adapter knows of its family."""

    vocabulary: int | None = None
    width: int | None = None
    components: Patterns | None = None
    parameters: Patterns | None = None
    modules: Patterns | None = None
    training_length: int | None = None
    loss: str | None = None
    selective: bool | Mapping[str, bool] | None = None
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # pattern -> fields of StateFacts
    title: str | None = None
    tokenizer: Path | None = None
    signals: Mapping[str, str] = field(default_factory=dict)  # pattern -> kind of a signal


def copy_without_history(module: nn.Module) -> nn.Module:
    """A copy that shares every parameter with `module` and owns the rest (buffers, attributes, states)."""
    shared: dict[int, Any] = {id(value): value.detach().clone() for value in _held_with_graph(_attributes(module))}
    shared |= {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, memo=shared)


def _attributes(module: nn.Module) -> list[Any]:
    """What the module and its submodules hold as attributes, buffers included."""
    return [value for child in module.modules() for value in vars(child).values()]


def _held_with_graph(held: Any) -> Iterator[Tensor]:
    """Tensors inside nested containers that carry a graph of gradients, which torch refuses to copy."""
    if isinstance(held, Tensor):
        if held.grad_fn is not None:
            yield held
    elif isinstance(held, (Mapping, list, tuple)):
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from _held_with_graph(value)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; global random numbers and each submodule's mode are put back."""
    modes = {child: child.training for child in module.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for child, mode in modes.items():
                child.training = mode


def as_patterns(value: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """True if a shell-style pattern names `name` itself, or a prefix of it that ends at a dot.

    >>> matches("layers.3.fast", ["layers.*.fast"]), matches("layers.3.fast.h", ["layers.*.fast"])
    (True, True)
    """
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*") for pattern in patterns)


def components_of(declared: Declared, state_names: Sequence[str]) -> dict[str, ComponentFacts]:
    """The components that were declared, or a single one named "state" that owns every state.

    Raises :class:`ContractError` for a component without states, a state in two components, or in none.
    """
    if not declared.components:
        said = declared.selective
        selective = said.get("state") if isinstance(said, Mapping) else said
        modules = tuple(pattern for value in (declared.modules or {}).values() for pattern in as_patterns(value))
        return {"state": ComponentFacts(("*",), ("*",), modules, selective)}
    built = {name: _component(name, declared) for name in declared.components}
    for name, facts in built.items():
        if not any(matches(state, facts.states) for state in state_names):
            raise ContractError(
                f"component {name!r}: no state matches {' or '.join(facts.states)};"
                f" the model has {', '.join(state_names)}"
            )
    for state in state_names:
        owners = [name for name, facts in built.items() if matches(state, facts.states)]
        if len(owners) != 1:
            raise ContractError(
                f"state {state!r} belongs to {' and '.join(owners) or 'no component'}: give it exactly one"
            )
    return built


def _component(name: str, declared: Declared) -> ComponentFacts:
    assert declared.components is not None
    selective = declared.selective.get(name) if isinstance(declared.selective, Mapping) else declared.selective
    return ComponentFacts(
        as_patterns(declared.components[name]),
        as_patterns((declared.parameters or {}).get(name, ())),
        as_patterns((declared.modules or {}).get(name, ())),
        selective,
    )


def layer_of(name: str) -> int:
    """The layer that a state's name speaks of: its first number standing alone, else the number at its end, else 0.

    >>> [layer_of(name) for name in ("blocks.3.rwkv.wkv", "h1", "state")]
    [3, 1, 0]
    """
    alone = re.search(r"(?:^|[._\[])(\d+)(?:$|[._\]])", name)
    attached = alone or re.search(r"(\d+)", name)
    return int(attached.group(1)) if attached else 0


def check_batch_first(two: Mapping[str, Tensor], three: Mapping[str, Tensor]) -> None:
    """With 2 and 3 rows, no dimension but the first may differ. Raises :class:`ContractError` with the fix.

    A state that has no dimension that follows the batch is left to check S0: it is a fault, not a layout.
    """
    if two.keys() != three.keys():
        raise ContractError(f"states change names with the batch size: {sorted(two.keys() ^ three.keys())}")
    for name, value in two.items():
        a, b = tuple(value.shape), tuple(three[name].shape)
        moved = [axis for axis, (p, q) in enumerate(zip(a, b, strict=False)) if p != q]
        if len(a) != len(b) or (moved and moved != [0]):
            hint = " (torch LSTM states are (layers, B, H): return one tensor (B, H) a layer)" if moved == [1] else ""
            raise ContractError(
                f"state {name!r} is not batch first: its shape is {a} for 2 rows and {b} for 3; expected the batch in"
                f" dimension 0 and nothing else to change{hint}"
            )
        if not a:
            raise ContractError(f"state {name!r} has no dimension: expected (batch, ...); return one value a row")


def state_facts(
    name: str,
    early: Tensor,
    late: Tensor,
    declared: Declared,
    components: Mapping[str, ComponentFacts],
    whole: Set[str] = frozenset(),
) -> StateFacts:
    """Facts of one state from its value after one token (`early`) and after a few more (`late`).

    The numbers of the parts of `whole` (see :func:`_layers_in_parts`) are no layers.
    """
    grown = [axis for axis, (p, q) in enumerate(zip(early.shape, late.shape, strict=False)) if p != q]
    said: dict[str, Any] = {}
    for pattern, fields in declared.states.items():
        if matches(name, [pattern]):
            said |= fields
    time_axis = said.pop("time_axis", grown[0] if grown else None)
    kind = StateKind(said.pop("kind", _guess_kind(early, time_axis)))
    owner = next(component for component, facts in components.items() if matches(name, facts.states))
    dtype = str(early.dtype).removeprefix("torch.")
    prefix = name.rpartition(".")[0]
    layer = said.pop("layer", layer_of(prefix if prefix in whole else name))
    return StateFacts(kind, owner, layer, tuple(early.shape[1:]), dtype, time_axis=time_axis, **said)


def _guess_kind(value: Tensor, time_axis: int | None) -> StateKind:
    if value.dtype == torch.bool:
        return StateKind.FLAG
    if not _continuous(value):
        return StateKind.POSITION
    if time_axis is not None:
        return StateKind.KV
    return StateKind.VECTOR if value.dim() <= 2 else StateKind.MATRIX


class Trial(Reader, Protocol):
    """What discovery asks of an adapter: the protocol, without facts."""

    @property
    def backend(self) -> str: ...
    def set_states(self, states: States | None) -> None: ...
    def get_signals(self) -> dict[str, Tensor]: ...


def discover(make: Callable[[], Trial], module: nn.Module, declared: Declared, *, rebuilds: bool) -> ModelFacts:
    """The facts of a module, from what was declared and from trying it on a few tokens or vectors.

    `make` gives an adapter on a copy without history. Raises :class:`ContractError` when the protocol is broken.
    """
    said, declared = declared, infer_inputs(module, declared)
    parameter = next(module.parameters(), None)
    with quiet(module):
        shortest = _shortest(make, example(declared, parameter, 2, 2))
        adapter = make()
        outputs = _first_call(adapter, example(declared, parameter, 2, shortest), guessed=said != declared)
        early = adapter.get_states()
        if not early:
            raise ContractError("get_states() is empty after a call: expected all that the model remembers")
        late, unable = _continued(make, adapter, example(declared, parameter, 2, 5)[:, 1:])
        _check_lasting(early, late)
        other = make()
        other(example(declared, parameter, 3, shortest))
        check_batch_first(early, other.get_states())
        found, missing = _capabilities(make, example(declared, parameter, 2, 4), shortest)
        whole = _layers_in_parts(make, example(declared, parameter, 2, 2), early)
    components = components_of(declared, list(early))
    states = {n: state_facts(n, value, late[n], declared, components, whole) for n, value in early.items()}
    capabilities = found | {Capability.OBSERVE}
    if unable:
        missing[Capability.CHUNKS] = unable
    else:
        capabilities |= {Capability.CHUNKS}
    if rebuilds:
        capabilities |= {Capability.REBUILD}
    if all(component.modules for component in components.values()):
        capabilities |= {Capability.MODULES}
    for capability, name in ((Capability.MASK, "mask"), (Capability.SEGMENTS, "segments")):
        if name in inspect.signature(module.forward).parameters:
            capabilities |= {capability}
        else:
            missing[capability] = f"its calls take no {name}"
    facts = ModelFacts(
        title=declared.title or type(module).__name__,
        inputs="tokens" if declared.vocabulary else "vectors",
        vocabulary=declared.vocabulary,
        width=declared.width,
        output_width=outputs.shape[-1],
        loss=declared.loss or _default_loss(declared, outputs.shape[-1]),
        components=components,
        states=states,
        capabilities=frozenset(capabilities),
        training_length=declared.training_length,
        missing=missing,
        backend=adapter.backend,
        dtype=str(outputs.dtype).removeprefix("torch."),
        device=str(outputs.device),
        tokenizer=declared.tokenizer,
        signals={name: kind for name in adapter.get_signals() if (kind := _kind_of_signal(name, declared))},
    )
    with quiet(module):
        return with_statistics(make, module, facts, example(declared, parameter, 3, ELEMENTS))


def _kind_of_signal(name: str, declared: Declared) -> SignalKind | None:
    """As it was said; a signal of which nothing was said is left alone."""
    said = [kind for pattern, kind in declared.signals.items() if matches(name, [pattern])]
    return SignalKind(said[-1]) if said else None


def _shortest(make: Callable[[], Trial], inputs: Tensor) -> int:
    """1, or 2 where a call of one element goes wrong and one of two does not: what that breaks is for laws to say."""
    for time in (1, 2):
        with suppress(ModelRaised):
            make()(inputs[:, :time])
            return time
    return 1


def _first_call(adapter: Trial, inputs: Tensor, *, guessed: bool) -> Tensor:
    try:
        return adapter(inputs)
    except ModelRaised as error:
        if not guessed:
            raise
        what = f"vectors of width {inputs.shape[2]}" if inputs.is_floating_point() else "token ids"
        raise ModelRaised(f"{error} (it was given {what}, a guess: say wrap(..., vocabulary=N) or width=N)") from error


def _check_lasting(early: States, late: States) -> None:
    """Names and numbers of dimensions stay from call to call. Raises :class:`ContractError` if they don't."""
    if early.keys() != late.keys():
        raise ContractError(f"states change names between calls: {', '.join(sorted(early.keys() ^ late.keys()))}")
    for name, value in early.items():
        if not value.numel():
            raise ContractError(f"state {name!r} is empty: its shape is {tuple(value.shape)}; leave it out, or fill it")
        if value.dim() != late[name].dim():
            shapes = f"{tuple(value.shape)}, then {tuple(late[name].shape)}"
            raise ContractError(f"state {name!r} changes its number of dimensions between calls: {shapes}")


def _layers_in_parts(make: Callable[[], Trial], inputs: Tensor, states: Mapping[str, Tensor]) -> set[str]:
    """Names whose numbered states are the parts of one layer, as `lstm` with `lstm.0` = h and `lstm.1` = c is.

    They are if their shapes differ, or if the first and the last move each other within one token: in a stack of
    layers the upper never moves the lower.
    """
    numbered: dict[str, list[str]] = {}
    for name in states:
        prefix, _, last = name.rpartition(".")
        if last.isdigit():
            numbered.setdefault(prefix, []).append(name)
    found = set()
    for prefix, names in numbered.items():
        shapes = {states[name].shape for name in names}
        if len(shapes) > 1 or (len(names) > 1 and _move_each_other(make, inputs, names[0], names[-1])):
            found.add(prefix)
    return found


def _move_each_other(make: Callable[[], Trial], inputs: Tensor, first: str, last: str) -> bool:
    """True if giving one of the two states another row's value changes the next value of the other, both ways."""

    def after(swapped: str | None) -> States:
        adapter = make()
        adapter(inputs[:, :1])
        held = adapter.get_states()
        adapter.set_states({name: value.flip(0) if name == swapped else value for name, value in held.items()})
        adapter(inputs[:, 1:])
        return adapter.get_states()

    try:
        base, by_first, by_last = after(None), after(first), after(last)
    except StatecheckError:
        return False
    return relative(base[last], by_first[last]) > 0 and relative(base[first], by_last[first]) > 0


def _default_loss(declared: Declared, output_width: int) -> str | None:
    if declared.vocabulary:
        return "cross_entropy" if output_width >= declared.vocabulary else None
    return "mse" if output_width == declared.width else None


def infer_inputs(module: nn.Module, declared: Declared) -> Declared:
    """`declared` with a vocabulary or a width: what was said, else what the module's attributes and layers tell.

    Raises :class:`ContractError` if neither can be told.
    """
    if declared.vocabulary and declared.width:
        raise ContractError("say vocabulary= (token ids) or width= (vectors), not both")
    if declared.vocabulary or declared.width:
        return declared
    for owner in (module, getattr(module, "config", None)):
        for name in ("vocabulary", "vocab_size"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return replace(declared, vocabulary=value)
    for child in module.modules():
        if isinstance(child, nn.Embedding):
            return replace(declared, vocabulary=child.num_embeddings)
        if isinstance(child, (nn.RNNBase, nn.RNNCellBase)):
            return replace(declared, width=child.input_size)
        if isinstance(child, nn.Linear):
            return replace(declared, width=child.in_features)
    raise ContractError(
        f"can't tell what {type(module).__name__} reads: say wrap(..., vocabulary=N) or wrap(..., width=N)"
    )


def example(declared: Declared, like: Tensor | None, rows: int, time: int) -> Tensor:
    """A small input of the right kind: the same values for the same shape, in the model's dtype, on its device."""
    generator = torch.Generator().manual_seed(0)
    device = like.device if like is not None else None
    if declared.vocabulary:
        return torch.randint(0, declared.vocabulary, (rows, time), generator=generator).to(device)
    assert declared.width is not None
    dtype = like.dtype if like is not None and like.is_floating_point() else torch.float32
    return torch.randn(rows, time, declared.width, generator=generator).to(device, dtype)


def _continued(make: Callable[[], Trial], adapter: Trial, inputs: Tensor) -> tuple[States, str]:
    """States after `inputs` on a warm state, and why they could not be given in one call; "" if they could."""
    try:
        adapter(inputs)
        return adapter.get_states(), ""
    except ModelRaised as error:
        unable = str(error)
    other = make()
    try:
        for t in range(inputs.shape[1]):
            other(inputs[:, t : t + 1])
    except ModelRaised:  # as above
        other = make()
        other(inputs)
    return other.get_states(), unable


def _capabilities(
    make: Callable[[], Trial], inputs: Tensor, shortest: int
) -> tuple[set[Capability], dict[Capability, str]]:
    first = inputs[:, :shortest]
    trials: dict[Capability, Callable[[], str | None]] = {
        Capability.SET_STATES: lambda: _try_set(make, first),
        Capability.RESET: lambda: _try_reset(make, first),
        Capability.GRADIENT_STEP: lambda: _try_gradient(make, first, inputs[:, :1]),
        Capability.GRADIENT_SEQUENCE: lambda: _try_gradient(make, first, inputs),
    }
    missing = {capability: reason for capability, trial in trials.items() if (reason := _reason(trial)) is not None}
    return set(trials) - set(missing), missing


def _reason(trial: Callable[[], str | None]) -> str | None:
    """Why a trial failed; None if it succeeded."""
    try:
        return trial()
    except StatecheckError as error:
        return str(error)


def _try_set(make: Callable[[], Trial], inputs: Tensor) -> str | None:
    first, second = make(), make()
    first(inputs)
    states = first.get_states()
    second.set_states(clone(states))
    return None if distance(states, second.get_states()) == 0 else f"get_states() after set_states(s) {NOT_GIVEN_BACK}"


def _try_reset(make: Callable[[], Trial], inputs: Tensor) -> str | None:
    adapter = make()
    adapter(inputs)
    adapter.set_states(None)
    adapter(torch.cat([inputs, inputs[:1]]))
    return None


def _continuous(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _try_gradient(make: Callable[[], Trial], first: Tensor, inputs: Tensor) -> str | None:
    adapter = make()
    adapter(first)
    with torch.enable_grad():
        states = adapter.get_states()
        leaves = {n: v.detach().requires_grad_() for n, v in states.items() if _continuous(v)}
        adapter.set_states(states | leaves)
        read = [adapter(inputs), *(v for v in adapter.get_states().values() if _continuous(v))]
        outputs = torch.stack([wide(v).abs().square().sum() for v in read]).sum()
        if not leaves or not outputs.requires_grad:
            return "outputs do not depend on the tensors given to set_states"
        gradients = asking(torch.autograd.grad, outputs, list(leaves.values()), allow_unused=True)
    reached = [name for name, g in zip(leaves, gradients, strict=True) if g is not None and bool(g.any())]
    return (
        None
        if reached
        else "no gradient reaches the tensors given to set_states (detached, or computed without gradients)"
    )


def asking(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the module; what it raises becomes ModelRaised, so that a check can tell its faults from ours."""
    try:
        return function(*arguments, **options)
    except (StatecheckError, MemoryError):
        raise
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelRaised(f"the model raised {type(error).__name__} in {name}: {first}") from error


def output_of(value: Any) -> Tensor:
    """The tensor of outputs in what a forward returned: itself, `.logits`, or the first of a tuple."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    value = getattr(value, "logits", value)
    if not isinstance(value, Tensor):
        raise ContractError(f"the model returned a {type(value).__name__}: expected a tensor (batch, time, features)")
    return value
