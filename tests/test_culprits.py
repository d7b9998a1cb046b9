"""Every fault of a state in models of one component: its row fails and names the layer, no other row cries wolf."""

from __future__ import annotations

import pytest
import torch

from statecheck.errors import UsageError
from statecheck.faults import ARCHITECTURES, FAULTS, SINGLE, planted_in
from statecheck.testing import check_model, plant
from statecheck.testing.calibration import HEALTHY, examine, judged
from statecheck.verdict import Status


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_table_and_the_models_agree() -> None:
    assert tuple(HEALTHY) == ARCHITECTURES
    assert all(fault.caught_by for name, fault in FAULTS.items() if name != "none")


@pytest.mark.parametrize(("architecture", "fault"), [(a, fault) for a in SINGLE for fault in planted_in(a)])
def test_a_planted_fault_is_caught_and_no_other_row_cries_wolf(architecture: str, fault: str) -> None:
    row = examine(architecture, fault)
    assert not row.missed, f"{row.missed} did not fail, or did not name the layer; failed: {row.failed}"
    assert not row.wolves, f"{row.wolves} failed without cause"
    assert "ERROR" not in row.statuses.values()


@pytest.mark.parametrize("architecture", SINGLE)
def test_healthy_models_fail_nothing_and_pass_what_can_be_judged(architecture: str) -> None:
    model, inputs = HEALTHY[architecture]()
    report = check_model(model, inputs=inputs)
    statuses = {row.id: row.status for row in report}
    assert statuses.pop("extended") is Status.SKIP
    single = {"S4", "D3", "coupling", "flow", "gradient-ratio"}
    assert all(statuses.pop(id) is Status.NOT_APPLICABLE for id in single)
    assert set(statuses.values()) == {Status.PASS}


@pytest.mark.parametrize("architecture", SINGLE)
def test_the_control_goes_the_way_of_the_faults_and_changes_no_number(architecture: str) -> None:
    """Token by token through get and set, against chunks: the same to rounding, in every row and place."""
    model, inputs = HEALTHY[architecture]()
    plain, control = (check_model(m, inputs=inputs) for m in (model, plant(model, "none")))
    for one, other in zip(plain, control, strict=True):
        assert one.status is other.status
        for a, b in zip(one.measurements, other.measurements, strict=True):
            assert (a.name, a.where) == (b.name, b.where)
            assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-3, abs=1e-6)


#: Severities so small that nothing is wrong yet: a check that fires here fires always.
HARMLESS = {
    "retention-above-1": 1e-5,
    "channel-explodes": 0.5,
    "frozen": 1e-3,
    "stuck": 1e-3,
    "forgets-at-once": 1e-3,
    "saturated": 0.05,
    "dead": 0.05,
    "shared-across-batch": 1e-8,
    "nan-at-step-k": 10**6,
    "reset-every-k": 10**6,
    "non-deterministic": 1e-9,
}


@pytest.mark.parametrize(("fault", "severity"), HARMLESS.items())
@pytest.mark.parametrize("architecture", SINGLE)
def test_a_fault_without_effect_fails_nothing(architecture: str, fault: str, severity: float) -> None:
    row = examine(architecture, fault, severity=severity)
    assert not row.failed


def test_every_graded_fault_has_a_harmless_severity() -> None:
    graded = {name for name in planted_in(SINGLE[0]) if FAULTS[name].meaning not in ("-", "nothing")}
    assert set(HARMLESS) == graded


@pytest.mark.parametrize("fault", ["dead", "frozen", "nan-at-step-k"])
@pytest.mark.parametrize("architecture", SINGLE)
def test_the_first_layer_is_named_as_well_as_the_last(architecture: str, fault: str) -> None:
    model, inputs = HEALTHY[architecture]()
    planted = plant(model, fault, layer=0)
    row = judged(architecture, FAULTS[fault], planted, check_model(planted, inputs=inputs))
    assert not row.missed


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(UsageError, match="known are selective-counter"):
        examine("nonsense", "dead")
    with pytest.raises(UsageError, match="known are none, retention-above-1"):
        examine("gru-filter", "nonsense")
