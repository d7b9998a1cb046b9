"""Each law catches its culprits, with a message that says what and where; the laws beside it stay green."""

from __future__ import annotations

import pytest
from law_culprits import (
    BatchBroadcastsItself,
    BatchSizeOutlivesTheReset,
    BoundaryMissedAtAChunk,
    ChunkStartsFromZero,
    ChunkTakesTheBranchOfAStep,
    ClockOutsideOfTheState,
    CopiesLeaveTheWindowBehind,
    CropLeavesTheSumBehind,
    CropOffByOne,
    EveryRowGetsTheLastRowsWindow,
    ForgettingKeepsTheWindow,
    GradientLeaksOverBoundaries,
    MaskIgnored,
    MaskIgnoredForOneRow,
    NormalisesOverTheBatch,
    OneBufferForAllSequences,
    PadsBehindEnterTheState,
    ReordersHAlone,
    ResetKeepsTheWindow,
    RowNumbersOnTheModule,
    SegmentsIgnored,
    StaleWindowInASingleStep,
    SumsOverTheNextChunk,
    WritesIntoGivenStates,
    WritesIntoItsInputs,
    WritesItsOutputsAgain,
)
from path_culprits import (
    BackwardRaises,
    CarriesInLowPrecision,
    CutsHalfOfTheCarriedGradient,
    DividesByTheDecay,
    DoublesItsBuffer,
    DropoutInEvaluation,
    ForgetsWithoutACache,
    GradientInLowPrecision,
    GradientsTakeAnotherPath,
    HalvesAGradient,
    IdleParameter,
    IdleState,
    LeftOutOfTheStateDict,
    LogTakenOnLoad,
    NaNGradientBesideAChunk,
    NotFiniteAtAMultipleOfEight,
    PutsBackSomethingElse,
    RaisesBeyondThousand,
    ReadsWhatItDoesNotTell,
    TrainsAnotherModel,
)
from torch import nn

import statecheck as sc
from statecheck.report.record import Report
from statecheck.verdict import Status, Verdict


def checked(module: nn.Module, *laws: str) -> Report:
    """The report of these laws alone."""
    return sc.check_model(sc.wrap(module, width=module.width), suite="conformance", only=laws)


def parts(report: Report, law: str) -> dict[str, Verdict]:
    """The parts of a law by name."""
    return {part.id: part for part in report[law].parts}


def fails(module: nn.Module, law: str) -> dict[str, str]:
    """The parts of a law that fail, with their reasons."""
    found = parts(checked(module, law), law)
    return {name: part.reason for name, part in found.items() if part.status is Status.FAIL}


BOTH = ("native", "functional")
OF_THE_STATE = [
    (StaleWindowInASingleStep, "STEP", BOTH, "simplest: 1x2@0: feed(0:1) feed(1:2) == whole(0:2)"),
    (ChunkStartsFromZero, "CHUNK", BOTH, "simplest: 1x3@0: feed(0:1) feed(1:3) == feed(0:3)"),
    (ChunkTakesTheBranchOfAStep, "CHUNK", BOTH, "a branch on the length of the call"),
    (SumsOverTheNextChunk, "PREFIX", ("native",), "simplest: 1x9@0: whole(0:9, first 1) == whole(0:1)"),
    (EveryRowGetsTheLastRowsWindow, "BATCH", BOTH, "simplest: 2x2@0: of(0,1) feed(0:1) feed(1:2)"),
    # FAILS while laws.contract._right_after_all excuses it: the whole call that it asks is of the same batch.
    (NormalisesOverTheBatch, "BATCH", BOTH, "Rows mix"),
    (BatchBroadcastsItself, "BATCH", BOTH, "the model's output has shape (2, 2, 3) for inputs (2, 1, 3)"),
    (MaskIgnored, "PADL", BOTH, "simplest: 1x2@0: feed(0:2, left 1) == of(0) feed(0:1)"),
    (MaskIgnored, "PADR", BOTH, "simplest: 1x3@0: feed(0:2, right 1) feed(2:3) == of(0) feed(0:1) feed(2:3)"),
    (MaskIgnoredForOneRow, "PADL", BOTH, "for a batch of one as well"),
    (PadsBehindEnterTheState, "PADR", BOTH, "at each row's own last element"),
    (
        ResetKeepsTheWindow,
        "RESET",
        ("native",),
        "simplest: 1x1@0: of(0) other(0:1) forget(1) feed(0:1) == of(0) feed(0:1)",
    ),
    (ForgettingKeepsTheWindow, "RESET", BOTH, "Something outlives the reset"),
    (BatchSizeOutlivesTheReset, "RESET", BOTH, "the buffer holds 1 rows, the inputs 2"),
    (ClockOutsideOfTheState, "RESET", ("functional",), "park(a) other(0:1) park(b) take(a)"),
    (CopiesLeaveTheWindowBehind, "FORK", ("native",), "read(0:1) copy(a) other(0:1) back(a) feed(1:2)"),
    (OneBufferForAllSequences, "FORK", ("native",), "A copy shares memory with the original"),
    (ClockOutsideOfTheState, "FORK", ("functional",), "read(0:1) copy(a) other(0:1) back(a) feed(1:2)"),
    (
        WritesIntoGivenStates,
        "ALIAS",
        ("functional",),
        "a later call changed what the caller holds: given to set_states, h",
    ),
    (WritesIntoItsInputs, "ALIAS", ("native",), "changed what the caller holds: the inputs of the first call"),
    (WritesItsOutputsAgain, "ALIAS", ("native",), "changed what the caller holds: the outputs of the first call"),
    (OneBufferForAllSequences, "ALIAS", ("native",), "put aside with its sequence, h"),
    (ReordersHAlone, "REORDER", ("native",), "simplest: 2x2@0: read(0:1) rows(0,0) feed(1:2)"),
    (RowNumbersOnTheModule, "REORDER", BOTH, "at flags kept per row"),
    (CropLeavesTheSumBehind, "CROP", ("native",), "simplest: 1x2@0: read(0:2) crop(1) feed(1:2)"),
    (CropOffByOne, "CROP", ("native",), "A roll-back leaves a part of the state behind"),
    (SegmentsIgnored, "PACK", ("native", "gradient"), "simplest: ((1, 1), 0) gives"),
    (BoundaryMissedAtAChunk, "PACK", ("native", "gradient"), "reset state, window and decay at every boundary"),
    (GradientLeaksOverBoundaries, "PACK", ("gradient",), "largest for parameter"),
]
OF_A_PATH = [
    (HalvesAGradient, "GRAD", ("slope",), "The gradient is not the slope of the loss"),
    (
        NaNGradientBesideAChunk,
        "GRAD",
        ("native",),
        "simplest: (1, 9, 0) gives inf relative, not finite for parameter bias",
    ),
    (GradientInLowPrecision, "GRAD", ("native",), "simplest: (1, 1, 0) gives"),
    (BackwardRaises, "GRAD", ("native",), "the backward pass raised RuntimeError: one of the variables needed"),
    (CutsHalfOfTheCarriedGradient, "GRAD", ("functional",), "The gradient through the carried state is cut or wrong"),
    (ForgetsWithoutACache, "PARITY", ("native",), "simplest: 1x1@0: feed(0:1) == whole(0:1)"),
    (TrainsAnotherModel, "PARITY", ("training",), "simplest: (1, 1, 0) gives 1 relative"),
    (GradientsTakeAnotherPath, "PARITY", ("gradient",), "simplest: (1, 1, 0) gives 0.001 relative"),
    (NotFiniteAtAMultipleOfEight, "NUM", ("long",), "8 elements: 48 outputs are not finite"),
    (RaisesBeyondThousand, "NUM", ("long",), "1025 elements: the model raised RuntimeError"),
    (DividesByTheDecay, "NUM", ("extreme",), "not finite with d +20"),
    (CarriesInLowPrecision, "NUM", ("low",), "carry and accumulate the state in float32"),
    (LogTakenOnLoad, "LOAD", ("functional",), "parameter decay changed by"),
    (LeftOutOfTheStateDict, "LOAD", ("functional",), "parameter bias changed by"),
    (DropoutInEvaluation, "DETERM", BOTH, "dropout in eval mode"),
    (ReadsWhatItDoesNotTell, "HONEST", ("sufficient", "complete"), "A part of the memory is not in get_states"),
    (ClockOutsideOfTheState, "HONEST", ("sufficient", "complete"), "feed(1:2) == read(0:1) feed(1:2)"),
    (DoublesItsBuffer, "SIZE", ("undeclared",), "224 bytes a row"),
]


def named(value: object) -> str | None:
    """The culprit and the law name a test."""
    return (
        value.__name__
        if isinstance(value, type)
        else None
        if isinstance(value, tuple) or len(str(value)) > 8
        else str(value)
    )


@pytest.mark.parametrize(("culprit", "law", "where", "message"), OF_THE_STATE + OF_A_PATH, ids=named)
def test_a_law_catches_its_culprit_on_the_routes_it_goes_wrong_on_alone(
    culprit: type[nn.Module], law: str, where: tuple[str, ...], message: str
) -> None:
    found = fails(culprit(), law)
    assert set(found) == {f"{law}.{part}" for part in where}
    assert any(message in reason for reason in found.values()), found


def test_a_state_that_nothing_reads_is_told_and_is_no_failure() -> None:
    part = parts(checked(IdleState(), "HONEST"), "HONEST")["HONEST.necessary"]
    assert part.status is Status.WARN
    assert "0 floors at state momentum" in part.reason


def test_states_that_are_put_back_otherwise_are_a_dishonesty_and_leave_the_rest_unjudged() -> None:
    report = checked(PutsBackSomethingElse(), "HONEST", "STEP")
    assert report["HONEST"].status is Status.FAIL
    assert "does not give s back" in report["HONEST"].reason
    assert parts(report, "STEP")["STEP.functional"].status is Status.SKIP


def test_a_parameter_that_nothing_reads_is_told_and_is_no_failure() -> None:
    part = parts(checked(IdleParameter(), "GRAD"), "GRAD")["GRAD.missing"]
    assert part.status is Status.WARN
    assert "without a gradient: forgotten" in part.reason


GREEN = [
    (StaleWindowInASingleStep, "STEP", ("BATCH", "PADR", "RESET", "REORDER", "DETERM")),
    (ChunkStartsFromZero, "CHUNK", ("STEP", "BATCH", "RESET", "FORK", "ALIAS")),
    (SumsOverTheNextChunk, "PREFIX", ("BATCH", "RESET", "FORK", "DETERM")),
    (EveryRowGetsTheLastRowsWindow, "BATCH", ("RESET", "FORK", "DETERM")),
    (PadsBehindEnterTheState, "PADR", ("PADL", "STEP", "BATCH", "RESET")),
    (ResetKeepsTheWindow, "RESET", ("STEP", "CHUNK", "FORK", "DETERM")),
    (CopiesLeaveTheWindowBehind, "FORK", ("STEP", "RESET", "HONEST", "ALIAS")),
    (WritesIntoGivenStates, "ALIAS", ("STEP", "FORK", "RESET", "HONEST")),
    (ClockOutsideOfTheState, "HONEST", ("STEP", "CHUNK", "BATCH", "DETERM")),
    (TrainsAnotherModel, "PARITY", ("STEP", "GRAD", "LOAD")),
]


@pytest.mark.parametrize(("culprit", "law", "others"), GREEN, ids=named)
def test_one_fault_is_one_laws_matter(culprit: type[nn.Module], law: str, others: tuple[str, ...]) -> None:
    report = checked(culprit(), law, *others)
    assert report.failures == [law]


def test_a_fault_on_one_route_leaves_the_other_green() -> None:
    """What an adapter does with states as values must not hide, or be blamed for, what the library does."""
    found = parts(checked(ReordersHAlone(), "REORDER"), "REORDER")
    assert found["REORDER.native"].status is Status.FAIL
    assert found["REORDER.functional"].status is Status.PASS
