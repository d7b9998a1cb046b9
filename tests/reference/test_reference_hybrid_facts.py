"""The hybrid's facts as statecheck finds them, its configuration, its first values."""

import fnmatch
import math

import pytest
import torch
from agreement import both_forms, error
from statecheck_kernels.forms import backend
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from statecheck_reference.models import MODELS
from test_reference_hybrid import SMALL, ids, model_of
from torch import Tensor

import statecheck as sc
from statecheck.protocol import Capability, StateKind


def test_wrap_finds_the_facts(form: str) -> None:
    model = model_of(0)
    components = {"rwkv": "blocks.*.rwkv.*", "mamba": "blocks.*.mamba.*"}
    wrapped = sc.wrap(
        model,
        vocabulary=SMALL.vocabulary,
        components=components,
        parameters=components,
        modules={"rwkv": "blocks.*.rwkv", "mamba": "blocks.*.mamba"},
        selective=True,
        states={"blocks.*.rwkv.shift": {"kind": "conv"}, "blocks.*.mamba.conv": {"kind": "conv"}}
        | {f"blocks.*.{name}": {"head_axis": 1, "recurrence": "diagonal"} for name in ("rwkv.wkv", "mamba.ssm")},
    )
    facts = wrapped.facts
    assert (facts.inputs, facts.vocabulary, facts.output_width, facts.dtype) == ("tokens", 23, 23, "float32")
    assert facts.capabilities == frozenset(Capability) - {
        Capability.MASK,
        Capability.SEGMENTS,
    }  # STATISTICS among them: what it tells is what its states are
    assert facts.backend == backend(form)
    assert facts.states.keys() == model.state_shapes.keys()
    for name, state in facts.states.items():
        recurrent = name.endswith(("wkv", "ssm"))
        assert state.kind is (StateKind.MATRIX if recurrent else StateKind.CONV)
        assert (state.component, state.layer) == (name.split(".")[2], int(name.split(".")[1]))
        assert (state.shape, state.time_axis) == (model.state_shapes[name], None)
        assert (state.head_axis, state.recurrence) == ((1, "diagonal") if recurrent else (None, None))
    assert facts.names(component="rwkv") == ["blocks.0.rwkv.wkv", "blocks.1.rwkv.wkv"]
    assert facts.names(component="mamba") == ["blocks.0.mamba.ssm", "blocks.1.mamba.ssm"]


def test_what_the_package_declares_is_what_is_found() -> None:
    model = model_of(0)
    declaration = MODELS["hybrid"].declared({}).for_wrap()
    facts = sc.wrap(model, vocabulary=SMALL.vocabulary, **declaration).facts
    assert {name: state.kind for name, state in facts.states.items()} == {
        name: StateKind.MATRIX if name.endswith(("wkv", "ssm")) else StateKind.CONV for name in model.state_shapes
    }
    assert {facts.states[name].head_axis for name in facts.names()} == {1}
    for component, patterns in declaration["parameters"].items():
        named = [n for n, _ in model.named_parameters() if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
        assert named == [n for n, _ in model.named_parameters() if f".{component}." in n]


@both_forms
@pytest.mark.parametrize("name", ["rwkv.wkv", "mamba.ssm"])
@pytest.mark.parametrize("block", [0, 1])
def test_the_recurrence_is_diagonal_and_the_signal_is_its_logarithm(block: int, name: str) -> None:
    """Of the next state by this one, every derivative across units is 0, and that of a unit by itself the decay."""
    model = model_of(6, dtype=torch.float64)
    model(ids(1, 4))
    states, full = {n: x.detach() for n, x in model.get_states().items()}, f"blocks.{block}.{name}"

    def after(state: Tensor) -> Tensor:
        model.set_states({**states, full: state})
        model(ids(1, 1, seed=2))
        return model.get_states()[full]

    jacobian = torch.autograd.functional.jacobian(after, states[full])
    kept = model.get_signals()[f"blocks.{block}.{name.partition('.')[0]}.log_decay"][:, 0].exp()
    expected = kept.reshape(*kept.shape, *[1] * (4 - kept.dim())).expand_as(states[full]).flatten().diag()
    assert error(jacobian.reshape(expected.shape), expected) < 1e-12


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_a_config_of_wrong_values_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"HybridConfig.mamba_heads: expected a whole number of at least 1"):
        HybridConfig(mamba_heads=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rwkv_heads": 5}, "HybridConfig.width: expected a multiple of rwkv_heads = 5, found 256"),
        ({"mamba_heads": 5}, "HybridConfig.mamba_inner: expected a multiple of mamba_heads = 5, found 512"),
        ({"mamba_groups": 16}, "HybridConfig.mamba_heads: expected a multiple of mamba_groups = 16, found 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridConfig(**wrong)


def test_a_config_goes_to_a_mapping_and_back() -> None:
    assert HybridConfig.from_mapping(SMALL.to_dict()) == SMALL
    incomplete = {name: size for name, size in SMALL.to_dict().items() if name != "blocks"}
    with pytest.raises(ValueError, match="missing: blocks; unknown: layers"):
        HybridConfig.from_mapping({**incomplete, "layers": 2})


def test_the_sizes_of_the_state_are_those_of_the_states() -> None:
    model = model_of(0)
    model(ids(1, 2))
    own = {name.rpartition(".")[2]: state.numel() for name, state in model.get_states().items()}
    assert own == SMALL.parameters_of_state == {"wkv": 32, "shift": 8, "ssm": 36, "conv": 72}


def test_an_untrained_model_is_undecided_and_its_branches_count_alike() -> None:
    torch.manual_seed(0)
    model = HybridLanguageModel(HybridConfig())
    log_shares = model(torch.arange(64).reshape(2, 32)).log_softmax(-1)
    entropy = -(log_shares.exp() * log_shares).sum(-1).mean()
    assert math.log(4096) - 0.1 < entropy <= math.log(4096)
    gates = [signal for name, signal in model.get_signals().items() if name.endswith("gate")]
    assert all(abs(float(gate.mean()) - 0.5) < 0.05 for gate in gates)
