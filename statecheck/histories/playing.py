"""Playing a history on a model, on one of two routes that are kept apart so that one can't repair the other.

native       the model carries its own state from call to call; reordering, cropping, copying and forgetting are
             the library's own operations (:class:`statecheck.protocol.Native`)
functional   between calls the state is taken out by get_states and given back, copied, by set_states; all else is
             done on the tensors
"""

from __future__ import annotations

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import safetensors.torch
import torch
from torch import Tensor

from statecheck.errors import CapabilityMissing
from statecheck.histories.drawing import values
from statecheck.histories.operations import Claim, Crop, Feed, Forget, History, Lose, Move, Operation, Rows, Slot
from statecheck.protocol import Capability, Native, StatefulModel, States, fresh, native_of
from statecheck.states import clone
from statecheck.states import rows as rows_of

ROUTES = ("native", "functional")
#: Outputs of each row, (time, features), those of its padding left out.
Heard = list[Tensor]


@dataclass(frozen=True)
class Sequences:
    """What histories read: `x` and, for `other`, `y`, (rows, length) or (rows, length, features); `pad` fills."""

    x: Tensor
    y: Tensor
    pad: Tensor

    @staticmethod
    def of(model: StatefulModel, claim: Claim) -> Sequences:
        """The sequences of a claim: the same for the same claim and kind of input."""
        drawn = [values(model.facts, claim.rows, claim.length, claim.seed + offset) for offset in (0, 1000, 2000)]
        return Sequences(*drawn)


def play(model: StatefulModel, history: History, sequences: Sequences, route: str) -> Heard:
    """What a history brought: the outputs of each row in all calls that are heard, in order.

    Raises :class:`CapabilityMissing` for an operation that this route lacks, and what the model raises.
    """
    player = (_Native if route == "native" else _Functional)(fresh(model), sequences, history)
    for operation in history.operations:
        player.do(operation)
    return [torch.cat(parts) for parts in zip(*player.heard, strict=True)]


def plain(model: StatefulModel, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """The oracle: one call over everything, from no history, without a cache where the library offers that."""
    uncached = native_of(model).uncached
    if uncached is not None:
        return uncached(inputs, mask)
    return fresh(model)(inputs) if mask is None else fresh(model)(inputs, mask=mask)


@dataclass
class _Player(ABC):
    """A model, the rows of the sequences that its batch reads now, and what was heard."""

    model: StatefulModel
    sequences: Sequences
    history: History
    rows: list[int] = field(init=False)
    heard: list[Heard] = field(default_factory=list)
    slots: dict[str, tuple[object, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = list(self.history.of) or list(range(len(self.sequences.x)))

    def do(self, operation: Operation) -> None:
        """One operation."""
        match operation:
            case Feed():
                self.feed(operation)
            case Rows(index):
                self.reorder(torch.tensor(index))
                self.rows = [self.rows[i] for i in index]
            case Crop(length):
                self.crop(length)
            case Forget(rows):
                self.forget()
                self.rows = list(range(rows))
            case Slot(word, name):
                self.use_slot(word, name)
            case Lose():
                self.model.set_states(None)
            case Move():
                state = self.taken()
                self.model = rebuilt(self.model)
                self.give(state)

    def feed(self, feed: Feed) -> None:
        inputs, mask = self._inputs(feed)
        if feed.word == "whole":
            outputs = plain(self.model, inputs, mask if feed.padded else None)
        else:
            outputs = self.call(inputs, mask if self.history.padded else None)
        if feed.heard:
            own = [row[real] for row, real in zip(outputs, mask, strict=True)]
            self.heard.append([row[: feed.first] if feed.first else row for row in own])

    def _inputs(self, feed: Feed) -> tuple[Tensor, Tensor]:
        """(rows, time) inputs with their padding, and which of them are real."""
        source = self.sequences.y if feed.word == "other" else self.sequences.x
        inputs = source[self.rows, feed.start : feed.stop].clone()
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        width = feed.stop - feed.start
        for row, (left, right) in enumerate(zip(_counts(feed.left, inputs), _counts(feed.right, inputs), strict=True)):
            own = source[self.rows[row], feed.start : feed.stop - left - right]
            pad = self.sequences.pad[self.rows[row], :width]
            inputs[row] = torch.cat([pad[:left], own, pad[width - right :]])
            mask[row, :left] = False
            mask[row, width - right :] = False
        return inputs, mask

    def use_slot(self, word: str, name: str) -> None:
        if word in ("copy", "file"):
            self.slots[name] = ((self.copied if word == "copy" else self.filed)(), list(self.rows))
        elif word == "back":
            state, self.rows = self.slots[name][0], list(self.slots[name][1])
            self.give(self.duplicate(state))
        elif word == "park":
            self.slots[name] = (self.taken(), list(self.rows))
            self.model.set_states(None)
        else:
            state, self.rows = self.slots[name][0], list(self.slots[name][1])
            self.give(state)

    # What the two routes do in their own ways.

    @abstractmethod
    def call(self, inputs: Tensor, mask: Tensor | None) -> Tensor: ...

    @abstractmethod
    def reorder(self, index: Tensor) -> None: ...

    @abstractmethod
    def crop(self, length: int) -> None: ...

    @abstractmethod
    def forget(self) -> None: ...

    @abstractmethod
    def taken(self) -> object: ...

    @abstractmethod
    def copied(self) -> object: ...

    @abstractmethod
    def filed(self) -> object: ...

    @abstractmethod
    def duplicate(self, state: object) -> object: ...

    @abstractmethod
    def give(self, state: object) -> None: ...


class _Native(_Player):
    """The library's own operations."""

    @property
    def native(self) -> Native:
        return native_of(self.model)

    def call(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.model(inputs) if mask is None else self.model(inputs, mask=mask)

    def reorder(self, index: Tensor) -> None:
        offered(self.native.reorder, "reorder")(index.to(self.sequences.x.device))

    def crop(self, length: int) -> None:
        offered(self.native.crop, "crop")(length)

    def forget(self) -> None:
        offered(self.native.reset, "reset")()

    def taken(self) -> object:
        return offered(self.native.held, "cache object")()

    def copied(self) -> object:
        return copy.deepcopy(self.taken())

    def filed(self) -> object:
        buffer = io.BytesIO()
        torch.save(self.taken(), buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)  # what was written a line above

    def duplicate(self, state: object) -> object:
        return copy.deepcopy(state)

    def give(self, state: object) -> None:
        offered(self.native.hold, "cache object")(state)


class _Functional(_Player):
    """States as values."""

    def call(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        states = self.model.get_states()
        if states:
            self.model.set_states(clone(states))
        return self.model(inputs) if mask is None else self.model(inputs, mask=mask)

    def reorder(self, index: Tensor) -> None:
        self.model.set_states(rows_of(self.model.get_states(), index))

    def crop(self, length: int) -> None:
        raise CapabilityMissing("a recurrent state can't be rolled back as a value: keep a copy of it")

    def forget(self) -> None:
        self.model.set_states(None)

    def taken(self) -> States:
        return self.model.get_states()

    def copied(self) -> States:
        return clone(self.taken())

    def filed(self) -> States:
        data = safetensors.torch.save({name: value.contiguous() for name, value in self.taken().items()})
        return safetensors.torch.load(data)

    def duplicate(self, state: object) -> States:
        return clone(state)  # type: ignore[arg-type]

    def give(self, state: object) -> None:
        self.model.set_states(state)  # type: ignore[arg-type]


def offered(operation: Callable[..., object] | None, name: str) -> Callable[..., object]:
    """The library's own operation. Raises :class:`CapabilityMissing` where it offers none."""
    if operation is None:
        raise CapabilityMissing(f"the library offers no {name} of its own")
    return operation


def rebuilt(model: StatefulModel) -> StatefulModel:
    """A copy of the model that never read. Raises :class:`CapabilityMissing` where none can be made."""
    model.facts.require(Capability.REBUILD)
    return model.rebuild()  # type: ignore[attr-defined]


def _counts(pads: Sequence[int], inputs: Tensor) -> Sequence[int]:
    return pads or [0] * len(inputs)


def sides(model: StatefulModel, claim: Claim, route: str, *, apart: bool = False) -> tuple[Heard, Heard]:
    """What was found and what was expected, row by row; `apart`: the latter on a copy that never read."""
    sequences = Sequences.of(model, claim)
    other = rebuilt(model) if apart else model
    expected = [row for history in claim.expected for row in play(other, history, sequences, route)]
    return play(model, claim.found, sequences, route), expected


def lacking(model: StatefulModel, claim: Claim, route: str) -> str:
    """The first operation of a claim that the library offers no own of, by name; "" if there is none."""
    if route != "native":
        return ""
    native = native_of(model)
    for operation in (o for history in (claim.found, *claim.expected) for o in history.operations):
        name = _OWN.get(type(operation), "")
        if name and getattr(native, name) is None:
            return name
    return ""


_OWN: Mapping[type, str] = {Rows: "reorder", Crop: "crop", Forget: "reset", Slot: "held", Move: "held"}
