"""The one door of all checks: what each kind of outcome becomes, and that the model is left as it was found."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from statecheck.adapters import wrap
from statecheck.catalogue import ItemEntry
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised, StatecheckError, UsageError
from statecheck.guard import borrowed
from statecheck.probes.contract import Evidence, gather
from statecheck.runner import run_item
from statecheck.suite import SuiteItem, load_suite
from statecheck.verdict import Bound, Measurement, Outcome, Status

torch.set_num_threads(1)


@pytest.fixture
def evidence() -> Evidence:
    torch.manual_seed(0)
    return gather(wrap(nn.GRU(3, 4, batch_first=True), training_length=8), None)


def module_of(evidence: Evidence) -> nn.Module:
    module = evidence.model.module  # type: ignore[attr-defined]
    assert isinstance(module, nn.Module)
    return module


def door(function: Callable[..., object], evidence: Evidence, **options: object) -> Outcome:
    """The outcome of a check given as a function."""
    return run_item(ItemEntry("X1", "", "a test", function=function), SuiteItem("X1", True, options, ()), evidence)


def raising(error: BaseException) -> Callable[[Evidence], Outcome]:
    def check(evidence: Evidence) -> Outcome:
        raise error

    return check


def model_without_memory(evidence: Evidence) -> Outcome:
    try:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    except RuntimeError as error:
        raise ModelRaised("the model raised RuntimeError") from error


@pytest.mark.parametrize(
    ("check", "status", "reason"),
    [
        (raising(CapabilityMissing("no reset")), Status.SKIP, "no reset"),
        (raising(ModelRaised("the model raised\n ValueError")), Status.FAIL, "the model raised ValueError"),
        (raising(ContractError("names changed")), Status.FAIL, "names changed"),
        (raising(MemoryError()), Status.ERROR, "MemoryError"),
        (model_without_memory, Status.ERROR, "not enough memory: DefaultCPUAllocator"),
        (raising(StatecheckError("no good")), Status.ERROR, "StatecheckError: no good"),
        (raising(ZeroDivisionError("by \x1b zero")), Status.ERROR, "ZeroDivisionError: by zero"),
        (raising(SystemExit(0)), Status.ERROR, "the model exited the process (sys.exit(0))"),
        (lambda evidence: None, Status.ERROR, "returned NoneType: a check returns a statecheck.Outcome"),
    ],
)
def test_every_end_is_an_outcome(check: Callable[..., object], status: Status, reason: str, evidence: Evidence) -> None:
    (absence,) = door(check, evidence).absences
    assert (absence.name, absence.status) == ("X1", status)
    assert reason in absence.reason


def test_an_error_names_the_line_of_statecheck(evidence: Evidence) -> None:
    (absence,) = door(lambda evidence: Bound.parse("x"), evidence).absences
    assert "(statecheck/verdict.py:" in absence.reason


def test_keyboard_interrupt_passes_through(evidence: Evidence) -> None:
    with pytest.raises(KeyboardInterrupt):
        door(raising(KeyboardInterrupt()), evidence)


def test_an_unknown_option_is_a_usage_error(evidence: Evidence) -> None:
    def check(evidence: Evidence, *, lag: int = 3) -> Outcome:
        return Outcome((Measurement.exact("X1.lag", lag),))

    assert door(check, evidence, lag=5).measurements[0].value == 5
    with pytest.raises(UsageError, match="item X1 has no option 'lagg'; did you mean lag"):
        door(check, evidence, lagg=5)


def test_checks_run_without_gradients_in_evaluation_mode(evidence: Evidence) -> None:
    module = module_of(evidence).train()
    seen = []

    def check(evidence: Evidence) -> Outcome:
        seen.append((module.training, torch.is_grad_enabled()))
        return Outcome()

    door(check, evidence)
    assert seen == [(False, False)]
    assert module.training
    assert torch.is_grad_enabled()


def _add_to_a_weight(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3


def _write_behind_the_version_counter(module: nn.Module) -> None:
    next(module.parameters()).data.view(-1)[0] += 1e-3


def _leave_a_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, outputs: None)


def _leave_a_gradient(module: nn.Module) -> None:
    parameter = next(module.parameters())
    parameter.grad = torch.zeros_like(parameter)


def _freeze(module: nn.Module) -> None:
    next(module.parameters()).requires_grad_(False)


def _change_the_dtype(module: nn.Module) -> None:
    module.double()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_add_to_a_weight, "parameter rnn.weight_ih_l0"),
        (_write_behind_the_version_counter, "parameter rnn.weight_ih_l0"),
        (_leave_a_hook, "hooks of the model"),
        (_leave_a_gradient, "parameter rnn.weight_ih_l0"),
        (_freeze, "parameter rnn.weight_ih_l0"),
        (_change_the_dtype, "parameter rnn.weight_ih_l0"),
    ],
)
def test_a_check_that_changes_the_model_is_an_error(
    change: Callable[[nn.Module], None], named: str, evidence: Evidence
) -> None:
    def check(evidence: Evidence) -> Outcome:
        change(module_of(evidence))
        return Outcome((Measurement.exact("X1.value", 1.0),))

    (absence,) = door(check, evidence).absences
    assert absence.status is Status.ERROR
    assert named in absence.reason


def test_a_weight_that_is_put_back_is_no_change(evidence: Evidence) -> None:
    def check(evidence: Evidence) -> Outcome:
        parameter = next(module_of(evidence).parameters())
        kept = parameter.detach().clone()
        parameter.add_(1.0)
        parameter.copy_(kept)
        return Outcome()

    assert door(check, evidence) == Outcome()


def test_buffers_and_modes_are_put_back() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    module[0].register_buffer("state", None)
    module[1].eval()
    with borrowed(module, seed=0) as loan:
        module.train()
        module(torch.ones(2, 3))
        module[0].state = torch.ones(2)
    assert loan.changed == []
    assert [child.training for child in module] == [True, False]
    assert module[0].running_mean.abs().sum() == 0
    assert module[0].state is None


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_global_generators_are_left_alone_and_start_from_the_seed(evidence: Evidence) -> None:
    drawn = []

    def check(evidence: Evidence) -> Outcome:
        drawn.append(_draw())
        return Outcome()

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = _draw()
    seed()
    door(check, evidence)
    assert _draw() == expected
    door(check, evidence)
    assert drawn[0] == drawn[1] != expected


@pytest.mark.parametrize("id", [item.id for item in load_suite("phase39").items])
def test_no_item_changes_the_model_or_the_generators(id: str, evidence: Evidence) -> None:
    """The rule that holds for every built-in check: run for real, nothing is reported as changed."""
    from statecheck.catalogue import ITEMS

    item = next(item for item in load_suite("phase39").items if item.id == id)
    module = module_of(evidence).train()
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    outcome = run_item(ITEMS[id], item, evidence)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert module.training
    assert not [absence for absence in outcome.absences if absence.status is Status.ERROR], outcome.absences
