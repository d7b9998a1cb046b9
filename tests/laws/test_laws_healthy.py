"""Models that are right pass every law that is for them; a run is the same under a seed and leaves all as it was."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from law_culprits import StaleWindowInASingleStep
from law_models import Counting, Looking, Packed, Remembering
from torch import nn

import statecheck as sc
from statecheck.catalogue import ITEMS
from statecheck.histories.operations import Claim
from statecheck.laws import contract
from statecheck.probes.contract import Effort, Evidence, gather, lent
from statecheck.report.record import Report
from statecheck.suite import load_suite
from statecheck.verdict import Outcome, Status

SUITE = load_suite("conformance")
LAWS = tuple(item.id for item in SUITE.items if item.id != "MACHINE")  # which has tests of its own
RELATIVE = {"GRAD.slope", "GRAD.missing", "NUM.long", "NUM.extreme", "NUM.low", "SIZE.undeclared", "HONEST.necessary"}


def wrapped(module: nn.Module) -> sc.StatefulModel:
    return sc.wrap(module, width=module.width)


HEALTHY = [
    (lambda: Remembering(), {"CROP", "PACK"}),
    (lambda: Packed(), {"PADL", "PADR", "CROP"}),
    (lambda: Looking(), {"PADL", "PADR", "PACK"}),
    (lambda: Counting(), {"PACK", "CROP", "GRAD"}),
    (lambda: nn.LSTM(3, 6, num_layers=2, batch_first=True), {"PADL", "PADR", "PACK", "CROP"}),
]


@pytest.mark.parametrize(("make", "absent"), HEALTHY, ids=("remembering", "packed", "looking", "counting", "lstm"))
def test_a_healthy_model_passes_every_law_that_is_for_it(make: object, absent: set[str]) -> None:
    module = make()  # type: ignore[operator]
    model = sc.wrap(module) if isinstance(module, nn.LSTM) else wrapped(module)
    report = sc.check_model(model, suite="conformance", only=LAWS)
    assert {law for law in LAWS if report[law].status in (Status.SKIP, Status.NOT_APPLICABLE)} == absent
    assert {law for law in LAWS if report[law].status is Status.PASS} == set(LAWS) - absent


def test_every_law_of_the_suite_has_one_file() -> None:
    folder = Path(contract.__file__).parent
    assert {law.lower() for law in LAWS} == {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "contract",
        "machine",
    }
    assert len(LAWS) == 19


def test_the_suite_fails_what_a_law_takes_for_worth_shrinking() -> None:
    bounds = [c for item in SUITE.items for c in item.criteria if c.measurement not in RELATIVE]
    assert len(bounds) > 20
    for criterion in bounds:
        gradients = criterion.measurement.startswith("GRAD.")
        worth = contract.WORTH_OF_GRADIENTS if gradients else contract.WORTH
        assert [str(bound) for bound in criterion.fails] == [f"> {worth:g}"], criterion.measurement
        assert [str(bound) for bound in criterion.passes] == [f"< {worth:g}"], criterion.measurement


def plain(report: Report) -> list[object]:
    """The items without their times."""
    return [verdict.to_json() for verdict in report.verdicts]


def test_a_run_is_the_same_under_a_seed() -> None:
    laws = ("STEP", "BATCH", "RESET", "GRAD", "NUM", "HONEST")
    first, second = (sc.check_model(wrapped(Remembering()), suite="conformance", only=laws, seed=5) for _ in range(2))
    other = sc.check_model(wrapped(Remembering()), suite="conformance", only=laws, seed=6)
    assert plain(first) == plain(second)
    assert plain(first) != plain(other)


def test_a_law_does_not_depend_on_those_before_it() -> None:
    alone = sc.check_model(wrapped(Remembering()), suite="conformance", only=["HONEST"])
    after = sc.check_model(wrapped(Remembering()), suite="conformance", only=["STEP", "LOAD", "HONEST"])
    assert alone["HONEST"].to_json() == after["HONEST"].to_json()


def test_the_global_generators_and_the_model_are_left_as_they_were() -> None:
    module = Remembering().train()
    held = module(torch.randn(2, 4, 3)).detach()
    assert module.memory is not None
    memory = module.memory.h.clone()
    parameters = {name: value.clone() for name, value in module.named_parameters()}
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    sc.check_model(wrapped(module), suite="conformance", only=[law for law in LAWS if law not in ("PACK", "CROP")])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert torch.get_default_dtype() is torch.float32
    assert all(torch.equal(value, parameters[name]) for name, value in module.named_parameters())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training
    assert torch.equal(module.memory.h, memory)
    assert torch.isfinite(held).all()


def evidence(module: nn.Module, effort: Effort) -> Evidence:
    return replace(gather(wrapped(module), None), effort=effort)


def outcome(found: Evidence, law: str) -> Outcome:
    with lent(found.model):
        return ITEMS[law].load()(found)


@pytest.mark.parametrize("law", ["STEP", "CHUNK", "PREFIX", "BATCH", "RESET", "FORK", "ALIAS", "REORDER", "DETERM"])
def test_what_was_not_run_to_its_end_never_passes(law: str) -> None:
    brought = outcome(evidence(Remembering(), Effort(seconds=0.0)), law)
    assert not brought.measurements
    ended = [absence for absence in brought.absences if absence.status is Status.SKIP]
    assert ended
    assert all(re.match(r"not run to its end: time was up after \d+ examples", absence.reason) for absence in ended)


def test_a_broken_claim_that_was_found_in_time_fails_although_time_ran_out() -> None:
    brought = outcome(evidence(StaleWindowInASingleStep(), Effort(seconds=0.05)), "STEP")
    assert {m.name for m in brought.measurements} <= {"STEP.native", "STEP.functional"}
    assert brought.measurements
    assert all(m.value > contract.WORTH for m in brought.measurements)


def test_more_examples_are_measured_where_they_are_asked_for() -> None:
    few, many = (outcome(evidence(Counting(), Effort(examples=n)), "STEP").measurements[0].n for n in (5, 40))
    assert 1 <= few <= 5 < many <= 40


def test_the_simplest_case_that_is_printed_can_be_replayed() -> None:
    printed = outcome(evidence(StaleWindowInASingleStep(), Effort()), "STEP").measurements[0].note
    case = printed.removeprefix("simplest: ").partition(" gives ")[0]
    assert str(Claim.parse(case)) == case
    again = outcome(evidence(StaleWindowInASingleStep(), Effort(case=case)), "STEP").measurements[0]
    assert again.note == printed
    assert again.n == 1
    right = outcome(evidence(Remembering(), Effort(case=case)), "STEP").measurements[0]
    assert (right.value < 10, right.n) == (True, 1)


def test_what_a_law_would_have_seen_is_measured() -> None:
    """Without its state, a step of a counter reads 1: n is at least 2, so that half of it or more is lost."""
    shown = {m.name: m for m in outcome(evidence(Counting(), Effort()), "STEP").shown}
    assert shown["STEP.native.seen"].value * 16 * 2.0**-23 >= 0.5
    assert shown["noise floor"].value == 16 * 2.0**-23


class Amnesiac(Remembering):
    """It carries a state that moves its outputs by next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.outward.mul_(1e-7)


def test_a_law_that_could_see_nothing_is_inconclusive() -> None:
    report = sc.check_model(wrapped(Amnesiac()), suite="conformance", only=["STEP"])
    assert report["STEP"].status is Status.INCONCLUSIVE
    assert "this law sees nothing here" in report["STEP"].reason
