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

A *claim* is that two histories over the same sequences give the same outputs:

    2x7@3: feed(0:5) feed(5:6) feed(6:7) == whole(0:7)

over 2 sequences of 7 elements, drawn from seed 3. Behind == there may be several histories joined by &: their rows are
put below each other. A history may begin with `of(1)`: it is of these rows of the sequences alone.
"""

from __future__ import annotations

import re
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


Operation = Feed | Rows | Crop | Forget | Slot | Move | Lose
FEEDS = ("feed", "read", "whole", "other")
SLOTS = ("copy", "file", "back", "park", "take")


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
        """The same, with the state dropped before the last call that is heard; itself if that is the first call."""
        calls = [i for i, operation in enumerate(self.operations) if isinstance(operation, Feed)]
        last = max((i for i in calls if self.operations[i].heard), default=0)  # type: ignore[union-attr]
        if not calls or last == calls[0]:
            return self
        return replace(self, operations=(*self.operations[:last], Lose(), *self.operations[last:]))


@dataclass(frozen=True)
class Claim:
    """`found` gives what the histories of `expected` give, their rows below each other, for these sequences.

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
        return f"{self.rows}x{self.length}@{self.seed}: {self.found} == {' & '.join(map(str, self.expected))}"

    @staticmethod
    def parse(text: str) -> Claim:
        """The inverse of `str`. Raises :class:`UsageError` that shows the first part that can't be read."""
        head, colon, body = text.partition(":")
        drawn = re.fullmatch(r"\s*(\d+)x(\d+)@(\d+)\s*", head)
        found, equal, expected = body.partition("==")
        if not (drawn and colon and equal):
            raise UsageError(f"a case reads 'ROWSxLENGTH@SEED: history == history', found {text!r}")
        rows, length, seed = map(int, drawn.groups())
        return Claim(rows, length, seed, _history(found), tuple(map(_history, expected.split("&"))))


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
        if word == "rows":
            return Rows(_numbers(inside))
        if word == "crop":
            return Crop(int(inside))
        if word == "forget":
            return Forget(int(inside))
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
