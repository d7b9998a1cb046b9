"""The five ways to join two branches: their formulas, where they start, what of them is learned."""

import copy
import math
import pickle
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from agreement import TOLERANCE, error, randomised
from cuts import generator, normal
from family import BASE, MAKES, config_of, family_model, fused, sigmoid
from statecheck_reference.fusion import FUSIONS
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.models import MODELS
from statecheck_reference.optimiser import make_optimiser
from statecheck_reference.settings import TrainingSettings
from test_reference_hybrid import ids
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 6
GATED = {"gate": 1, "channel-gate": WIDTH, "sum": 1}  # those that tell a gate, and of how many numbers a token


def branches(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What a block reads, and what either branch says of it, (2, 5, W) each."""
    draw = generator(seed)
    return normal(draw, 2, 5, WIDTH), normal(draw, 2, 5, WIDTH), normal(draw, 2, 5, WIDTH)


def layer_of(fusion: str, blend: float = 0.5, learned: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return FUSIONS[fusion].layer(WIDTH, blend, learned).double()


# ------------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_is_its_formula(fusion: str) -> None:
    layer = randomised(lambda: layer_of(fusion), 3)
    normed, by_rwkv, by_mamba = branches()
    joined, gate = FUSIONS[fusion].join(layer, normed, by_rwkv, by_mamba)
    weights = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    for row in range(2):
        expected = fused(fusion, weights, *(x[row].numpy() for x in (normed, by_rwkv, by_mamba)))
        assert error(joined[row], torch.from_numpy(expected)) < TOLERANCE[torch.float64]
    assert (gate is None) == (fusion not in GATED)
    if gate is not None:
        assert gate.shape == (2, 5, GATED[fusion])
        assert error(joined, gate * by_rwkv + (1 - gate) * by_mamba) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("fusion", "weights", "expected"),
    [
        ("gate", {"weight": [[math.log(3)]], "bias": [-2 * math.log(3)]}, 0.75 * 8 + 0.25 * 4),  # n 3: logit log 3
        ("channel-gate", {"weight": [[math.log(3)]], "bias": [-4 * math.log(3)]}, 0.25 * 8 + 0.75 * 4),
        ("sum", {"weight": [math.log(4)]}, 0.8 * 8 + 0.2 * 4),
        ("residual", {"weight": [-0.5]}, 8 - 0.5 * 4),
        ("project", {"weight": [[0.5, -2]]}, 0.5 * 8 - 2 * 4),
    ],
)
def test_numbers_by_hand(fusion: str, weights: dict[str, list], expected: float) -> None:
    """Width 1: n is 3, RWKV says 8, Mamba 4."""
    layer = FUSIONS[fusion].layer(1, 0.5, True).double()
    layer.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()})
    said = (torch.full((1, 1, 1), x, dtype=torch.float64) for x in (3, 8, 4))
    assert FUSIONS[fusion].join(layer, *said)[0].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("fusion", GATED)
@pytest.mark.parametrize("open_to", ["rwkv", "mamba"])
def test_a_gate_that_is_open_to_one_side_lets_nothing_else_through(fusion: str, open_to: str) -> None:
    """Even a branch of 1e12: sigmoid(60) is 1 in float64, sigmoid(-800) is 0."""
    layer, (normed, by_rwkv, by_mamba) = layer_of(fusion), branches()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.get_parameter("weight" if fusion == "sum" else "bias").fill_(60 if open_to == "rwkv" else -800)
    other = {"rwkv": (by_rwkv, 1e12 * by_mamba), "mamba": (1e12 * by_rwkv, by_mamba)}[open_to]
    joined, _ = FUSIONS[fusion].join(layer, normed, *other)
    assert torch.equal(joined, by_rwkv if open_to == "rwkv" else by_mamba)


# ----------------------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("blend", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_starts_at_the_blend(fusion: str, blend: float) -> None:
    """A gate does where it reads zeros, and elsewhere within what weights of 0.02 can do: sigmoid' is 1/4 at most.

    `residual` keeps RWKV whole: it starts as the same mixture, 1 / blend times as large."""
    layer, (normed, by_rwkv, by_mamba) = layer_of(fusion, blend), branches()
    expected = blend * by_rwkv + (1 - blend) * by_mamba
    if fusion == "residual":
        expected = expected / blend
    gated = fusion in ("gate", "channel-gate")
    joined, _ = FUSIONS[fusion].join(layer, torch.zeros_like(normed) if gated else normed, by_rwkv, by_mamba)
    assert error(joined, expected) < 1e-6  # the first values are float32's
    if gated:
        _, gate = FUSIONS[fusion].join(layer, normed, by_rwkv, by_mamba)
        assert gate is not None
        apart = (gate - blend).abs().detach().max()
        assert 0 < float(apart) < 0.25 * 4 * 0.02 * float(normed.norm(dim=-1).max())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_first_values_have_the_shapes_of_the_formulas(fusion: str) -> None:
    shapes = {
        "gate": {"weight": (1, WIDTH), "bias": (1,)},
        "channel-gate": {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)},
        "sum": {"weight": (1,)},
        "residual": {"weight": (WIDTH,)},
        "project": {"weight": (WIDTH, 2 * WIDTH)},
    }
    layer = layer_of(fusion)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == shapes[fusion]
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("fusion", ["gate", "channel-gate"])
def test_the_weights_of_a_gate_start_near_a_fiftieth(fusion: str) -> None:
    torch.manual_seed(0)
    weight = FUSIONS[fusion].layer(500, 0.5, True).get_parameter("weight").detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


# ------------------------------------------------------------------------------------------------- learned, and fixed


def optimiser_of(model: HybridLanguageModel, shape: dict) -> torch.optim.Optimizer:
    return make_optimiser(model, TrainingSettings("hybrid", shape, weight_decay=0.5, peak_rate=0.01))


def one_step(model: HybridLanguageModel, shape: dict) -> dict[str, Tensor]:
    """The gradient of each parameter, in a step of the optimiser that a training run has."""
    optimiser = optimiser_of(model, shape)
    functional.cross_entropy(model(ids(2, 9)).flatten(0, 1), ids(2, 9, 2).flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    optimiser.step()
    return gradients


@pytest.mark.parametrize("learned", [True, False])
def test_a_fixed_blend_is_not_learned_and_another_is(learned: bool) -> None:
    """Also under weight decay; all that is not the blend learns in both."""
    torch.manual_seed(0)
    shape = replace(BASE, fusion="sum", blend=0.7, blend_learned=learned).to_dict()
    model = MODELS["hybrid"].build(shape)
    with torch.no_grad():  # maps that start at zero keep the gradient from others
        for name, parameter in model.named_parameters():
            parameter.add_(0.0 if "fusion" in name else 0.1 * torch.randn_like(parameter))
    held = {id(parameter) for group in optimiser_of(model, shape).param_groups for parameter in group["params"]}
    before = copy.deepcopy(model.state_dict())
    gradients = one_step(model, shape)
    assert sum(name.endswith("fusion.weight") for name in gradients) == BASE.blocks
    for name, parameter in model.named_parameters():
        learns = learned or not name.endswith("fusion.weight")
        assert (gradients[name] is not None) == learns == parameter.requires_grad == (id(parameter) in held), name
        assert torch.equal(parameter, before[name]) != learns, name
    model.set_states(None)
    model(ids(2, 5))
    gates = [x for name, x in model.get_signals().items() if name.endswith("gate")]
    assert all(bool(torch.isclose(gate, torch.tensor(0.7)).all()) != learned for gate in gates)


def test_a_fixed_blend_stays_fixed_in_a_copy_and_in_what_is_loaded() -> None:
    model = family_model("fixed-sum")
    again = HybridLanguageModel(model.config)
    again.load_state_dict(model.state_dict())
    for one in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [n for n, p in one.named_parameters() if not p.requires_grad] == [
            f"blocks.{n}.fusion.weight" for n in range(BASE.blocks)
        ]


# ------------------------------------------------------------------------------------------------------ in the model


@pytest.mark.parametrize("make", MAKES)
def test_the_signals_are_those_that_the_make_declares(make: str) -> None:
    """Gates in 0..1 where two branches are joined by one, log decays below 0 of every recurrent mixer."""
    model = family_model(make)
    logits = model(ids(2, 5))
    signals, config = model.get_signals(), config_of(make)
    kinds = MODELS["hybrid"].declared(config.to_dict()).signals
    named = {f"blocks.{n}.{m}.log_decay" for n, mixers in enumerate(config.mixers) for m in mixers}
    gated = config.layout == "parallel" and config.fusion in GATED
    named |= {f"blocks.{n}.gate" for n in range(config.blocks) if gated}
    assert signals.keys() == named
    assert all(any(fnmatch(name, pattern) for name in signals) for pattern in kinds)
    for name, signal in signals.items():
        kind = next(kind for pattern, kind in kinds.items() if fnmatch(name, pattern))
        assert signal.shape[:2] == logits.shape[:2]
        assert bool(((signal > 0) & (signal < 1)).all() if kind == "gate" else (signal < 0).all()), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_model_of_any_fusion_can_be_pickled(fusion: str) -> None:
    model = HybridLanguageModel(replace(BASE, fusion=fusion))
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(ids(2, 4)), model(ids(2, 4)))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("branch_norm", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_fusion_runs_and_learns_in_bfloat16(fusion: str, branch_norm: bool) -> None:
    """As a run with `precision="bfloat16"` does: branches in 8 bits, their weights in float32."""
    torch.manual_seed(0)
    model = HybridLanguageModel(replace(BASE, fusion=fusion, branch_norm=branch_norm))
    exact = model(ids(2, 9)).detach()
    model.set_states(None)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids(2, 9))
    assert error(logits, exact) < 0.1
    functional.cross_entropy(logits.flatten(0, 1).float(), ids(2, 9, 2).flatten()).backward()
    for name, parameter in model.named_parameters():
        if "fusion" in name:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), name


def test_the_share_that_is_told_is_the_one_that_is_used() -> None:
    model = family_model("branch-norm")
    model(ids(2, 4))
    for n, block in enumerate(model.blocks):
        share = sigmoid(block.fusion.weight.detach().numpy())
        gate = model.get_signals()[f"blocks.{n}.gate"]
        assert gate.shape == (2, 4, 1)
        assert np.allclose(gate.numpy(), share, rtol=1e-14)
