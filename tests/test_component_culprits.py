"""Faults of a whole branch in two models of two branches each: caught by their rows, at the branch, and no wolves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from statecheck_reference.models import MODELS
from torch import Tensor, nn
from torch.nn import functional

from statecheck import experiments, wrap
from statecheck.commands.calibrate import cells, matrix
from statecheck.errors import UsageError
from statecheck.faults import ARCHITECTURES, BRANCHED, FAULTS, Fault, planted_in
from statecheck.protocol import StatefulModel, States
from statecheck.store import Result
from statecheck.testing import calibration, check_model, plant
from statecheck.testing.calibration import (
    Row,
    asked_of_reference,
    control,
    examine,
    judged,
    selective_counter,
    trained,
)
from statecheck.testing.component_culprits import closing_gates
from statecheck.testing.oracles import topical_tokens
from statecheck.testing.training import train
from statecheck.testing.two_branch import TwoBranch
from statecheck.verdict import Status, Verdict

OF_BRANCHES = [name for name, fault in FAULTS.items() if fault.branch]
IN_MODELS = [name for name in OF_BRANCHES if name != "learning-rate-0"]
Subject = tuple[StatefulModel, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def hybrid() -> Subject:
    """RWKV-6 beside Mamba-2 in one small block, fitted in some ten seconds to text with topics."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = fitted_hybrid(steps=300)
    model = wrap(module, training_length=64, title="small hybrid", **MODELS["hybrid"].declared({}).for_wrap())
    return model, topical_tokens(32, 4 * 64 + 97)


def fitted_hybrid(*, steps: int, rows: int = 16, length: int = 64) -> nn.Module:
    shape = {"vocabulary": 48, "width": 32, "blocks": 1, "rwkv_heads": 2, "low_rank": 4, "mamba_inner": 64}
    shape |= {"mamba_heads": 4, "mamba_groups": 1, "mamba_state": 8, "feed_forward": 32}
    module = MODELS["hybrid"].build(shape)
    texts = topical_tokens(rows * steps // 4, 4 * length + 1, seed=100).split(rows)  # four windows of each, in order
    optimiser = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps, pct_start=0.1)
    for step in range(steps):
        text, start = texts[step // 4], step % 4 * length
        module.set_states({name: value.detach() for name, value in module.get_states().items()} if start else None)
        logits = module(text[:, start : start + length])
        loss = functional.cross_entropy(logits.transpose(1, 2), text[:, start + 1 : start + length + 1])
        parameters = list(module.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
    module.set_states(None)
    return module


# The matrix -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", planted_in("two-branch"))
def test_a_fault_in_two_branches_is_caught_by_its_rows_and_no_other_row_cries_wolf(fault: str) -> None:
    row = examine("two-branch", fault)
    assert not row.missed, f"{row.missed} did not fail, or did not name the branch; failed: {row.failed}"
    assert not row.wolves, f"{row.wolves} failed without cause"
    assert "ERROR" not in row.statuses.values()


@pytest.mark.parametrize("fault", planted_in("reference"))
def test_a_fault_in_the_hybrid_is_caught_by_its_rows_and_no_other_row_cries_wolf(hybrid: Subject, fault: str) -> None:
    model, inputs = hybrid
    chosen = FAULTS[fault]
    if fault == "learning-rate-0":
        row = judged("hybrid", chosen, model, trained(chosen, model, inputs))
    else:
        planted = plant(model, fault) if fault != "none" else control(model)
        row = judged("hybrid", chosen, planted, check_model(planted, inputs=inputs, only=asked_of_reference(chosen)))
    assert not row.missed, f"{row.missed} did not fail, or did not name the branch; failed: {row.failed}"
    assert not row.wolves, f"{row.wolves} failed without cause"
    assert "ERROR" not in row.statuses.values()


def test_two_branches_pass_what_can_be_judged() -> None:
    model, inputs = calibration.two_branch()
    statuses = {row.id: row.status for row in check_model(model, inputs=inputs)}
    assert statuses.pop("extended") is Status.SKIP
    assert set(statuses.values()) == {Status.PASS}


def test_the_hybrid_fails_nothing(hybrid: Subject) -> None:
    model, inputs = hybrid
    assert check_model(model, inputs=inputs).failures == []


@pytest.mark.parametrize("fault", ["branch-off", "branch-faint", "branch-detached", "gate-stuck", "branch-not-carried"])
def test_the_last_branch_is_named_as_well_as_the_first(fault: str) -> None:
    model, inputs = calibration.two_branch()
    planted = plant(model, fault, component="slow")
    report = check_model(planted, inputs=inputs, only=FAULTS[fault].items)
    row = judged("two-branch", FAULTS[fault], planted, report)
    assert not row.missed
    assert not row.wolves


#: Severities so small that nothing is wrong yet: a check that fires here fires always.
HARMLESS = {
    "branch-off": 1.0,
    "branch-faint": 0.98,
    "branch-detached": 1e-3,
    "branch-duplicated": 1e-3,
    "gate-stuck": 1e-4,
    "branch-not-carried": 1e-3,
    "constant-selection": 1e-3,
    "learning-rate-0": 1.0,
}


@pytest.mark.parametrize(("fault", "severity"), HARMLESS.items())
def test_a_fault_without_effect_fails_nothing(fault: str, severity: float) -> None:
    assert not examine("two-branch", fault, severity=severity).failed


def test_every_fault_of_a_branch_has_a_harmless_severity() -> None:
    assert set(HARMLESS) == set(OF_BRANCHES)


def test_the_fainter_a_branch_the_smaller_its_share_of_the_memory() -> None:
    model, inputs = calibration.two_branch()
    shares = []
    for factor in (1.0, 0.5, 0.2, 0.05, 0.0):
        report = check_model(plant(model, "branch-faint", severity=factor), inputs=inputs, only=["flow"])
        shares.append(report["flow.share"].measurements[0].value)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-1] == 0.0


def test_every_fault_of_a_branch_is_in_the_matrix_of_both_models() -> None:
    assert set(BRANCHED) < set(ARCHITECTURES)
    for architecture in BRANCHED:
        assert planted_in(architecture) == ("none", *OF_BRANCHES)
    for name in OF_BRANCHES:
        assert FAULTS[name].caught_by
        assert {part.partition(".")[0] for part in FAULTS[name].caught_by} <= set(FAULTS[name].items)


def test_the_command_plants_what_an_architecture_can_have() -> None:
    assert cells(["branch-off"], []) == ["two-branch/branch-off", "reference/branch-off"]
    assert len(cells([], ["reference"])) == 1 + len(OF_BRANCHES)
    with pytest.raises(UsageError, match="frozen can't be planted in two-branch"):
        cells(["frozen"], ["two-branch"])


def failing(part: str, reason: str) -> Verdict:
    return Verdict(part.partition(".")[0], Status.FAIL, reason, parts=(Verdict(part, Status.FAIL, reason),))


def test_what_fails_without_a_fault_is_neither_a_catch_nor_a_wolf() -> None:
    fault, planted = FAULTS["branch-faint"], plant(calibration.two_branch()[0], "branch-faint")
    said = [failing(part, "at component fast") for part in (*fault.caught_by, "G3.5.cosine")]
    assert judged("reference", fault, planted, said).wolves == ("G3.5.cosine",)
    row = judged("reference", fault, planted, said, own=("D3.ratio", "G3.5.cosine"))
    assert row.good
    assert judged("reference", fault, planted, said[:1], own=("D3.ratio",)).missed == fault.caught_by[1:]
    assert judged("reference", fault, planted, said, own=fault.caught_by).missed == fault.caught_by
    elsewhere = [failing(part, "at component slow") for part in fault.caught_by]
    assert judged("reference", fault, planted, elsewhere).missed == fault.caught_by


def test_the_matrix_says_what_was_not_run_and_what_fails_as_found() -> None:
    clean = {"fault": "none", "statuses": {"D3": "FAIL", "D2": "PASS"}, "missed": [], "wolves": [], "own": ["D3.ratio"]}
    caught = {"fault": "constant-selection", "statuses": {"D2": "FAIL"}, "missed": [], "wolves": [], "own": []}
    lines = matrix({name: Result(name, said, 1.0, "1") for name, said in (("r/none", clean), ("r/other", caught))})
    assert lines[0].split() == ["D2", "D3"], "in the order of the catalogue"
    assert lines[1].split() == ["r/none", ".", "F", "as", "found,", "fails", "D3.ratio"]
    assert lines[2].split() == ["r/other", "F", "caught"]
    assert lines[-1].startswith("1 of 1 faults caught, 0 of 1 models clean without one; 0 missed, 0 cried wolf")


# What the faults do, by hand --------------------------------------------------------------------------------------


def two_branch() -> tuple[StatefulModel, Tensor, TwoBranch]:
    model, inputs = calibration.two_branch()
    return model, inputs[:3, :20], model.module  # type: ignore[attr-defined]


def by_hand(
    module: TwoBranch,
    x: Tensor,
    *,
    fast: Callable[[Tensor], Tensor] = lambda value: value,
    slow: Callable[[Tensor, Tensor], Tensor] = lambda value, other: value,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    states: States | None = None,
) -> Tensor:
    held = states or {}
    f, _ = module.fast(x, held.get("fast.h"))
    s, _ = module.slow(x, held.get("slow.h"))
    g = gate(module.fusion(x))
    return g * fast(f) + (1 - g) * slow(s, f)


@pytest.mark.parametrize(
    ("fault", "component", "expected"),
    [
        ("branch-off", "slow", partial(by_hand, slow=lambda own, other: 0 * own)),
        ("branch-faint", "fast", partial(by_hand, fast=lambda own: 0.01 * own)),
        ("branch-detached", "slow", by_hand),
        ("branch-duplicated", "slow", partial(by_hand, slow=lambda own, other: other)),
        ("gate-stuck", "slow", partial(by_hand, gate=torch.ones_like)),
        ("gate-stuck", "fast", partial(by_hand, gate=torch.zeros_like)),
        ("branch-not-carried", "slow", by_hand),
    ],
)
@torch.no_grad()
def test_outputs_with_a_fault_are_what_they_are_by_hand(
    fault: str, component: str, expected: Callable[[TwoBranch, Tensor], Tensor]
) -> None:
    model, x, module = two_branch()
    planted = plant(model, fault, component=component)
    torch.testing.assert_close(planted(x), expected(module, x))


@torch.no_grad()
def test_a_branch_that_is_not_carried_starts_each_call_from_zero() -> None:
    model, x, module = two_branch()
    planted = plant(model, "branch-not-carried", component="slow")
    planted(x[:, :12])
    held = planted.get_states()
    assert held["slow.h"].any(), "what a call leaves is there to be seen"
    torch.testing.assert_close(planted(x[:, 12:]), by_hand(module, x[:, 12:], states={"fast.h": held["fast.h"]}))


def test_a_detached_branch_gets_no_gradient_and_changes_no_output() -> None:
    model, x, module = two_branch()
    planted = plant(model, "branch-detached", component="slow")
    slopes = torch.autograd.grad(planted(x).sum(), list(module.parameters()), allow_unused=True)
    named = dict(zip((name for name, _ in module.named_parameters()), slopes, strict=True))
    assert all(slope is None or not slope.any() for name, slope in named.items() if name.startswith("slow"))
    assert all(slope.any() for name, slope in named.items() if not name.startswith("slow"))


@torch.no_grad()
def test_a_constant_selection_keeps_its_mean_whatever_is_read() -> None:
    """What an element keeps of a difference of two states, as D2 measures it: the same for all."""
    model, x, module = two_branch()
    planted = plant(model, "constant-selection")
    own = torch.exp(-torch.exp(module.slow.rate + module.slow.selection(x))).flatten(0, 1)  # (rows, H)
    kept = []
    for t in range(x.shape[1]):
        after = []
        for state in (torch.zeros(3, 24), torch.ones(3, 24)):
            planted.set_states({"fast.h": torch.zeros(3, 24), "slow.h": state})
            planted(x[:, t : t + 1])
            after.append(planted.get_states()["slow.h"])
        kept.append(after[1] - after[0])
    mean = torch.cat(kept)
    assert float((mean - mean[0]).abs().max()) < 1e-5
    assert float(own.std(0).min()) > 1e-3, "the healthy one does depend on what is read"
    assert bool(((own.amin(0) < mean[0]) & (mean[0] < own.amax(0))).all())


@pytest.mark.parametrize(("component", "share"), [("mamba", 1.0), ("rwkv", 0.0)])
def test_stuck_gates_of_the_hybrid_give_all_to_the_other_branch(hybrid: Subject, component: str, share: float) -> None:
    model, _ = hybrid
    assert set(closing_gates(model, component)) == {"blocks.0.fusion"}
    planted = plant(model, "gate-stuck", component=component)
    planted(topical_tokens(2, 9))
    gate = planted.module.blocks[0].gate  # type: ignore[attr-defined]
    torch.testing.assert_close(gate, torch.full((2, 9, 32), share))


@pytest.mark.parametrize("fault", IN_MODELS)
def test_the_healthy_model_is_left_as_it_was(fault: str) -> None:
    model, x, module = two_branch()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        healthy = model(x)
    held = model.get_states()
    planted = plant(model, fault)
    planted(x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, held[name]) for name, value in model.get_states().items())
    assert not any(child._forward_hooks for child in module.modules())
    model.set_states(None)
    with torch.no_grad():
        torch.testing.assert_close(model(x), healthy)


# Training ---------------------------------------------------------------------------------------------------------


def test_a_group_at_learning_rate_zero_does_not_move_in_the_log(tmp_path: Path) -> None:
    """By hand: the first step of Adam moves each parameter by the learning rate, against the sign of its gradient."""
    model, inputs = calibration.two_branch()
    module: TwoBranch = model.module  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    log = tmp_path / "log.jsonl"
    train(model, inputs, log, component="slow", multiplier=0.0, steps=4, rate=1e-3)
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ["validation_loss" in row for row in rows] == [False, True, False, True]
    assert all(row["relative_updates"]["slow"] == 0 for row in rows)
    assert all(row["gradient_norms"]["slow"] > 0 for row in rows)
    fast = torch.cat([value.detach().flatten() for value in module.fast.parameters()])
    expected = 1e-3 * len(fast) ** 0.5 / float(fast.norm())
    assert rows[0]["relative_updates"]["fast"] == pytest.approx(expected, rel=0.02)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# What can't be planted --------------------------------------------------------------------------------------------


def test_a_fault_of_a_branch_needs_several_components() -> None:
    with pytest.raises(UsageError, match="sits in one of several components, and selective counter"):
        plant(selective_counter()[0], "branch-off")


def test_unknown_places_are_refused_with_what_is_known() -> None:
    model, _ = calibration.two_branch()
    with pytest.raises(UsageError, match="the model has fast, slow"):
        plant(model, "branch-off", component="middle")
    with pytest.raises(UsageError, match="not in a component"):
        plant(model, "frozen", component="slow")
    with pytest.raises(UsageError, match="sits in all layers of a component"):
        plant(model, "branch-off", layer=0)
    with pytest.raises(UsageError, match="fast has none"):
        plant(model, "constant-selection", component="fast")
    with pytest.raises(UsageError, match=r"training\.train writes the log"):
        plant(model, "learning-rate-0")


def test_a_model_without_modules_or_gates_is_told_what_is_missing() -> None:
    own = {"fast": "fast.*", "slow": "slow.*"}
    with pytest.raises(UsageError, match=r"say wrap\(..., modules="):
        plant(wrap(TwoBranch(), components=own), "branch-off")
    ungated = TwoBranch()
    ungated.fusion = nn.Identity()
    model = wrap(ungated, components=own, modules={"fast": "fast", "slow": "slow"})
    del ungated.fusion
    ungated.fusion = _constant
    with pytest.raises(UsageError, match="is a gate that can close slow"):
        closing_gates(model, "slow")
    assert set(experiments.ablated_modules(model)) == {"fast", "slow"}


def _constant(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def test_the_registered_reference_is_read_in_short_windows() -> None:
    model, documents = calibration.reference()
    assert len(model.facts.components) > 1
    assert model.facts.training_length == 64
    assert len(documents) == 16
    assert all(len(document) > 4 * 64 for document in documents)


def test_the_registered_reference_is_refused_for_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    single = selective_counter()[0]
    subject = type("Subject", (), {"model": single, "title": "an LSTM", "text": None, "tokenizer": None})()
    monkeypatch.setattr(calibration, "resolve", lambda request: subject)
    calibration.reference.cache_clear()
    with pytest.raises(UsageError, match="has one component: an LSTM"):
        calibration.reference()
    calibration.reference.cache_clear()


def test_what_a_model_fails_or_leaves_open_as_found_proves_nothing() -> None:
    """And what it passes as found must still catch the fault, and must not fail without cause."""
    planted = plant(calibration.two_branch()[0], "branch-faint")
    fault, none = FAULTS["branch-faint"], FAULTS["none"]
    last, others = fault.caught_by[-1], fault.caught_by[:-1]
    assert others

    def row(fault: Fault, failing: Sequence[str], own: Sequence[str] = (), unsettled: Sequence[str] = ()) -> Row:
        parts = tuple(Verdict(id, Status.FAIL, f"at component {planted.component}") for id in failing)
        report = [Verdict("all", Status.FAIL, "", parts=parts)]
        return judged("two-branch", fault, planted, report, own=own, unsettled=unsettled)

    assert row(fault, fault.caught_by).good
    assert row(fault, [last]).missed == others
    assert row(fault, [last], own=others[:1], unsettled=others[1:]).good
    assert row(fault, others, unsettled=others).missed == (last,)
    assert row(fault, fault.caught_by, unsettled=fault.caught_by).missed == fault.caught_by
    assert row(none, ["S2"]).wolves == ("S2",)
    assert row(none, ["S2"], unsettled=["S2"]).good
