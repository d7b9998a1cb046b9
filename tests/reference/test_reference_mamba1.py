"""Mamba: its layer is the published one in every form, its states go over any cut, its gradients are right.

The recurrence itself is held against the paper in tests/kernels, the layer against transformers' beside this.
"""

import paper
import pytest
import torch
from agreement import FIXED, TOLERANCE, both_forms, error, off_over_cuts, randomised
from cuts import KINDS, SEEDS, generator, log_decays, normal, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from observed_models import brute_force
from statecheck_kernels import Observe
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.mamba2 import CONVOLUTION
from torch import Tensor

SIZES = [(1, 1, 1), (3, 1, 2), (12, 4, 3), (19, 5, 2)]  # inner width, units a channel, rank
A_SIZE = (12, 4, 3)


def layer_of(seed: int, sizes: tuple[int, int, int] = A_SIZE, kind: str = "mild") -> Mamba1Mixer:
    layer = randomised(lambda: Mamba1Mixer(6, *sizes).double(), seed)
    with torch.no_grad():
        if kind == "by channel":  # steps of about 1, log decays near -100, -1e-4, -1e4 ... unit by unit
            layer.A_log.copy_((-log_decays(generator(seed), "extreme", *layer.A_log.shape)).log())
            layer.dt_proj.bias.fill_(0.5)
        if kind == "extreme":  # steps from nothing to a dozen, from token to token
            layer.dt_proj.weight.mul_(16)
    return layer


def start(seed: int, batch: int, layer: Mamba1Mixer) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    conv = normal(draw, batch, layer.inner, CONVOLUTION - 1)
    return conv, normal(draw, batch, layer.inner, layer.state_size)


def off(layer: Mamba1Mixer, seed: int, lengths: list[int]) -> float:
    """How far pieces of these lengths are off, from a warm state."""
    inputs = normal(generator(seed), 2, sum(lengths) + 1, 6)
    return off_over_cuts(layer, start(seed + 1, 2, layer), inputs, lengths)


@both_forms
@settings(deadline=None, max_examples=25)
@given(SEEDS, pieces(shortest=1), st.sampled_from(KINDS), st.sampled_from(SIZES))
def test_the_layer_carries_its_states_over_any_cut(
    seed: int, lengths: list[int], kind: str, sizes: tuple[int, int, int]
) -> None:
    assert off(layer_of(seed, sizes, kind), seed, lengths) < TOLERANCE[torch.float64] / 2


@both_forms
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", FIXED)
def test_the_layer_carries_its_states_in_float32(lengths: list[int], kind: str) -> None:
    assert off(layer_of(len(lengths), kind=kind).float(), 1, lengths) < TOLERANCE[torch.float32] / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("time", [1, 2, 5, 66])
def test_the_layer_is_the_published_one(time: int, sizes: tuple[int, int, int], kind: str, form: str) -> None:
    """`mamba_simple.py` of state-spaces/mamba with an initial state: the paper's sums, in numpy, row by row."""
    layer = layer_of(time, sizes, kind)
    conv, ssm = start(1, 2, layer)
    inputs = normal(generator(2), 2, time, 6)
    with torch.no_grad():
        found = layer(inputs, conv, ssm)
    assert layer.form == form
    parameters = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    for row in range(2):
        expected = paper.mamba1(parameters, inputs[row].numpy(), conv[row].numpy(), ssm[row].numpy())
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours[row], torch.from_numpy(theirs)) < TOLERANCE[torch.float64]


def test_one_token_by_hand() -> None:
    """One channel, one unit: x 2, no curve but SiLU; the step is softplus(0) = log 2, A is -1, so half is kept."""
    layer = Mamba1Mixer(width=1, inner=1, state_size=1, rank=1).double()
    ones = {name: torch.ones_like(x) for name, x in layer.state_dict().items()}
    zeros = {name: torch.zeros_like(ones[name]) for name in ("A_log", "conv1d.bias", "dt_proj.weight", "dt_proj.bias")}
    layer.load_state_dict(ones | zeros)
    window, memory = torch.tensor([[[-3.0, 1.0, 2.0]]]).double(), torch.tensor([[[10.0]]]).double()
    outputs, conv, ssm = layer(torch.full((1, 1, 1), 2.0).double(), window, memory)
    x = silu = 2 / (1 + torch.exp(torch.tensor(-2.0).double())).item()  # SiLU(-3 + 1 + 2 + 2), and SiLU of the gate 2
    state = 0.5 * 10 + 0.6931471805599453 * x * x  # written: x at the address x
    assert conv.flatten().tolist() == [1.0, 2.0, 2.0]
    assert ssm.item() == pytest.approx(state, rel=1e-12)
    assert outputs.item() == pytest.approx((state * x + x) * silu, rel=1e-12)


@both_forms
def test_the_window_holds_the_last_three_inputs_of_the_convolution() -> None:
    """Also when a call is shorter than the window."""
    layer = layer_of(3)
    conv, ssm = start(4, 2, layer)
    inputs = normal(generator(5), 2, 2, 6)
    _, window, _ = layer(inputs, conv, ssm)
    entering = layer.in_proj(inputs)[..., : layer.inner].transpose(1, 2)
    assert torch.equal(window, torch.cat([conv[..., 2:], entering], -1))


@both_forms
@pytest.mark.parametrize("kind", KINDS)
def test_log_decays_are_what_is_kept(kind: str) -> None:
    """Two memories that differ by 1 everywhere differ, after a few tokens, by what is kept of 1."""
    layer = layer_of(6, kind=kind)
    assert layer.log_decay is None
    (conv, ssm), inputs = start(7, 2, layer), normal(generator(8), 2, 5, 6)
    with torch.no_grad():
        apart = layer(inputs, conv, ssm + 1)[2] - layer(inputs, conv, ssm)[2]
    found = layer.log_decay
    assert found is not None
    assert found.shape == (2, 5, layer.inner, layer.state_size)
    torch.testing.assert_close(found.sum(1).exp(), apart, rtol=1e-9, atol=1e-9)


def test_nothing_as_large_as_the_log_decays_is_kept() -> None:
    """A training step holds (B, T, E, N) nowhere; they are made when asked for, and free of the graph."""
    layer = layer_of(9, (4, 32, 2))
    layer(normal(generator(1), 2, 50, 6), *start(2, 2, layer))[0].sum().backward()
    held = [x for own in vars(layer).values() if isinstance(own, tuple) for x in own]
    assert held
    assert all(isinstance(x, Tensor) and x.numel() <= 2 * 50 * 4 and not x.requires_grad for x in held)
    assert layer.log_decay is not None
    assert not layer.log_decay.requires_grad
    assert layer.log_decay is not layer.log_decay


@both_forms
def test_statistics_are_those_of_the_states_after_each_token() -> None:
    layer, inputs = layer_of(10), normal(generator(3), 2, 7, 6)
    first = start(4, 2, layer)
    with torch.no_grad():
        layer(inputs, *first, {"conv": Observe(1, True, None), "ssm": Observe(1, True, None)})
        found, states, seen = layer.statistics, first, []
        for token in inputs.split(1, 1):
            _, *states = layer(token, *states)
            seen.append(states)
        assert layer.statistics == {"conv": None, "ssm": None}
    for name, steps in zip(("conv", "ssm"), zip(*seen, strict=True), strict=True):
        wanted = brute_force(torch.stack([state.flatten(1).unsqueeze(1) for state in steps], 1), None, True)
        told = found[name]
        assert told is not None
        for key, x in told.items().items():
            torch.testing.assert_close(x, wanted[key], rtol=1e-9, atol=1e-12, msg=f"{name} {key}")


def test_at_first_steps_and_rates_are_the_published_ones() -> None:
    torch.manual_seed(0)
    layer = Mamba1Mixer(width=8, inner=512, state_size=3, rank=4).double()
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert 0.001 <= steps.min() < 0.0015
    assert 0.08 < steps.max() <= 0.1
    assert steps.log().mean().item() == pytest.approx(-4.605, abs=0.2)  # of 0.01, halfway between by factors
    torch.testing.assert_close(layer.A_log.exp(), torch.tensor([1.0, 2.0, 3.0]).double().expand(512, 3))
    assert torch.equal(layer.D, torch.ones_like(layer.D))
    assert 0.49 < layer.dt_proj.weight.abs().max() <= 0.5


@both_forms
def test_gradients_of_the_layer_reach_inputs_states_and_every_parameter() -> None:
    layer = layer_of(4, (4, 3, 2))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    leaves = [normal(generator(8), 1, 3, 6), *start(9, 1, layer)]

    def call(inputs: Tensor, conv: Tensor, ssm: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs, conv, ssm))

    values = [parameter.detach().clone() for parameter in parameters]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (*leaves, *values)])
