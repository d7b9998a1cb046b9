"""Making a claim of a record that is broken shorter: fewer operations, shorter calls, fewer outputs that are compared.

The shrinking of hypothesis works on the choices that a history was drawn from, where a copy and its return lie far
apart and each operation decides what can come after it; here it is the history itself that is made simpler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

from statecheck.histories.operations import (
    Admit,
    Claim,
    Crop,
    Feed,
    Forget,
    Free,
    History,
    Operation,
    Rows,
    Slot,
    Sources,
)
from statecheck.histories.recorded import Batch, Record, begin

Broken = Callable[[Claim], bool]


def reduced(claim: Claim, broken: Broken) -> Claim:
    """The claim without all that it is broken without; `broken` is asked of sound claims alone.

    Two operations are left out at a time as well: a copy and its return, say, that make no sense apart.

    >>> claim = Claim.parse("2x9@0: feed(0:2) move() copy(a) rows(1,0) back(a) read(2:8) feed(8:9) == recorded")
    >>> print(reduced(claim, lambda one: any(isinstance(operation, Rows) for operation in one.found.operations)))
    2x2@0: read(0:1) rows(1,0) feed(1:2) == recorded
    """
    before = None
    while claim != before:
        before = claim
        for simpler in (_fewer, _fewer_by_two, _shorter_calls, _the_rest):
            claim = _first(simpler(claim), broken, claim)
    return claim


def _first(simpler: Iterator[Claim], broken: Broken, claim: Claim) -> Claim:
    """The first simpler claim that is broken as well, else `claim`."""
    return next((one for one in simpler if one != claim and sound(one) and broken(one)), claim)


def sound(claim: Claim) -> bool:
    """True if each operation of a claim of a record can be done where it stands, and the last one is compared.

    >>> sound(Claim.parse("1x2@0: read(0:1) back(a) feed(1:2) == recorded"))
    False
    """
    record = Record(Batch.of(begin(claim.found, claim.rows)))
    operations = claim.found.operations
    for operation in operations:
        if not _possible(operation, record, claim.rows):
            return False
        record.do(operation)
    return bool(operations) and isinstance(operations[-1], Feed) and operations[-1].heard


def _possible(operation: Operation, record: Record, sequences: int) -> bool:
    batch = record.batch
    rows = len(batch.rows)
    match operation:
        case Feed():
            sides = [side for side in (operation.left, operation.right) if side]
            return not sides or (not batch.total and all(len(side) == rows for side in sides))
        case Slot(word, name) if word in ("back", "take"):
            return name in record.slots
        case Sources(index):
            return len(index) == rows and max(index) < sequences
        case Rows(index):
            return batch.total > 0 and max(index) < rows and not all(batch.free[i] for i in index)
        case Crop(length):
            return 0 < length < batch.total and not batch.padded
        case Forget(count):
            return batch.total > 0 and count <= sequences
        case Free(row):
            return row < rows and any(not free for i, free in enumerate(batch.free) if i != row)
        case Admit(row):
            return batch.total > 0 and row < rows
    return batch.total > 0


def _fewer(claim: Claim, count: int = 1) -> Iterator[Claim]:
    """Without one operation, the last first; the first two calls as one."""
    operations = claim.found.operations
    match operations[:2]:
        case (Feed() as first, Feed() as then) if not first.padded and first.stop == then.start:
            yield _of(claim, (replace(then, start=first.start), *operations[2:]))
    for left_out in combinations(reversed(range(len(operations))), count):
        yield _of(claim, tuple(operation for i, operation in enumerate(operations) if i not in left_out))


def _fewer_by_two(claim: Claim) -> Iterator[Claim]:
    return _fewer(claim, 2)


def _shorter_calls(claim: Claim) -> Iterator[Claim]:
    """One call shorter: of one element, of half of them, of one less; roll-backs behind it as they are, or as much."""
    for i, operation in enumerate(claim.found.operations):
        if not isinstance(operation, (Feed, Admit)) or (isinstance(operation, Feed) and operation.padded):
            continue
        length = operation.stop - operation.start
        for less in sorted({1, length // 2, length - 1} & set(range(1, length))):
            rest = claim.found.operations[i + 1 :]
            call = replace(operation, stop=operation.start + less)
            for moved in (rest, tuple(_lower(one, length - less) for one in rest)):
                yield _of(claim, (*claim.found.operations[:i], call, *moved))


def _lower(operation: Operation, by: int) -> Operation:
    return Crop(max(operation.length - by, 1)) if isinstance(operation, Crop) else operation


def _the_rest(claim: Claim) -> Iterator[Claim]:
    """The first values that can be drawn, the last call alone compared, elements read without gaps."""
    yield replace(claim, seed=0)
    *before, last = claim.found.operations
    hushed = (replace(one, word="read") if isinstance(one, Feed) and one.heard else one for one in before)
    yield _of(claim, (*hushed, last))
    yield _on_time(claim)


def _of(claim: Claim, operations: tuple[Operation, ...]) -> Claim:
    return replace(claim, found=replace(claim.found, operations=operations))


def _on_time(claim: Claim) -> Claim:
    """The same, reading the elements of the sequences one after another, without gaps."""
    operations: list[Operation] = []
    time = 0
    for operation in claim.found.operations:
        if isinstance(operation, (Feed, Admit)):
            length = operation.stop - operation.start
            operations.append(replace(operation, start=time, stop=time + length))
            time += length
        else:
            operations.append(operation)
    return replace(claim, length=time, found=History(tuple(operations), claim.found.of))
