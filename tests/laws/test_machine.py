"""The machine finds what two operations break together, shrinks it to them, and passes what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import find, settings
from hypothesis.errors import NoSuchExample
from torch import nn
from two_operation_faults import Checkpointed, Library, Pool, Sloppy

from statecheck.adapters import wrap
from statecheck.histories.operations import Admit, Claim, Feed
from statecheck.histories.reducing import reduced, sound
from statecheck.laws import batch, chunk, crop, determ, fork, prefix, reorder, reset, step
from statecheck.laws.contract import WORTH
from statecheck.laws.machine import TRIED, histories, mixes, refusals
from statecheck.probes.contract import Effort, Evidence, gather
from statecheck.protocol import StatefulModel
from statecheck.testing.oracles import GatedFilter, LinearState, SelectiveCounter, ShiftRegister
from statecheck.verdict import Outcome, Status

LAWS = (
    step.steps,
    chunk.chunks,
    prefix.prefixes,
    batch.batches,
    reset.resets,
    fork.forks,
    reorder.reorders,
    crop.crops,
    determ.deterministic,
)
HEALTHY: dict[str, Callable[[], StatefulModel]] = {
    "gru": lambda: wrap(nn.GRU(4, 8, num_layers=2, batch_first=True)),
    "lstm": lambda: wrap(nn.LSTM(4, 8)),
    "linear": lambda: wrap(LinearState([0.5, 0.9, 0.99]), width=3),
    "register": lambda: wrap(ShiftRegister(5, 3), width=3),
    "counter": lambda: wrap(SelectiveCounter(16), vocabulary=16),
    "filter": lambda: wrap(GatedFilter(4, 8), width=4),
    "pool": lambda: wrap(Pool(right=True)),
}


def evidence(model: StatefulModel, *, seed: int = 0, **effort: object) -> Evidence:
    return replace(gather(model, None, seed=seed), effort=Effort(**effort))  # type: ignore[arg-type]


def judged(law: Callable[[Evidence], Outcome], asked: Evidence) -> Outcome:
    with torch.no_grad():
        return law(asked)


def broken(outcome: Outcome) -> dict[str, str]:
    """The shortest history of each route that is broken."""
    wrong = [m for m in outcome.measurements if m.value > WORTH]
    return {m.name: m.note.removeprefix("simplest: ").split(" gives ")[0] for m in wrong}


MANY = 150  # examples: a fault of exactly two operations is found by half of the default efforts alone


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_pass(name: str) -> None:
    outcome = judged(mixes, evidence(HEALTHY[name](), examples=10, seconds=60))
    assert [m.name for m in outcome.measurements] == ["MACHINE.native", "MACHINE.functional"]
    assert not broken(outcome)
    assert not outcome.absences


@pytest.mark.parametrize("model", [lambda: wrap(Pool()), lambda: Library(Checkpointed())])
def test_no_law_of_one_operation_finds_a_fault_of_two(model: Callable[[], StatefulModel]) -> None:
    subject = model()
    outcomes = [judged(law, evidence(subject, seconds=60)) for law in LAWS]
    assert not any(broken(outcome) for outcome in outcomes)
    assert {"STEP.functional", "CHUNK.functional", "BATCH.functional", "RESET.functional", "REORDER.functional"} <= {
        m.name for outcome in outcomes for m in outcome.measurements
    }


def test_rows_that_come_back_into_a_pool_are_found_and_shrunk_to_two_operations() -> None:
    found = broken(judged(mixes, evidence(wrap(Pool()), examples=MANY, seconds=60)))
    shrinks_and_grows = r"\dx2@0: read\(0:1\) rows\([\d,]+\) rows\([\d,]+\) feed\(1:2\) == recorded"
    assert list(found) == ["MACHINE.functional"]
    assert re.fullmatch(shrinks_and_grows, found["MACHINE.functional"])


def test_a_roll_back_behind_another_order_of_rows_is_found_and_shrunk_to_two_operations() -> None:
    found = broken(judged(mixes, evidence(Library(Checkpointed()), examples=MANY, seconds=60)))
    assert list(found) == ["MACHINE.native"]
    assert re.fullmatch(
        r"\dx3@0: read\(0:2\) rows\([\d,]+\) crop\(1\) feed\(2:3\) == recorded", found["MACHINE.native"]
    )


def test_what_was_found_can_be_asked_again_as_a_case() -> None:
    case = "2x3@0: read(0:2) rows(1,0) crop(1) feed(2:3) == recorded"
    outcome = judged(mixes, evidence(Library(Checkpointed()), case=case))
    assert broken(outcome) == {"MACHINE.native": case}
    assert [one.name for one in outcome.absences] == ["MACHINE.functional"]


def test_a_fault_of_every_step_is_left_to_its_own_law() -> None:
    outcome = judged(mixes, evidence(Library(Sloppy()), seconds=60))
    assert not outcome.measurements
    assert {one.status for one in outcome.absences} == {Status.SKIP}
    assert "see STEP" in outcome.absences[0].reason


def test_the_same_seed_brings_the_same_result_and_another_seed_other_histories() -> None:
    subject = wrap(Pool())
    first, again = (judged(mixes, evidence(subject, examples=MANY, seconds=60)) for _ in range(2))
    assert first == again
    assert broken(first)
    drawn = [judged(mixes, evidence(wrap(Pool(right=True)), examples=4, seconds=60, seed=seed)) for seed in (0, 1)]
    assert drawn[0].measurements != drawn[1].measurements


def test_time_that_is_up_is_no_pass() -> None:
    outcome = judged(mixes, evidence(wrap(nn.GRU(4, 8, batch_first=True)), seconds=0.0))
    assert not outcome.measurements
    assert [(one.name, one.status) for one in outcome.absences] == [
        ("MACHINE.native", Status.SKIP),
        ("MACHINE.functional", Status.SKIP),
    ]
    assert "not run to its end" in outcome.absences[0].reason


def test_a_dropped_state_is_seen_and_what_is_left_out_is_named() -> None:
    outcome = judged(mixes, evidence(wrap(nn.GRU(4, 8, batch_first=True)), examples=5, seconds=60))
    seen = {one.name: one.value for one in outcome.shown}
    assert seen["MACHINE.functional.seen"] > 1000 * WORTH
    notes = {one.name: one.note for one in outcome.measurements}
    assert "without reorder: the library offers no reorder of its own" in notes["MACHINE.native"]
    assert notes["MACHINE.functional"].count("without") == 3  # crop, and the two paddings
    assert "without crop: a recurrent state can't be rolled back as a value" in notes["MACHINE.functional"]


def test_operations_that_raise_or_are_refused_are_left_out_and_named() -> None:
    class Raises(Pool):
        def set_states(self, states: object) -> None:
            if states is not None and self.slots is not None and len(states["layers.0.h"]) < self.rows:  # type: ignore[index]
                raise RuntimeError("the pool does not shrink")
            super().set_states(states)  # type: ignore[arg-type]

    found = judged(mixes, evidence(wrap(Raises(right=True)), examples=10, seconds=60))
    assert not broken(found)
    note = next(m.note for m in found.measurements if m.name == "MACHINE.functional")
    assert "without select: it is wrong by itself" in note
    assert "the pool does not shrink" in note
    library = evidence(Library(Checkpointed()))
    with torch.no_grad():
        assert set(refusals(library, "native")) == {"admit", "left padding", "right padding"}
        assert set(refusals(library, "functional")) == {"crop", "left padding", "right padding"}


def test_every_drawn_history_is_sound_and_can_be_written_and_read() -> None:
    facts = Library(Checkpointed()).facts
    seen: list[Claim] = []
    with pytest.raises(NoSuchExample):
        find(
            histories(facts, frozenset(TRIED)),
            lambda claim: seen.append(claim) is not None,
            settings=settings(database=None, max_examples=150, derandomize=True),
        )
    assert all(Claim.parse(str(claim)) == claim and sound(claim) for claim in seen)
    words = {str(operation).split("(")[0] for claim in seen for operation in claim.found.operations}
    assert words >= {
        "feed",
        "read",
        "rows",
        "sources",
        "crop",
        "forget",
        "copy",
        "file",
        "back",
        "park",
        "take",
        "move",
    }
    assert words >= {"free", "admit"}
    times = [[o for o in claim.found.operations if isinstance(o, (Feed, Admit))] for claim in seen]
    assert all(o.start == sum(p.stop - p.start for p in read[:i]) for read in times for i, o in enumerate(read))


@pytest.mark.parametrize(
    "text",
    [
        "2x2@0: read(0:1) take(a) feed(1:2) == recorded",
        "2x2@0: read(0:1) rows(2) feed(1:2) == recorded",
        "2x2@0: read(0:1) crop(1) feed(1:2) == recorded",
        "2x4@0: read(0:1) feed(1:4, left 2/0) == recorded",
        "2x2@0: move() feed(1:2) == recorded",
        "2x2@0: read(0:1) free(0) free(1) feed(1:2) == recorded",
        "2x2@0: read(0:1) sources(0) feed(1:2) == recorded",
        "2x2@0: feed(0:1) rows(0) == recorded",
    ],
)
def test_a_history_that_makes_no_sense_is_not_sound(text: str) -> None:
    assert not sound(Claim.parse(text))


def test_a_copy_and_its_return_are_left_out_together() -> None:
    claim = Claim.parse("2x6@0: read(0:2) copy(a) read(2:3) back(a) rows(1,0) crop(1) feed(5:6) == recorded")
    asked: list[Claim] = []

    def fails(shorter: Claim) -> bool:
        asked.append(shorter)
        return "rows(1,0) crop" in str(shorter)

    assert str(reduced(claim, fails)) == "2x3@0: read(0:2) rows(1,0) crop(1) feed(2:3) == recorded"
    assert all(map(sound, asked))
