"""MACHINE: whatever is done with a state, in whatever order, it holds what its rows have read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, precondition, rule
from hypothesis.strategies import SearchStrategy

from statecheck.deviation import Deviation
from statecheck.errors import CapabilityMissing, ModelRaised, StatecheckError
from statecheck.histories.drawing import LONGEST, lengths, seeds
from statecheck.histories.operations import (
    Admit,
    Claim,
    Crop,
    Feed,
    Forget,
    Free,
    History,
    Move,
    Operation,
    Rows,
    Slot,
    Sources,
)
from statecheck.histories.padding import MOST_PADS
from statecheck.histories.playing import ROUTES, lacking
from statecheck.histories.recorded import Batch, Record
from statecheck.histories.reducing import reduced
from statecheck.laws.contract import (
    WORTH,
    Evidence,
    Held,
    Outcome,
    compared,
    floor_of,
    outcome_of,
    probe,
    run_search,
)
from statecheck.protocol import Capability, ModelFacts, StateKind
from statecheck.verdict import Absence, Measurement, Status

STEPS = 16  # operations of a history, at most
HISTORIES = 2  # for each example that another law takes: many operations, and few of them meet
SLOT_NAMES = "abc"
MOST_BACK = 5

SHRINKS = 60  # claims that hypothesis may try to shrink one that is broken; the history itself is made shorter then

#: What is tried first, on each route: the operations of a machine are those that are neither refused nor wrong by
#: themselves. A fault of one operation is its own law's, and would hide those that two make together.
TRIED: Mapping[str, str] = {
    "step": "2x2@0: read(0:1) feed(1:2) == recorded",
    "later step": "2x8@0: read(0:6) feed(6:7) feed(7:8) == recorded",
    "copy": "1x2@0: read(0:1) copy(a) back(a) feed(1:2) == recorded",
    "file": "1x2@0: read(0:1) file(a) back(a) feed(1:2) == recorded",
    "park": "1x3@0: read(0:1) park(a) read(1:2) take(a) feed(2:3) == recorded",
    "forget": "1x3@0: read(0:1) forget(1) read(1:2) feed(2:3) == recorded",
    "move": "1x2@0: read(0:1) move() feed(1:2) == recorded",
    "reorder": "2x2@0: read(0:1) rows(1,0) feed(1:2) == recorded",
    "select": "2x2@0: read(0:1) rows(1) feed(1:2) == recorded",
    "crop": "1x4@0: read(0:2) read(2:3) crop(2) feed(3:4) == recorded",
    "admit": "2x3@0: read(0:1) admit(1, 1:2) feed(2:3) == recorded",
    "chunk": "2x6@0: read(0:2) feed(2:5) feed(5:6) == recorded",
    "left padding": "2x5@0: read(0:4, left 1/0) feed(4:5) == recorded",
    "right padding": "2x5@0: read(0:4, right 1/0) feed(4:5) == recorded",
}
#: What an operation needs of the model beside what its claim shows.
NEEDED: Mapping[str, Capability] = {
    **dict.fromkeys(("park", "forget", "admit"), Capability.RESET),
    "chunk": Capability.CHUNKS,
    "left padding": Capability.MASK,
    "right padding": Capability.MASK,
}
SEEDS = 3  # values on which an operation is tried
#: Rows of a batch; one row hides what rows do to each other.
ROWS = st.sampled_from((2, 1, 3, 3))
#: Kinds of states that may count for all rows together: requests of one length alone can share a batch.
COUNTING = (StateKind.POSITION, StateKind.MASK, StateKind.FLAG)


@probe("MACHINE", "Whatever is done with a state, it holds what was read", cost="a mixed history a claim")
def mixes(evidence: Evidence) -> Outcome:
    """Does any mixture of operations leave each row with the state of what it has read?

    A machine of hypothesis feeds, steps, pads, copies, restores, forks, forgets, reorders, rolls back, saves, moves,
    and serves requests in slots, in any order. After each call the oracle is the whole call, without a cache, over the
    recorded history of each row. It finds what laws about one operation can't: a fault that two of them make together.
    Operations that the model or its library refuses are left out, and named, and so are those that are wrong by
    themselves: that is their own law's to tell.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = mixes(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> [(m.name, m.value < 10) for m in found.measurements]
    [('MACHINE.native', True), ('MACHINE.functional', True)]
    """
    return outcome_of(evidence, [_held(evidence, route) for route in ROUTES])


def _held(evidence: Evidence, route: str) -> Held | Absence:
    name = f"MACHINE.{route}"
    apart = Capability.REBUILD in evidence.facts.capabilities
    try:
        if route == "functional":
            evidence.facts.require(Capability.SET_STATES)
    except CapabilityMissing as missing:
        return Absence(name, Status.SKIP, str(missing))

    def measure(claim: Claim) -> Deviation:
        """As the other laws do it."""
        absent = lacking(evidence.model, claim, route)
        if absent:
            raise CapabilityMissing(f"the library offers no {absent} of its own")
        try:
            return compared(evidence, claim, route, apart=apart)
        except ModelRaised as error:
            return Deviation(float("inf"), str(error))

    def control(claim: Claim) -> float | None:
        forgetful = replace(claim, found=claim.found.forgetful())
        with suppress(StatecheckError):
            return compared(evidence, forgetful, route, apart=apart).error if forgetful != claim else None
        return None

    effort = evidence.effort
    if effort.case:
        return run_search(evidence, name, st.just(Claim.parse(effort.case)), measure, control)
    refused = refusals(evidence, route)
    if {"step", "later step"} & refused.keys():
        return Absence(name, Status.SKIP, "single steps are wrong by themselves, and all else with them: see STEP")
    watched = Watched(measure, WORTH * floor_of(evidence).value)
    more = replace(evidence, effort=replace(effort, examples=HISTORIES * effort.examples))
    try:
        held = run_search(more, name, histories(evidence.facts, frozenset(TRIED) - refused.keys()), watched, control)
    except Shrunk:
        held = None
    if watched.broken:
        return _shortest(evidence, name, watched)
    assert held is not None
    note = "; ".join(f"without {operation}: {reason}" for operation, reason in refused.items())
    return replace(held, measurement=replace(held.measurement, note=note)) if isinstance(held, Held) else held


class Shrunk(BaseException):
    """Ends the search: hypothesis has shrunk for long enough. No exception that hypothesis would take for a finding."""


@dataclass
class Watched:
    """Measures claims, keeps those that are broken, and ends the search `SHRINKS` claims after the first of them."""

    measure: Callable[[Claim], Deviation]
    enough: float
    broken: dict[Claim, Deviation] = field(default_factory=dict)
    measured: int = 0
    left: int = SHRINKS

    def __call__(self, claim: Claim) -> Deviation:
        if self.left == 0:
            raise Shrunk
        found = self.measure(claim)
        self.measured += 1
        if found.error > self.enough:
            self.broken[claim] = found
        self.left -= bool(self.broken)
        return found


def _shortest(evidence: Evidence, name: str, watched: Watched) -> Held:
    """The shortest broken claim without what it does not need. That may take half the time of a search again."""
    end = time.monotonic() + evidence.effort.seconds / 2

    def broken(shorter: Claim) -> bool:
        with suppress(CapabilityMissing):
            return time.monotonic() < end and watched.measure(shorter).error > watched.enough
        return False

    claim = reduced(min(watched.broken, key=_length), broken)
    worst = max(found.error for found in watched.broken.values()) / floor_of(evidence).value
    note = f"simplest: {claim} gives {watched.measure(claim)}"
    measurement = Measurement.exact(name, worst, unit="floors", n=watched.measured, note=note)
    return Held(measurement, (), str(claim))


def _length(claim: Claim) -> tuple[int, int, str]:
    return len(claim.found.operations), claim.length, str(claim)


def refusals(evidence: Evidence, route: str) -> dict[str, str]:
    """Operations that this route goes without, with the reason: those refused, and those wrong by themselves."""
    found = {name: _unfit(evidence, route, name, Claim.parse(text)) for name, text in TRIED.items()}
    return {name: reason for name, reason in found.items() if reason}


def _unfit(evidence: Evidence, route: str, name: str, claim: Claim) -> str:
    absent = lacking(evidence.model, claim, route)
    if absent:
        return f"the library offers no {absent} of its own"
    try:
        if name in NEEDED:
            evidence.facts.require(NEEDED[name])
        for seed in range(SEEDS):
            if compared(evidence, replace(claim, seed=seed), route).error > WORTH * floor_of(evidence).value:
                return "it is wrong by itself"
    except CapabilityMissing as missing:
        return str(missing)
    except StatecheckError as error:
        return f"it is wrong by itself: {error}"
    return ""


def histories(facts: ModelFacts, offered: Set[str]) -> SearchStrategy[Claim]:
    """Claims that what a machine did with a state is what its rows have read."""
    made: list[Machine] = []
    usual = lengths(facts)

    def machine() -> Machine:
        made[:] = [Machine(facts, offered, usual)]
        return made[0]

    steps = settings(stateful_step_count=STEPS, suppress_health_check=list(HealthCheck), deadline=None)
    run = get_state_machine_test(machine, settings=steps).hypothesis.inner_test  # type: ignore[arg-type, attr-defined]

    @st.composite
    def drawn(draw: Callable[[SearchStrategy[Any]], Any]) -> Claim:
        run(draw(st.data()))
        return made[0].claim(draw(seeds()), last_alone=draw(st.integers(0, 4)) == 0)

    return drawn()


def _of_machine(strategy: Callable[[Machine], SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """What can be drawn depends on what was done."""
    return st.runner().flatmap(strategy)


class Machine(RuleBasedStateMachine):
    """Draws a history, operation by operation; it is played when it is complete.

    Each call reads elements that nothing has read yet, so that histories which went apart differ from then on.
    """

    def __init__(self, facts: ModelFacts, offered: Set[str], lengths: SearchStrategy[int]) -> None:
        super().__init__()
        self.facts, self.offered, self.lengths = facts, offered, lengths
        self.operations: list[Operation] = []
        self.record = Record(Batch.of([0]))
        self.time = 0
        self.begun = self.most = 1  # rows at the beginning, and most of them
        self.parked: set[str] = set()

    # What was done, for the rules -----------------------------------------------------------------------------------

    @property
    def batch(self) -> Batch:
        return self.record.batch

    @property
    def warm(self) -> bool:
        """True if there is a state."""
        return self.batch.total > 0

    def can(self, name: str) -> bool:
        return self.warm and name in self.offered

    def do(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.record.do(operation)
        self.most = max(self.most, *(row + 1 for row in self.batch.rows))

    @property
    def ways(self) -> list[str]:
        """Ways to keep a copy."""
        return [way for way in ("copy", "file") if way in self.offered]

    def slot(self) -> str:
        """The next name of a slot."""
        return next(name for name in SLOT_NAMES if name not in self.record.slots)

    def copies(self) -> list[str]:
        return [name for name in self.record.slots if name not in self.parked]

    def occupied(self) -> list[int]:
        """Rows of the batch that are no free slots."""
        return [row for row, free in enumerate(self.batch.free) if not free]

    def read(self, length: int, left: tuple[int, ...] = (), right: tuple[int, ...] = ()) -> None:
        self.do(Feed(self.time, self.time + length, left=left, right=right))
        self.time += length

    # The rules ------------------------------------------------------------------------------------------------------

    @initialize(rows=ROWS)
    def begin(self, rows: int) -> None:
        self.record = Record(Batch.of(range(rows)))
        self.begun = self.most = rows

    @rule()
    def advance(self) -> None:
        self.read(1)

    @precondition(lambda self: self.batch.total < LONGEST)
    @precondition(lambda self: not self.warm or self.can("chunk"))
    @rule(length=_of_machine(lambda self: self.lengths))
    def chunk(self, length: int) -> None:
        self.read(min(length, LONGEST - self.batch.total))

    @precondition(lambda self: not self.warm and "left padding" in self.offered)
    @rule(pads=_of_machine(lambda self: _pads(len(self.batch.rows))), length=st.integers(1, 8))
    def pad_left(self, pads: tuple[int, ...], length: int) -> None:
        self.read(length + max(pads), left=pads)

    # A window of keys counts padding as elements: behind a row it would push the row's own out.
    @precondition(lambda self: not self.warm and "right padding" in self.offered and self.facts.window is None)
    @rule(pads=_of_machine(lambda self: _pads(len(self.batch.rows))), length=st.integers(1, 8))
    def pad_right(self, pads: tuple[int, ...], length: int) -> None:
        self.read(length + max(pads), right=pads)

    @precondition(lambda self: self.warm and self.ways and len(self.record.slots) < len(SLOT_NAMES))
    @rule(way=_of_machine(lambda self: st.sampled_from(self.ways)))
    def snapshot(self, way: str) -> None:
        self.do(Slot(way, self.slot()))

    @precondition(lambda self: self.copies())
    @rule(name=_of_machine(lambda self: st.sampled_from(self.copies())))
    def restore(self, name: str) -> None:
        self.do(Slot("back", name))

    @precondition(lambda self: self.can("park") and len(self.record.slots) < len(SLOT_NAMES))
    @rule()
    def put_aside(self) -> None:
        self.parked.add(self.slot())
        self.do(Slot("park", self.slot()))

    @precondition(lambda self: self.parked & self.record.slots.keys())
    @rule(name=_of_machine(lambda self: st.sampled_from(sorted(self.parked))))
    def go_on_with(self, name: str) -> None:
        self.do(Slot("take", name))
        self.parked.discard(name)
        del self.record.slots[name]

    @precondition(lambda self: self.can("forget"))
    @rule(rows=ROWS)
    def forget(self, rows: int) -> None:
        self.do(Forget(rows))

    @precondition(lambda self: self.can("move"))
    @rule()
    def move(self) -> None:
        self.do(Move())

    @precondition(lambda self: self.can("reorder") and len(self.batch.rows) > 1)
    @rule(index=_of_machine(lambda self: st.permutations(range(len(self.batch.rows)))))
    def reorder(self, index: list[int]) -> None:
        self.do(Rows(tuple(index)))

    @precondition(lambda self: self.can("select"))
    @rule(index=_of_machine(lambda self: _some(self.batch.free)), apart=st.booleans())
    def select(self, index: list[int], apart: bool) -> None:
        """Rows that are repeated, as beams are, may read different elements from here on."""
        self.do(Rows(tuple(index)))
        if apart and len(set(self.batch.rows)) < len(index):
            self.do(Sources(tuple(range(len(index)))))

    @precondition(lambda self: self.can("crop") and self.batch.total > 1 and not self.batch.padded)
    @rule(back=st.integers(1, MOST_BACK))
    def roll_back(self, back: int) -> None:
        self.do(Crop(max(self.batch.total - back, 1)))

    @precondition(lambda self: self.can("admit") and len(self.occupied()) > 1)
    @rule(row=_of_machine(lambda self: st.sampled_from(self.occupied())))
    def free(self, row: int) -> None:
        self.do(Free(row))

    @precondition(lambda self: self.can("admit"))
    @rule(row=_of_machine(lambda self: st.integers(0, len(self.batch.rows) - 1)), length=st.integers(1, 8))
    def admit(self, row: int, length: int) -> None:
        length = self.batch.total if _counts(self.facts) else length
        self.do(Admit(row, self.time, self.time + length))
        self.time += length

    # The claim ------------------------------------------------------------------------------------------------------

    def claim(self, seed: int, *, last_alone: bool) -> Claim:
        """That each call, or the last alone, gives what its rows have read. A history ends with a call."""
        if not self.operations or not isinstance(self.operations[-1], Feed):
            self.read(1)
        fed = [i for i, operation in enumerate(self.operations) if isinstance(operation, Feed)]
        for i in fed[:-1] if last_alone else ():
            self.operations[i] = replace(self.operations[i], word="read")  # type: ignore[arg-type]
        of = () if self.begun == self.most else tuple(range(self.begun))
        return Claim(self.most, self.time, seed, History(tuple(self.operations), of), ())


def _pads(rows: int) -> SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, MOST_PADS), min_size=rows, max_size=rows).filter(any).map(tuple)


def _some(free: tuple[bool, ...]) -> SearchStrategy[list[int]]:
    """Rows of a batch, selected or repeated, in any order, not free slots alone."""
    row = st.integers(0, len(free) - 1)
    drawn = ROWS.flatmap(lambda rows: st.lists(row, min_size=rows, max_size=rows))
    return drawn.filter(lambda index: not all(free[i] for i in index))


def _counts(facts: ModelFacts) -> bool:
    """True if rows of a batch may have to be of one length: a state grows or counts."""
    return any(state.time_axis is not None or state.kind in COUNTING for state in facts.states.values())
