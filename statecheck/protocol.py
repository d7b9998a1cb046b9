"""What statecheck asks of a model: the protocol, the facts that a model declares, and two helpers.

A *state* is everything that a model remembers between two calls: the hidden state h and cell state c of an LSTM, the
WKV matrices of RWKV, the SSM state and convolution window of Mamba, the keys and values of a transformer's cache. It is
a flat mapping of names to tensors whose dimension 0 is the batch. This module holds no code that needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from statecheck.errors import CapabilityMissing

if TYPE_CHECKING:
    from torch import Tensor, nn

States = dict[str, "Tensor"]
#: Name of a state -> name of a statistic -> its values; see :class:`Observing`.
Statistics = dict[str, dict[str, "Tensor"]]


class StateKind(Enum):
    """What a state tensor is. Norms and cosines are measured on MATRIX and VECTOR alone."""

    MATRIX = "matrix"
    VECTOR = "vector"
    CONV = "conv"
    KV = "kv"
    NORMALISER = "normaliser"
    POSITION = "position"
    MASK = "mask"
    FLAG = "flag"

    @property
    def recurrent(self) -> bool:
        """True for the memory proper: recurrent matrices and vectors."""
        return self in (StateKind.MATRIX, StateKind.VECTOR)


class SignalKind(Enum):
    """What a tensor of `get_signals` is; all are (batch, time, ...), of the last call."""

    GATE = "gate"  # in 0..1: the share of the first of two components that are joined
    LOG_DECAY = "log_decay"  # at most 0: the logarithm of what the state keeps
    SELECTION = "selection"  # how much of the input is written


class Capability(Enum):
    """What a model can do. Declared, or found by trying; a check that needs a missing one is SKIP."""

    OBSERVE = "observe"  # get_states returns tensors
    SET_STATES = "set_states"  # states can be put back
    RESET = "reset"  # the model can forget everything in place
    REBUILD = "rebuild"  # a copy with the same parameters and no history can be made
    CHUNKS = "chunks"  # a call of several tokens on a warm state
    GRADIENT_STEP = "gradient_step"  # gradients reach the states given, in a call of one token
    GRADIENT_SEQUENCE = "gradient_sequence"  # the same, in a call of several tokens
    MODULES = "modules"  # every component names modules whose outputs can be ablated
    MASK = "mask"  # a call takes mask=, True where an element is real
    SEGMENTS = "segments"  # a call takes segments=, a number for each packed sequence
    STATISTICS = "statistics"  # forward_with_statistics tells what the states are while the model reads: `Observing`


@dataclass(frozen=True)
class StateFacts:
    """One state tensor: `shape` leaves the batch out; axes count from 0 = batch.

    `recurrence` is "diagonal" when unit i of the next state depends on unit i alone of this one (given the same input
    and other states), "dense" when units mix, "derived" when the tensor carries no memory of its own (the h of an
    LSTM is o * tanh(c)), None when it is to be found by trying.
    """

    kind: StateKind
    component: str
    layer: int
    shape: tuple[int, ...]
    dtype: str
    head_axis: int | None = None
    time_axis: int | None = None
    normaliser: str | None = None
    bounds: tuple[float, float] | None = None
    recurrence: str | None = None

    @property
    def heads(self) -> int:
        """Heads of the state: the size of its head axis, 1 where none is declared."""
        return 1 if self.head_axis is None else self.shape[self.head_axis - 1]


@dataclass(frozen=True)
class ComponentFacts:
    """One component: shell-style patterns of the names of its states, parameters and modules.

    `selective` says whether retention depends on the input (Mamba, RWKV-6, the gates of an LSTM: True; S4, RetNet:
    False; None: not declared).
    """

    states: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    selective: bool | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model declares of itself, or what `sc.wrap` found by trying it.

    `backend` is what computed when the model was tried, in its own word: a form of a kernel, say.
    """

    title: str
    inputs: str  # "tokens" or "vectors"
    vocabulary: int | None  # tokens: ids are 0 .. vocabulary - 1
    width: int | None  # vectors: features of an input
    output_width: int
    loss: str | None  # "cross_entropy", "mse", or None where no loss can be had
    components: Mapping[str, ComponentFacts]
    states: Mapping[str, StateFacts]
    capabilities: frozenset[Capability]
    training_length: int | None = None
    missing: Mapping[Capability, str] = field(default_factory=dict)  # why a capability is not there
    backend: str = "torch"
    dtype: str = "float32"
    device: str = "cpu"
    tokenizer: Path | None = None
    signals: Mapping[str, SignalKind] = field(default_factory=dict)  # what `get_signals` returns, where there is one
    boundaries: tuple[int, ...] = ()  # lengths at which the model takes another path, if known: chunks, windows
    padding: int | None = None  # the id that a call itself reads as padding: no element has it, and all padding is it
    window: int | None = None  # elements from which on a cache of keys forgets the oldest, padding counted, if known

    def require(self, capability: Capability) -> None:
        """Raise :class:`CapabilityMissing` with the reason if the model lacks `capability`."""
        if capability not in self.capabilities:
            reason = self.missing.get(capability, "not declared")
            raise CapabilityMissing(f"the model has no capability '{capability.value}': {reason}")

    def names(self, *, component: str | None = None, layer: int | None = None, recurrent: bool = True) -> list[str]:
        """Names of the states of a component and layer; `recurrent` leaves out KV, conv, positions and flags."""
        return [
            name
            for name, state in self.states.items()
            if (component is None or state.component == component)
            and (layer is None or state.layer == layer)
            and (state.kind.recurrent or not recurrent)
        ]


@runtime_checkable
class StatefulModel(Protocol):
    """A model that remembers. A call continues from the current states.

    Inputs are token ids (batch, time) or vectors (batch, time, features); outputs are (batch, time, vocabulary) or
    (batch, time, features). What `get_states` returns is the caller's: later calls never change it. `set_states` uses
    the very tensors given, so that gradients reach them. Another batch size without a reset raises.
    """

    @property
    def facts(self) -> ModelFacts:
        """What the model declares of itself."""

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Outputs for `inputs`, continuing from the current states."""

    def get_states(self) -> States:
        """All that the model remembers, now; {} before the first call."""

    def set_states(self, states: States | None) -> None:
        """Continue from `states`; None: forget everything."""


class Transcript(Protocol):
    """What is done with a model, as lines of Python that need nothing but its library.

    `recipe` defines make(), a new model; `lines` are what was done since; `calls` are expressions of the outputs of the
    calls so far, (batch, time, features) each, "" for one that brought none.
    """

    @property
    def recipe(self) -> Sequence[str]: ...
    @property
    def lines(self) -> list[str]: ...
    @property
    def calls(self) -> list[str]: ...


@dataclass(frozen=True)
class Native:
    """What the library itself offers beside calls, as a model's attribute `native`; None where it offers nothing.

    Laws about an operation of the library's own run on it, apart from the same laws on get_states and set_states: an
    adapter must not repair what it tests. `reorder` goes on with these rows, `crop` rolls back to so many elements,
    `reset` forgets in place; `held` gives the library's own object that carries the state and `hold` goes on from one;
    `uncached` is a call over everything without any history (inputs, mask or None); `beams` (inputs, beams, steps,
    cached) generates by beam search, (ids, log-probability of what was generated) of the best; `reloaded` saves the
    model into a folder and loads it from there. `transcribed` gives a model whose calls are written down, in lines that
    may name the given sequences, as its library's own: one of the same configuration with random weights, or this one,
    saved into a folder.
    """

    reorder: Callable[[Tensor], None] | None = None
    crop: Callable[[int], None] | None = None
    reset: Callable[[], None] | None = None
    held: Callable[[], object] | None = None
    hold: Callable[[object], None] | None = None
    uncached: Callable[[Tensor, Tensor | None], Tensor] | None = None
    beams: Callable[[Tensor, int, int, bool], tuple[Tensor, Tensor]] | None = None
    reloaded: Callable[[Path], StatefulModel] | None = None
    transcribed: Callable[[Mapping[str, Tensor], Path | None], tuple[StatefulModel, Transcript]] | None = None


def native_of(model: StatefulModel) -> Native:
    """What the library of `model` offers itself; nothing, where the model has no attribute `native`."""
    native = getattr(model, "native", None)
    return native if isinstance(native, Native) else Native()


class Observing(Protocol):
    """What a model may offer beside its calls: statistics of its states, taken while it reads (`STATISTICS`).

    States then need not leave the recurrence to be watched. The statistics of each recurrent state are those after
    each `every` elements, counted from the start of the call, (batch, time // every, heads) each; heads is the size of
    the state's head axis, 1 where none is declared. h is one of the n units of a head in one row:

        square_sum    sum of h^2                               largest    largest |h|, NaN if any h is NaN
        mean          mean of h                                nonfinite  units that are NaN or infinite
        near_largest  units with finite |h| >= 0.99 M, where M is the largest finite magnitude that this row's head has
                      held at any observed element so far, this one counted; 0 while M is 0
        entropy       -sum p log p / log max(2, n) of p = h^2 / sum h^2; 0 for a zero state, NaN for one that is not
                      finite; left out unless asked for
        running       M at the end of the call, (batch, heads): what the next call is given, by name of the state
    """

    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Statistics]:
        """Read `inputs` exactly as a call does; outputs and statistics. `running` is None at the start."""


@dataclass(frozen=True)
class RegisteredModel:
    """A model that a package offers by name through the entry-point group `statecheck.models`.

    `build` makes the untrained module from a configuration (ValueError names a wrong key). `folder` is a checkpoint
    folder (model.safetensors, config.json, and optionally tokenizer.json and training_log.jsonl), `text` the documents
    to check it on: a folder of .txt files, or an .npz of ids or vectors.
    """

    name: str
    title: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    folder: Path | None = None
    text: Path | None = None


def fresh(model: StatefulModel) -> StatefulModel:
    """The model without history: `model` itself after a reset where it can be reset, else a copy with no history.

    Raises :class:`CapabilityMissing` when the model can neither forget nor be rebuilt.
    """
    if Capability.RESET in model.facts.capabilities:
        model.set_states(None)
        return model
    rebuild = getattr(model, "rebuild", None)
    if rebuild is None or Capability.REBUILD not in model.facts.capabilities:
        model.facts.require(Capability.RESET)
    return rebuild()  # type: ignore[misc]


def advance(model: StatefulModel, inputs: Tensor, states: States | None) -> tuple[Tensor, States]:
    """The model as a function: (inputs, states) -> (outputs, next states). None starts from no history.

    The tensors in `states` are not changed, even by a model that works in place; gradients reach them.
    """
    if states is None:
        model = fresh(model)
    else:
        model.facts.require(Capability.SET_STATES)
        model.set_states({name: value.clone() for name, value in states.items()})
    outputs = model(inputs)
    return outputs, model.get_states()
