"""Histories: what was done with a model, as a value that can be played, written as a line, and read from it.

    feed(0:5)                the next call reads elements 0 .. 4 of each row
    feed(0:5, left 2/0)      the same call, its first 2 elements of row 0 and none of row 1 are padding
    feed(0:5, first 3)       the same call, of whose outputs the first 3 are compared
    read(0:5)                as feed, but its outputs are not compared
    whole(0:7)               one call over these elements from no history, by the library's way without a cache
    other(0:3)               as read, of other sequences
    rows(1,0,0)              the batch goes on with these of its rows: reorder, select, repeat
    crop(5)                  roll back to the first 5 elements
    forget(2)                forget everything; go on with a batch of 2
    lose()                   the state is dropped and nobody says so: the control that shows what a law can see
    copy(a)  file(a)         keep a copy of the state in slot a, in memory or through a file
    back(a)                  go on from the copy in slot a
    park(a)  take(a)         put the sequence itself aside and start from no history; go on with it
    move()                   go on in a copy of the model that never read, given this state
    sources(0,1)             from here on the rows of the batch read these rows of the sequences
    free(1)                  row 1 of the batch is a free slot: it reads on, and what it gives is not compared
    admit(1, 5:8)            row 1 of the batch is a new request: elements 5 .. 7 of its sequence, prefilled alone

A *claim* is that two histories over the same sequences give the same outputs:

    2x7@3: feed(0:5) feed(5:6) feed(6:7) == whole(0:7)

over 2 sequences of 7 elements, drawn from seed 3. Behind == there may be several histories joined by &: their rows are
put below each other. A history may begin with `of(1)`: it is of these rows of the sequences alone. In place of
histories there may be `recorded`: each call gives what one whole call over all that its row has read gives, as
:mod:`statecheck.histories.recorded` has it.

    2x3@3: read(0:1) copy(a) read(1:2) back(a) feed(2:3) == recorded

says that the last output of each row is that of one call over its elements 0 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from statecheck.errors import UsageError


@dataclass(frozen=True)
class Feed:
    """One call over elements start .. stop - 1. `left` and `right` of them are padding, row by row.

    A row's own elements are start .. stop - 1 - left - right; `word` is feed, read, whole or other. Only the `first`
    outputs are compared, all if that is 0.
    """

    start: int
    stop: int
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    word: str = "feed"
    first: int = 0

    @property
    def heard(self) -> bool:
        """True if its outputs are compared."""
        return self.word in ("feed", "whole")

    @property
    def padded(self) -> bool:
        """True if any of it is padding."""
        return any(self.left) or any(self.right)

    def __str__(self) -> str:
        sides = ((name, getattr(self, name)) for name in ("left", "right"))
        pads = "".join(f", {name} {'/'.join(map(str, counts))}" for name, counts in sides if any(counts))
        first = f", first {self.first}" if self.first else ""
        return f"{self.word}({self.start}:{self.stop}{pads}{first})"


@dataclass(frozen=True)
class Rows:
    """The batch goes on with these of its rows."""

    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"rows({','.join(map(str, self.index))})"


@dataclass(frozen=True)
class Crop:
    """Roll back to the first `length` elements."""

    length: int

    def __str__(self) -> str:
        return f"crop({self.length})"


@dataclass(frozen=True)
class Forget:
    """Forget everything; the batch has `rows` rows from now on: the first so many of the sequences."""

    rows: int

    def __str__(self) -> str:
        return f"forget({self.rows})"


@dataclass(frozen=True)
class Slot:
    """copy, file, back, park or take: what is done with the state and a slot."""

    word: str
    name: str

    def __str__(self) -> str:
        return f"{self.word}({self.name})"


@dataclass(frozen=True)
class Move:
    """Go on in a copy of the model that never read, given this state."""

    def __str__(self) -> str:
        return "move()"


@dataclass(frozen=True)
class Lose:
    """The state is dropped, and nobody says so."""

    def __str__(self) -> str:
        return "lose()"


@dataclass(frozen=True)
class Sources:
    """From here on the rows of the batch read these rows of the sequences."""

    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"sources({','.join(map(str, self.index))})"


@dataclass(frozen=True)
class Free:
    """A row of the batch is a free slot: it reads on, and what it gives is not compared."""

    row: int

    def __str__(self) -> str:
        return f"free({self.row})"


@dataclass(frozen=True)
class Admit:
    """A row of the batch is a new request: elements start .. stop - 1 of its sequence, prefilled alone."""

    row: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"admit({self.row}, {self.start}:{self.stop})"


Operation = Feed | Rows | Crop | Forget | Slot | Move | Lose | Sources | Free | Admit
_NUMBERED: Mapping[str, Callable[[int], Operation]] = {"crop": Crop, "forget": Forget, "free": Free}
FEEDS = ("feed", "read", "whole", "other")
SLOTS = ("copy", "file", "back", "park", "take")
RECORDED = "recorded"


@dataclass(frozen=True)
class History:
    """Operations in order; `of` names the rows of the sequences that it begins with, () for all."""

    operations: tuple[Operation, ...]
    of: tuple[int, ...] = ()

    def __str__(self) -> str:
        begin = [f"of({','.join(map(str, self.of))})"] if self.of else []
        return " ".join([*begin, *map(str, self.operations)])

    @property
    def padded(self) -> bool:
        """True if any call has padding: then each call is given a mask."""
        return any(isinstance(operation, Feed) and operation.padded for operation in self.operations)

    def forgetful(self) -> History:
        """The same, with the state dropped before the last call that is heard; itself if nothing is read before it."""
        heard = [i for i, operation in enumerate(self.operations) if isinstance(operation, Feed) and operation.heard]
        last = max(heard, default=0)
        forgotten = max((i for i, o in enumerate(self.operations[:last]) if isinstance(o, Forget)), default=0)
        before = self.operations[forgotten:last]
        if not any(isinstance(operation, Feed) and operation.word in ("feed", "read") for operation in before):
            return self
        return replace(self, operations=(*self.operations[:last], Lose(), *self.operations[last:]))


@dataclass(frozen=True)
class Claim:
    """`found` gives what the histories of `expected` give, their rows below each other, for these sequences.

    Without any, each call of `found` gives what one whole call over all that its row has read gives.

    >>> claim = Claim.parse("2x7@3: feed(0:6, left 2/0) feed(6:7) == of(0) feed(0:4) feed(6:7) & of(1) whole(0:7)")
    >>> claim.found.operations[0], len(claim.expected)
    (Feed(start=0, stop=6, left=(2, 0), right=(), word='feed', first=0), 2)
    >>> Claim.parse(str(claim)) == claim
    True
    """

    rows: int
    length: int
    seed: int
    found: History
    expected: tuple[History, ...]

    def __str__(self) -> str:
        expected = " & ".join(map(str, self.expected)) or RECORDED
        return f"{self.rows}x{self.length}@{self.seed}: {self.found} == {expected}"

    @staticmethod
    def parse(text: str) -> Claim:
        """The inverse of `str`. Raises :class:`UsageError` that shows the first part that can't be read."""
        head, colon, body = text.partition(":")
        drawn = re.fullmatch(r"\s*(\d+)x(\d+)@(\d+)\s*", head)
        found, equal, expected = body.partition("==")
        if not (drawn and colon and equal):
            raise UsageError(f"a case reads 'ROWSxLENGTH@SEED: history == history', found {text!r}")
        rows, length, seed = map(int, drawn.groups())
        histories = [] if expected.strip() == RECORDED else expected.split("&")
        return Claim(rows, length, seed, _history(found), tuple(map(_history, histories)))


def _history(text: str) -> History:
    words = re.findall(r"\w+\([^()]*\)", text)
    if "".join(words) != re.sub(r"\s+(?![^()]*\))", "", text):
        raise UsageError(f"expected operations like feed(0:5), found {text.strip()!r}")
    of: tuple[int, ...] = ()
    if words and words[0].startswith("of("):
        of, words = _numbers(words[0][3:-1]), words[1:]
    return History(tuple(map(_operation, words)), of)


def _operation(text: str) -> Operation:
    word, inside = text[:-1].split("(", 1)
    try:
        if word in FEEDS:
            return _feed(word, inside)
        if word in SLOTS:
            return Slot(word, inside.strip())
        if word in ("rows", "sources"):
            return (Rows if word == "rows" else Sources)(_numbers(inside))
        if word == "admit":
            row, span = inside.split(",")
            return Admit(int(row), *map(int, span.split(":")))
        if word in _NUMBERED:
            return _NUMBERED[word](int(inside))
        if word in ("move", "lose"):
            return Move() if word == "move" else Lose()
    except ValueError:
        pass
    raise UsageError(f"can't read the operation {text!r}: see statecheck.histories.operations")


def _feed(word: str, inside: str) -> Feed:
    span, *pads = inside.split(",")
    start, stop = map(int, span.split(":"))
    feed = Feed(start, stop, word=word)
    for pad in pads:
        name, counts = pad.split()
        numbers = tuple(map(int, counts.split("/")))
        if name not in ("left", "right", "first"):
            raise ValueError(name)
        feed = replace(feed, first=numbers[0]) if name == "first" else replace(feed, **{name: numbers})  # type: ignore[arg-type]
    return feed


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"expected row numbers like 1,0, found {text!r}") from None
