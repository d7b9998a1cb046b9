"""RWKV-6: its layer is the paper's in every form, its states go over any cut, its gradients are right.

The recurrence itself is held against the paper in tests/kernels.
"""

import numpy as np
import paper
import pytest
import torch
from agreement import FIXED, TOLERANCE, both_forms, error, off_over_cuts, randomised
from cuts import KINDS, SEEDS, generator, log_decays, normal, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_reference.rwkv6 import MIXED, TimeMix
from torch import Tensor


def layer_of(seed: int, width: int = 12, heads: int = 3, kind: str = "mild") -> TimeMix:
    layer = randomised(lambda: TimeMix(width=width, heads=heads, low_rank=2, layer=1, layers=4).double(), seed)
    with torch.no_grad():
        if kind == "by channel":  # log decay = -exp(decay)
            layer.decay.copy_((-log_decays(generator(seed), kind, width)).log())
        if kind == "extreme":  # log decays from -1e5 to -1e-5, from token to token
            layer.decay_up.mul_(8)
    return layer


def start(seed: int, batch: int, layer: TimeMix) -> tuple[Tensor, Tensor]:
    draw, width = generator(seed), layer.decay.numel()
    head = width // layer.heads
    return normal(draw, batch, width), normal(draw, batch, layer.heads, head, head)


def off(layer: TimeMix, seed: int, lengths: list[int]) -> float:
    """How far pieces of these lengths are off, from a warm state."""
    inputs = normal(generator(seed), 2, sum(lengths) + 1, 12)
    return off_over_cuts(layer, start(seed + 1, 2, layer), inputs, lengths)


@both_forms
@settings(deadline=None, max_examples=25)
@given(SEEDS, pieces(shortest=1), st.sampled_from(KINDS))
def test_the_layer_carries_its_states_over_any_cut(seed: int, lengths: list[int], kind: str) -> None:
    assert off(layer_of(seed, kind=kind), seed, lengths) < TOLERANCE[torch.float64] / 2


@both_forms
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", FIXED)
def test_the_layer_carries_its_states_in_float32(lengths: list[int], kind: str) -> None:
    assert off(layer_of(len(lengths), kind=kind).float(), 1, lengths) < TOLERANCE[torch.float32] / 2


def in_the_papers_names(layer: TimeMix) -> dict[str, np.ndarray]:
    """The paper multiplies from the right, torch's Linear from the left: matrices are transposed."""
    ours = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    names = dict(zip(MIXED, "rkvgd", strict=True))
    mixing = zip(names.values(), ours["mu"], np.split(ours["mix_down"], 5, axis=1), ours["mix_up"], strict=True)
    found = {"mu_x": ours["mu_x"], "u": ours["bonus"], "gain": ours["norm.weight"], "bias": ours["norm.bias"]}
    for q, mu, down, up in mixing:
        found |= {f"lambda_{q}": mu, f"A_{q}": down, f"B_{q}": up}
    found |= {"lambda_w": ours["decay"], "A_w": ours["decay_down"], "B_w": ours["decay_up"]}
    linear = {"r": "receptance", "k": "key", "v": "value", "g": "gate", "o": "output"}
    return found | {f"W_{q}": ours[f"{name}.weight"].T for q, name in linear.items()}


@pytest.mark.parametrize("seed", range(6))
def test_the_layer_is_the_papers(seed: int, form: str) -> None:
    """Section 4 of arXiv 2404.05892, written out again in numpy; each row of the batch by itself.

    BlinkDL's code (RWKV-LM, `rwkv_v6_demo.py`; ChatRWKV, `RWKV_v6_demo.py`) computes the same: tanh between the two
    low-rank matrices, the decay's own low-rank map on the mixed input, GroupNorm with eps 64e-5 before the gate.
    """
    heads, head = 1 + seed % 3, 2 + seed % 2
    layer = layer_of(seed, heads * head, heads, "mild" if seed < 4 else "by channel")
    shift, wkv = start(seed, 2, layer)
    inputs = normal(generator(seed + 50), 2, (1, 2, 35)[seed % 3], heads * head)
    with torch.no_grad():
        found = layer(inputs, shift, wkv)
    assert layer.form == form
    for row in range(2):
        given_states = (shift[row].numpy(), wkv[row].numpy())
        expected = paper.time_mixing(in_the_papers_names(layer), inputs[row].numpy(), *given_states, heads)
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours[row], torch.from_numpy(theirs)) < TOLERANCE[torch.float64]


def test_each_low_rank_map_reaches_its_own_projection() -> None:
    """One entry of mix_up moves what that projection reads, and no other."""
    layer = layer_of(0)
    inputs, (shift, _) = normal(generator(1), 1, 4, 12), start(2, 1, layer)
    before = torch.cat([shift.unsqueeze(1), inputs[:, :-1]], 1)
    mixed = layer._lerp(inputs, before)
    for index in range(len(MIXED)):
        with torch.no_grad():
            layer.mix_up[index] += 0.1
        moved = (layer._lerp(inputs, before) - mixed).flatten(1).norm(dim=1) > 0
        assert moved.tolist() == [other <= index for other in range(len(MIXED))]


@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (0, 4), (1, 4), (3, 4), (11, 12)])
def test_the_first_values_are_the_published_ones(layer: int, layers: int) -> None:
    """As `rwkv_v6_demo.py` of RWKV-LM sets them, channel by channel, from ratio_0_to_1 and ratio_1_to_almost0."""
    width = 12
    mixer = TimeMix(width=width, heads=3, low_rank=2, layer=layer, layers=layers)
    rising = layer / (layers - 1) if layers > 1 else 0.0
    falling = 1.0 - layer / layers
    powers = {"receptance": 0.5 * falling, "key": falling, "value": falling, "gate": 0.5 * falling, "decay": falling}
    for channel in range(width):
        share = channel / width
        for name, power in powers.items():
            wanted = 1.0 - (share**power + (0.3 * rising if name == "value" else 0.0))
            assert mixer.mu[MIXED.index(name), channel].item() == pytest.approx(wanted, abs=1e-6)
        assert float(mixer.mu_x[channel]) == pytest.approx(1.0 - share**falling, abs=1e-6)
        place = channel / (width - 1)
        assert float(mixer.decay[channel]) == pytest.approx(-6 + 5 * place ** (0.7 + 1.3 * rising), abs=1e-5)
        zigzag = ((channel + 1) % 3 - 1) * 0.1
        assert float(mixer.bonus.flatten()[channel]) == pytest.approx(rising * (1 - place) + zigzag, abs=1e-6)
    assert not mixer.mix_down.any()
    assert not mixer.decay_down.any()


@both_forms
def test_gradients_of_the_layer_reach_inputs_states_and_every_parameter() -> None:
    layer = layer_of(4, width=4, heads=2)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    leaves = [normal(generator(8), 1, 3, 4), *start(9, 1, layer)]

    def call(inputs: Tensor, shift: Tensor, wkv: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs, shift, wkv))

    values = [parameter.detach().clone() for parameter in parameters]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (*leaves, *values)])
