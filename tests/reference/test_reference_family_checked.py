"""Every make of hybrid through the public door: its facts, the checks that a small one passes, attention among them."""

import fnmatch
from typing import Any

import pytest
import torch
from agreement import error
from cuts import generator
from family import MAKES, config_of, family_model
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.models import MODELS
from test_reference_hybrid import ids
from torch import Tensor

import statecheck as sc
from statecheck.experiments import ablated_modules
from statecheck.protocol import Capability, StateKind
from statecheck.report.record import Report

TRAINED, VOCABULARY = 8, 23
KINDS = {
    "wkv": StateKind.MATRIX,
    "ssm": StateKind.MATRIX,
    "shift": StateKind.CONV,
    "conv": StateKind.CONV,
    "keys": StateKind.KV,
    "values": StateKind.KV,
    "filled": StateKind.MASK,
}
FUNDAMENTAL = ("S0", "S1", "S2", "S3", "D2")
OTHERS = ("G3.5", "D1", "D4", "health", "gradient-ratio")
COMPARING = ("S4", "D3", "coupling", "flow")


def wrapped(model: HybridLanguageModel, **options: Any) -> sc.StatefulModel:
    """As the package declares it."""
    declared = MODELS["hybrid"].declared(model.config.to_dict()).for_wrap()
    return sc.wrap(model, vocabulary=VOCABULARY, **declared, **options)


# ----------------------------------------------------------------------------------------------------------- the facts


@pytest.mark.parametrize("make", MAKES)
def test_wrap_finds_what_the_make_declares(make: str) -> None:
    config, model = config_of(make), family_model(make)
    wrap = wrapped(model)
    facts = wrap.facts
    assert facts.capabilities == frozenset(Capability) - {Capability.MASK, Capability.SEGMENTS}
    assert tuple(facts.components) == config.components
    assert {name: own.selective for name, own in facts.components.items()} == {
        name: None if name == "attention" else True for name in config.components
    }
    assert {name: state.shape for name, state in facts.states.items()} == config.state_shapes
    for name, state in facts.states.items():
        _, layer, component, kind = name.split(".")
        heads = {"wkv": 1, "ssm": 1 if config.mamba_version == 2 else None, "keys": 2, "values": 2}
        assert (state.kind, state.component, state.layer) == (KINDS[kind], component, int(layer)), name
        assert (state.head_axis, state.time_axis) == (heads.get(kind), None), name
        assert state.recurrence == ("diagonal" if kind in ("wkv", "ssm") else None), name
    assert {name.split(".")[2] for name in facts.names()} == set(config.components) - {"attention"}
    for component, own in facts.components.items():
        named = [n for n, _ in model.named_parameters() if any(fnmatch.fnmatch(n, p) for p in own.parameters)]
        assert named == [n for n, _ in model.named_parameters() if n.split(".")[2:3] == [component]]
        stands = [n for n in range(config.blocks) if f".{component}." in "".join(facts.names(layer=n, recurrent=False))]
        assert ablated_modules(wrap)[component] == tuple(f"blocks.{n}.{component}" for n in stands)


@pytest.mark.parametrize(
    ("make", "block", "name"),
    [
        ("mamba-1", 1, "mamba.ssm"),
        ("mamba-1 in turn", 1, "mamba.ssm"),
        ("interleaved", 3, "mamba.ssm"),
        ("pure-rwkv", 1, "rwkv.wkv"),
        ("sequential", 0, "rwkv.wkv"),
    ],
)
def test_the_recurrence_is_diagonal_and_the_signal_is_its_logarithm(make: str, block: int, name: str) -> None:
    """Of the next state by this one, every derivative across units is 0, and that of a unit by itself the decay."""
    model, full = family_model(make, 6), f"blocks.{block}.{name}"
    model(ids(1, 4))
    states = {n: x.detach() for n, x in model.get_states().items()}

    def after(state: Tensor) -> Tensor:
        model.set_states({**states, full: state})
        model(ids(1, 1, seed=2))
        return model.get_states()[full]

    jacobian = torch.autograd.functional.jacobian(after, states[full])
    kept = model.get_signals()[f"blocks.{block}.{name.partition('.')[0]}.log_decay"][:, 0].exp()
    expected = kept.reshape(*kept.shape, *[1] * (states[full].dim() - kept.dim())).expand_as(states[full])
    assert error(jacobian.reshape(expected.numel(), -1), expected.flatten().diag()) < 1e-12


# ---------------------------------------------------------------------------------------------------------- the checks


def sequences(rows: int, time: int, seed: int = 0) -> Tensor:
    """Ids that mostly go on as they did three tokens before, plus one: a little memory helps."""
    draw = generator(seed)
    found = torch.randint(0, VOCABULARY, (rows, time), generator=draw)
    regular = torch.rand(rows, time, generator=draw) < 0.85
    for t in range(3, time):
        found[:, t] = torch.where(regular[:, t], (found[:, t - 3] + 1) % VOCABULARY, found[:, t])
    return found


def report_of(model: HybridLanguageModel, *rows: str) -> Report:
    documents = sequences(24, 4 * TRAINED + 1)
    return sc.check_model(wrapped(model.float(), training_length=TRAINED), inputs=documents, only=rows)


@pytest.mark.parametrize(
    "make", ["interleaved", "sequential", "pure-mamba", "mamba-1 in turn", "fixed-sum", "no-feeding"]
)
def test_a_small_model_of_each_layout_passes_the_fundamentals(make: str) -> None:
    """Untrained, of random weights: as it is made, an RWKV-6 does not select yet, and D2 says so."""
    report = report_of(family_model(make), *FUNDAMENTAL)
    assert {row.id: row.status for row in report} == dict.fromkeys(FUNDAMENTAL, sc.Status.PASS)


@pytest.mark.parametrize(("make", "rows"), [("mamba-1", (*FUNDAMENTAL, *OTHERS, *COMPARING)), ("pure-rwkv", COMPARING)])
def test_attention_is_judged_by_what_it_does_and_not_by_the_size_of_its_cache(make: str, rows: tuple[str, ...]) -> None:
    """Every row that compares components has it; none of those that measure recurrent states does."""
    report = report_of(family_model(make), *rows)
    assert {row.id for row in report} == set(rows)
    judged = {sc.Status.PASS, sc.Status.WARN, sc.Status.INCONCLUSIVE, sc.Status.FAIL}  # what an untrained one is worth
    assert all(part.status in judged for row in report for part in row.parts), report.failures
    everyone, measured = set(config_of(make).components), {}
    for row in report:
        found = (*row.shown, *(one for part in row.parts for one in part.measurements))
        measured[row.id] = {one.where.component for one in found} - {None}
        assert row.status is sc.Status.PASS or row.id not in FUNDAMENTAL, row.reason
    for id in measured.keys() - {"S0", "S3", "D4", "gradient-ratio"}:  # of these not all tell of components
        assert measured[id] == (everyone if id in COMPARING else everyone - {"attention"}), id


def test_attention_whose_answer_is_dropped_is_a_passenger() -> None:
    """A scale of zero on what it adds: its effects are 0 to the last bit, and every row that compares says so."""
    model = family_model("attention")
    with torch.no_grad():
        model.blocks[0].gamma["attention"].zero_()
    report = report_of(model, *COMPARING)
    for measured in ([one for part in report["S4"].parts for one in part.measurements], report["D3"].shown):
        effects = {one.where.component: one.value for one in measured}
        assert effects["attention"] == 0
        assert 0 not in (effects["rwkv"], effects["mamba"])
    assert "attention: the gradient of the loss by its state is exactly 0" in report["coupling"].reason
    worth = [one for one in report["flow"].shown if one.where.component == "attention"]
    assert {one.name for one in worth} >= {"Shapley value", "last-in value", "share of the memory"}
    assert {one.value for one in worth} == {0.0}
    assert {report[id].status for id in ("S4", "D3", "coupling", "flow")} <= {sc.Status.FAIL, sc.Status.INCONCLUSIVE}


def test_a_cache_that_another_row_has_written_is_caught() -> None:
    """After every call each row has the keys of the one before it: S2 names the state."""

    class Leaking(HybridLanguageModel):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs)
            self._states["blocks.0.attention.keys"] = self._states["blocks.0.attention.keys"].roll(1, 0)
            return logits

    model = Leaking(config_of("attention"))
    model.load_state_dict(family_model("attention").state_dict())
    row = report_of(model, "S2")["S2"]
    assert row.status is sc.Status.FAIL
    assert "blocks.0.attention.keys" in row.reason
