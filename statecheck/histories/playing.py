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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import safetensors.torch
import torch
from torch import Tensor

from statecheck.errors import CapabilityMissing, ModelRaised, NotOffered
from statecheck.histories.drawing import values
from statecheck.histories.operations import Admit, Claim, Crop, Feed, Forget, History, Lose, Move, Operation, Rows, Slot
from statecheck.histories.recorded import Batch, Piece, Record, Whole, begin, own, wholes
from statecheck.protocol import Capability, Native, StatefulModel, States, fresh, native_of
from statecheck.states import clone
from statecheck.states import rows as rows_of
from statecheck.wording import one_line

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
        x, y, pad = drawn
        padding = model.facts.padding
        return Sequences(x, y, pad if padding is None else torch.full_like(pad, padding))


def play(model: StatefulModel, history: History, sequences: Sequences, route: str) -> Heard:
    """What a history brought: the outputs of each row in all calls that are heard, in order.

    Raises :class:`CapabilityMissing` for an operation that this route lacks, and what the model raises.
    """
    return [torch.cat(parts) for parts in zip(*calls(model, history, sequences, route), strict=True)]


def calls(model: StatefulModel, history: History, sequences: Sequences, route: str) -> list[Heard]:
    """As :func:`play`, each call apart: of its rows, those that are no free slots."""
    player = (_Native if route == "native" else _Functional)(fresh(model), sequences, history)
    for operation in history.operations:
        player.do(operation)
    return player.heard


def plain(model: StatefulModel, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """The oracle: one call over everything, from no history, without a cache where the library offers that."""
    model = fresh(model)
    uncached = native_of(model).uncached
    if uncached is not None:
        return uncached(inputs, mask)
    return model(inputs) if mask is None else model(inputs, mask=mask)


def called(sequences: Sequences, whole: Whole) -> Tensor:
    """The inputs of a whole call over what rows have read."""
    columns = zip(*whole.read, strict=True)
    return torch.cat([torch.stack([_piece(sequences, piece) for piece in column]) for column in columns], 1)


def _piece(sequences: Sequences, piece: Piece) -> Tensor:
    return (sequences.y if piece.other else sequences.x)[piece.row, piece.start : piece.stop]


@dataclass
class _Player(ABC):
    """A model, the record of what the rows of its batch read, and what was heard."""

    model: StatefulModel
    sequences: Sequences
    history: History
    record: Record = field(init=False)
    heard: list[Heard] = field(default_factory=list)
    slots: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.record = Record(Batch.of(begin(self.history, len(self.sequences.x))))

    @property
    def rows(self) -> list[int]:
        """The rows of the sequences that the batch reads now."""
        return list(self.record.batch.rows)

    def do(self, operation: Operation) -> None:
        """One operation."""
        match operation:
            case Feed():
                self.feed(operation)
            case Rows(index):
                self.reorder(torch.tensor(index))
            case Crop(length):
                self.crop(length)
            case Forget():
                self.forget()
            case Admit(row, start, stop):
                self.admit(row, self.sequences.x[[self.rows[row]], start:stop])
            case Slot(word, name):
                self.use_slot(word, name)
            case Lose():
                self.model.set_states(None)
            case Move():
                state = self.taken()
                self.model = rebuilt(self.model)
                self.give(state)
        self.record.do(operation)

    def feed(self, feed: Feed) -> None:
        inputs, mask = self._inputs(feed)
        if feed.word == "whole":
            # Where it can be, on the model as it is: nothing that was read before may matter to it.
            whole = native_of(self.model).uncached or partial(plain, self.model)
            outputs = whole(inputs, mask if feed.padded else None)
        else:
            outputs = self.call(inputs, mask if self.history.padded else None)
        if feed.heard:
            kept = zip(outputs, mask, self.record.batch.free, strict=True)
            real = [row[where] for row, where, free in kept if not free]
            self.heard.append([row[: feed.first] if feed.first else row for row in real])

    def _inputs(self, feed: Feed) -> tuple[Tensor, Tensor]:
        """(rows, time) inputs with their padding, and which of them are real."""
        source = self.sequences.y if feed.word == "other" else self.sequences.x
        inputs = source[self.rows, feed.start : feed.stop].clone()
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        width = feed.stop - feed.start
        for row, count in enumerate(own(feed, len(inputs)) if feed.padded else ()):
            left = feed.left[row] if feed.left else 0
            pad = self.sequences.pad[self.rows[row], :width]
            real = source[self.rows[row], feed.start : feed.start + count]
            inputs[row] = torch.cat([pad[:left], real, pad[left + count :]])
            mask[row, :left] = False
            mask[row, left + count :] = False
        return inputs, mask

    def use_slot(self, word: str, name: str) -> None:
        if word in ("copy", "file"):
            self.slots[name] = (self.copied if word == "copy" else self.filed)()
        elif word == "back":
            self.give(self.duplicate(self.slots[name]))
        elif word == "park":
            self.slots[name] = self.taken()
            self.model.set_states(None)
        else:
            self.give(self.slots[name])

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
    def admit(self, row: int, inputs: Tensor) -> None: ...

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

    def admit(self, row: int, inputs: Tensor) -> None:
        offered(None, "slots that requests are put into")

    def taken(self) -> object:
        return offered(self.native.held, "cache object")()

    def copied(self) -> object:
        return self.duplicate(self.taken())

    def filed(self) -> object:
        buffer = io.BytesIO()
        try:
            torch.save(self.taken(), buffer)
        except Exception as error:  # whatever pickle raises
            raise NotOffered(f"the library's cache can't be saved: {one_line(error)}") from error
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)  # what was written a line above

    def duplicate(self, state: object) -> object:
        try:
            return copy.deepcopy(state)
        except Exception as error:
            raise ModelRaised(f"the library's cache can't be copied: {one_line(error)}") from error

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
        raise NotOffered("a recurrent state can't be rolled back as a value: keep a copy of it")

    def forget(self) -> None:
        self.model.set_states(None)

    def admit(self, row: int, inputs: Tensor) -> None:
        batch = self.taken()
        self.model.set_states(None)
        every = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        self.call(inputs, every if self.history.padded else None)
        self.model.set_states(seated(batch, self.taken(), row))

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
    """The library's own operation. Raises :class:`NotOffered` where it offers none."""
    if operation is None:
        raise NotOffered(f"the library offers no {name} of its own")
    return operation


def rebuilt(model: StatefulModel) -> StatefulModel:
    """A copy of the model that never read. Raises :class:`CapabilityMissing` where none can be made."""
    model.facts.require(Capability.REBUILD)
    return model.rebuild()  # type: ignore[attr-defined]


def seated(batch: States, request: States, row: int) -> States:
    """`batch` with the one row of `request` in place of its row `row`. Raises :class:`CapabilityMissing`, with the
    shapes, where the two don't fit: a cache that grows holds one length for all rows.

    >>> seated({"h": torch.zeros(3, 2)}, {"h": torch.ones(1, 2)}, 1)["h"][:, 0]
    tensor([0., 1., 0.])
    """
    shapes = [{name: tuple(value.shape[1:]) for name, value in states.items()} for states in (batch, request)]
    for name in shapes[0].keys() | shapes[1].keys():
        if shapes[0].get(name) != shapes[1].get(name):
            found = f"{shapes[0].get(name)} in the batch, {shapes[1].get(name)} in the request"
            raise CapabilityMissing(f"rows with states of other shapes can't be put together: {name} is {found}")
    return {name: torch.cat([value[:row], request[name], value[row + 1 :]]) for name, value in batch.items()}


def sides(model: StatefulModel, claim: Claim, route: str, *, apart: bool = False) -> tuple[Heard, Heard]:
    """What was found and what was expected, row by row; `apart`: the latter on a copy that never read.

    Of a claim that ends in `recorded` these are the rows of each call, the calls one after another. Raises
    :class:`CapabilityMissing` where the model raises in what is expected: the claim then says nothing.
    """
    sequences = Sequences.of(model, claim)
    other = rebuilt(model) if apart else model
    try:
        expected = _expected(other, claim, sequences, route)
    except ModelRaised as error:
        raise CapabilityMissing(f"there is nothing to compare with: {error}") from error
    if not claim.expected:
        return [row for call in calls(model, claim.found, sequences, route) for row in call], expected
    return play(model, claim.found, sequences, route), expected


def _expected(model: StatefulModel, claim: Claim, sequences: Sequences, route: str) -> Heard:
    if claim.expected:
        return [row for history in claim.expected for row in play(model, history, sequences, route)]
    asked = [whole for call in wholes(claim) for whole in call]
    return [row for whole in asked for row in plain(model, called(sequences, whole))[:, -whole.last :]]


def lacking(model: StatefulModel, claim: Claim, route: str) -> str:
    """The first operation of a claim that the library offers no own of, by name; "" if there is none."""
    if route != "native":
        return ""
    native = native_of(model)
    for operation in (o for history in (claim.found, *claim.expected) for o in history.operations):
        name = _OWN.get(type(operation), "")
        if name and getattr(native, name, None) is None:
            return name
    return ""


_OWN: Mapping[type, str] = {Rows: "reorder", Crop: "crop", Forget: "reset", Slot: "held", Move: "held", Admit: "slots"}
