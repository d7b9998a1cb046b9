"""What each row of a batch has read: all that its state should remember, whatever was done with the state.

A history is followed without any model. What a call should give is then known: one whole call, from no history, over
all that its row has read: the oracle of a claim that ends in `recorded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from statecheck.errors import UsageError
from statecheck.histories.operations import (
    Admit,
    Claim,
    Crop,
    Feed,
    Forget,
    Free,
    History,
    Lose,
    Move,
    Operation,
    Rows,
    Slot,
    Sources,
)


@dataclass(frozen=True)
class Piece:
    """Elements start .. stop - 1 of a row of the sequences: of x, or of `other` ones."""

    row: int
    start: int
    stop: int
    other: bool = False

    @property
    def span(self) -> tuple[int, int, bool]:
        """Without the row."""
        return self.start, self.stop, self.other


Pieces = tuple[Piece, ...]
Of = TypeVar("Of")


@dataclass(frozen=True)
class Batch:
    """The rows of the sequences that a batch reads now, what each of its rows has read, and which of them are free.

    `total` is what a state counts, padding included.
    """

    rows: tuple[int, ...]
    read: tuple[Pieces, ...]
    free: tuple[bool, ...]
    total: int = 0

    @staticmethod
    def of(rows: Sequence[int]) -> Batch:
        """These rows of the sequences, before anything was read."""
        return Batch(tuple(rows), ((),) * len(rows), (False,) * len(rows))

    @property
    def padded(self) -> bool:
        """True if a state counts more than a row has read: padding."""
        return any(sum(piece.stop - piece.start for piece in row) != self.total for row in self.read)

    def after(self, operation: Operation) -> Batch:
        """The batch after an operation that needs no slot."""
        match operation:
            case Feed():
                return self._fed(operation)
            case Rows(index):
                return Batch(_at(self.rows, index), _at(self.read, index), _at(self.free, index), self.total)
            case Crop(length):
                return replace(self, read=tuple(_without(row, self.total - length) for row in self.read), total=length)
            case Forget(rows):
                return Batch.of(range(rows))
            case Sources(index):
                return replace(self, rows=index)
            case Free(row):
                return replace(self, free=_put(self.free, row, True))
            case Admit(row, start, stop):
                asked = (Piece(self.rows[row], start, stop),)
                return replace(self, read=_put(self.read, row, asked), free=_put(self.free, row, False))
            case Move() | Lose():
                return self
        raise UsageError(f"{operation} needs a record of its slots")

    def _fed(self, feed: Feed) -> Batch:
        if feed.word == "whole":
            return self
        stops = [feed.start + count for count in own(feed, len(self.rows))]
        pieces = [
            Piece(row, feed.start, stop, feed.word == "other") for row, stop in zip(self.rows, stops, strict=True)
        ]
        read = tuple(_joined(before, piece) for before, piece in zip(self.read, pieces, strict=True))
        return replace(self, read=read, total=self.total + feed.stop - feed.start)


def own(feed: Feed, rows: int) -> list[int]:
    """How many elements of its own each row reads in a call, without padding."""
    nothing = (0,) * rows
    pads = zip(feed.left or nothing, feed.right or nothing, strict=True)
    return [feed.stop - feed.start - left - right for left, right in pads]


@dataclass
class Record:
    """A batch through a history, and what is in the slots.

    >>> record = Record(Batch.of([0, 1]))
    >>> claim = Claim.parse("2x3@0: read(0:1) copy(a) read(1:2) rows(1) back(a) feed(2:3) == recorded")
    >>> for operation in claim.found.operations:
    ...     record.do(operation)
    >>> record.batch.read[1]
    (Piece(row=1, start=0, stop=1, other=False), Piece(row=1, start=2, stop=3, other=False))
    """

    batch: Batch
    slots: dict[str, Batch] = field(default_factory=dict)

    def do(self, operation: Operation) -> None:
        """One operation."""
        if not isinstance(operation, Slot):
            self.batch = self.batch.after(operation)
        elif operation.word in ("back", "take"):
            self.batch = self.slots[operation.name]
        else:
            self.slots[operation.name] = self.batch
            if operation.word == "park":
                self.batch = Batch.of(self.batch.rows)


@dataclass(frozen=True)
class Whole:
    """One whole call over all that some rows have read: of each the same spans. `last` of its outputs are expected."""

    read: tuple[Pieces, ...]
    last: int


def wholes(claim: Claim) -> list[list[Whole]]:
    """What a claim of a record expects, for each call that is heard: one whole call for all rows, or one for each.

    >>> wholes(Claim.parse("1x3@0: read(0:1) copy(a) read(1:2) back(a) feed(2:3) == recorded"))[0][0].last
    1
    """
    record = Record(Batch.of(begin(claim.found, claim.rows)))
    calls = []
    for operation in claim.found.operations:
        record.do(operation)
        if isinstance(operation, Feed) and operation.heard:
            calls.append(_asked(record.batch, operation))
    return calls


def begin(history: History, rows: int) -> Sequence[int]:
    """Rows of the sequences that a history begins with."""
    return history.of or range(rows)


def _asked(batch: Batch, feed: Feed) -> list[Whole]:
    counts = own(feed, len(batch.rows))
    rows = [(read, count) for read, count, free in zip(batch.read, counts, batch.free, strict=True) if not free]
    alike = {(tuple(piece.span for piece in read), count) for read, count in rows}
    if len(alike) == 1:
        return [Whole(tuple(read for read, _ in rows), rows[0][1])]
    return [Whole((read,), count) for read, count in rows]


def _joined(before: Pieces, piece: Piece) -> Pieces:
    """A piece behind others, as one with the last where it goes on from it."""
    if piece.start == piece.stop:
        return before
    if before and before[-1] == replace(piece, start=before[-1].start, stop=piece.start):
        return (*before[:-1], replace(piece, start=before[-1].start))
    return (*before, piece)


def _without(read: Pieces, elements: int) -> Pieces:
    """All but the last elements."""
    kept = list(read)
    while elements and kept:
        last = kept.pop()
        if last.stop - last.start > elements:
            kept.append(replace(last, stop=last.stop - elements))
            break
        elements -= last.stop - last.start
    return tuple(kept)


def _at(values: tuple[Of, ...], index: Sequence[int]) -> tuple[Of, ...]:
    return tuple(values[i] for i in index)


def _put(values: tuple[Of, ...], index: int, value: Of) -> tuple[Of, ...]:
    return (*values[:index], value, *values[index + 1 :])
