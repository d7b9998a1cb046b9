"""Mamba-2: its layer is the published one in every form, its states go over any cut, its gradients are right.

The recurrence itself is held against the paper in tests/kernels.
"""

import paper
import pytest
import torch
from agreement import FIXED, TOLERANCE, both_forms, error, off_over_cuts, randomised
from cuts import KINDS, SEEDS, generator, log_decays, normal, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_reference.mamba2 import CONVOLUTION, GatedRMSNorm, Mamba2Mixer
from torch import Tensor

HEADS_AND_GROUPS = [(1, 1), (2, 1), (3, 3), (4, 2), (6, 3), (6, 2)]


def layer_of(seed: int, heads: int = 4, groups: int = 2, kind: str = "mild") -> Mamba2Mixer:
    layer = randomised(lambda: Mamba2Mixer(6, 3 * heads, heads, groups, state_size=4).double(), seed)
    with torch.no_grad():
        if kind == "by channel":  # steps of about 1 and A from the extremes: log decays near -100, -1e-4, -1e4 ...
            layer.A_log.copy_((-log_decays(generator(seed), kind, heads)).log())
            layer.dt_bias.fill_(0.5)
        if kind == "extreme":  # steps from nothing to a dozen, from token to token
            layer.in_proj.weight[-heads:].mul_(8)
    return layer


def start(seed: int, batch: int, layer: Mamba2Mixer) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    conv = normal(draw, batch, layer.conv1d.in_channels, CONVOLUTION - 1)
    return conv, normal(draw, batch, layer.heads, layer.inner // layer.heads, layer.state_size)


def off(layer: Mamba2Mixer, seed: int, lengths: list[int]) -> float:
    """How far pieces of these lengths are off, from a warm state."""
    inputs = normal(generator(seed), 2, sum(lengths) + 1, 6)
    return off_over_cuts(layer, start(seed + 1, 2, layer), inputs, lengths)


@both_forms
@settings(deadline=None, max_examples=25)
@given(SEEDS, pieces(shortest=1), st.sampled_from(KINDS), st.sampled_from(HEADS_AND_GROUPS))
def test_the_layer_carries_its_states_over_any_cut(
    seed: int, lengths: list[int], kind: str, heads_and_groups: tuple[int, int]
) -> None:
    assert off(layer_of(seed, *heads_and_groups, kind), seed, lengths) < TOLERANCE[torch.float64] / 2


@both_forms
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", FIXED)
def test_the_layer_carries_its_states_in_float32(lengths: list[int], kind: str) -> None:
    assert off(layer_of(len(lengths), kind=kind).float(), 1, lengths) < TOLERANCE[torch.float32] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme"])
@pytest.mark.parametrize("heads_and_groups", HEADS_AND_GROUPS)
@pytest.mark.parametrize("time", [1, 2, 5, 66])
def test_the_layer_is_the_published_one(time: int, heads_and_groups: tuple[int, int], kind: str, form: str) -> None:
    """`mamba2.py` of state-spaces/mamba, and `ssd_minimal.py` with an initial state, written out again in numpy.

    `mamba2_simple.py` there differs in one thing: it takes RMSNorm's mean square over all channels, where `mamba2.py`
    and transformers take it over each group's. With one group, as shipped, they are the same.
    """
    heads, groups = heads_and_groups
    layer = layer_of(time, heads, groups, kind)
    conv, ssm = start(1, 2, layer)
    inputs = normal(generator(2), 2, time, 6)
    with torch.no_grad():
        found = layer(inputs, conv, ssm)
    assert layer.form == form
    parameters = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    for row in range(2):
        given_states = (conv[row].numpy(), ssm[row].numpy())
        expected = paper.mamba2(parameters, inputs[row].numpy(), *given_states, groups)
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours[row], torch.from_numpy(theirs)) < TOLERANCE[torch.float64]


@both_forms
def test_the_window_holds_the_last_three_inputs_of_the_convolution() -> None:
    """Also when a call is shorter than the window."""
    layer = layer_of(3)
    conv, ssm = start(4, 2, layer)
    inputs = normal(generator(5), 2, 2, 6)
    _, window, _ = layer(inputs, conv, ssm)
    entering = layer.in_proj(inputs)[..., layer.inner : -layer.heads].transpose(1, 2)
    assert torch.equal(window, torch.cat([conv[..., 2:], entering], -1))


def test_the_norm_of_each_group_by_hand() -> None:
    """Two groups of two channels: (3, 4) has the mean square 12.5, and a second group of zeros stays zero."""
    norm = GatedRMSNorm(4, groups=2).double()
    gate = torch.full((4,), 1.2784645427610738, dtype=torch.float64)  # SiLU of this is 1
    found = norm(torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64), gate)
    assert found.tolist() == pytest.approx([3 / 12.50001**0.5, 4 / 12.50001**0.5, 0, 0], rel=1e-12)


def test_at_first_steps_and_decays_are_in_the_published_ranges() -> None:
    torch.manual_seed(0)
    layer = Mamba2Mixer(width=8, inner=512, heads=256, groups=1, state_size=2).double()
    steps, rates = torch.nn.functional.softplus(layer.dt_bias), layer.A_log.exp()
    assert 0.001 <= steps.min() < 0.0015
    assert 0.08 < steps.max() <= 0.1
    assert 1 <= rates.min() < 1.3
    assert 15 < rates.max() <= 16
    assert torch.equal(layer.D, torch.ones_like(layer.D))


@both_forms
def test_gradients_of_the_layer_reach_inputs_states_and_every_parameter() -> None:
    layer = layer_of(4, heads=2, groups=1)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    leaves = [normal(generator(8), 1, 3, 6), *start(9, 1, layer)]

    def call(inputs: Tensor, conv: Tensor, ssm: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs, conv, ssm))

    values = [parameter.detach().clone() for parameter in parameters]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (*leaves, *values)])
