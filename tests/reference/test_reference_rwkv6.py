"""RWKV-6: its three forms agree at any cut and any decay, its layer is the paper's, its gradients are right."""

import copy

import numpy as np
import paper
import pytest
import torch
from agreement import (
    DTYPES,
    FIXED,
    KINDS,
    SEEDS,
    TOLERANCE,
    error,
    generator,
    log_decays,
    normal,
    pieces,
    randomised,
    split,
    worst,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_reference import rwkv6
from statecheck_reference.rwkv6 import MIXED, TimeMix, wkv6, wkv6_by_token
from torch import Tensor

Arrays = dict[str, Tensor]
NAMES = ("receptance", "key", "value", "log_decay")


def drawn(seed: int, time: int, kind: str = "mild", batch: int = 2, heads: int = 2) -> tuple[Arrays, Tensor, Tensor]:
    """Arguments of the recurrence: those along time, the bonus, and a state that is not zero."""
    draw = generator(seed)
    keys, values = (int(n) for n in torch.randint(1, 5, (2,), generator=draw))
    along = {name: normal(draw, batch, time, heads, values if name == "value" else keys) for name in NAMES[:3]}
    along["log_decay"] = log_decays(draw, kind, batch, time, heads, keys)
    return along, normal(draw, heads, keys), normal(draw, batch, heads, keys, values)


def to(dtype: torch.dtype, arrays: Arrays) -> Arrays:
    return {name: x.to(dtype) for name, x in arrays.items()}


def terms(along: Arrays, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Of each answer and each element of the last state: the sum of the absolute values of its terms."""
    absolute = {name: x if name == "log_decay" else x.abs() for name, x in along.items()}
    return wkv6_by_token(**absolute, bonus=bonus.abs(), state=state.abs())


@settings(deadline=None, max_examples=60)
@given(SEEDS, pieces(), KINDS, DTYPES, st.integers(1, 3), st.integers(1, 3))
def test_whole_in_pieces_and_token_by_token_agree(
    seed: int, lengths: list[int], kind: str, dtype: torch.dtype, batch: int, heads: int
) -> None:
    """Each within half the tolerance of the recurrence in float64, so within the tolerance of one another."""
    along, bonus, state = drawn(seed, sum(lengths), kind, batch, heads)
    along, bonus, state = to(dtype, along), bonus.to(dtype), state.to(dtype)
    exact, wide = to(torch.float64, along), {"bonus": bonus.double(), "state": state.double()}
    expected, last = wkv6_by_token(**exact, **wide)
    scale, scale_of_state = terms(exact, **wide)
    for form, cuts in ((wkv6, lengths), (wkv6, [sum(lengths)]), (wkv6_by_token, lengths), (wkv6, [1] * sum(lengths))):
        answers, carried = [expected[:, :0].to(dtype)], state
        for piece in split(along, cuts):
            answer, carried = form(**piece, bonus=bonus, state=carried)
            answers.append(answer)
        assert answers[-1].dtype == carried.dtype == dtype
        assert worst(torch.cat(answers, 1), expected, scale) < TOLERANCE[dtype] / 2
        assert worst(carried, last, scale_of_state) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
@pytest.mark.parametrize("form", [wkv6, wkv6_by_token])
def test_both_forms_are_the_papers_sum_over_all_earlier_tokens(form: object, kind: str) -> None:
    along, bonus, state = drawn(7, 37, kind)
    answers, last = form(**along, bonus=bonus, state=state)  # type: ignore[operator]
    scale, scale_of_state = terms(along, bonus, state)
    for row in range(2):
        for head in range(2):
            r, k, v, log_w = (along[name][row, :, head].numpy() for name in NAMES)
            expected, after = paper.wkv(r, k, v, np.exp(log_w), bonus[head].numpy(), state[row, head].numpy())
            assert worst(answers[row, :, head], torch.from_numpy(expected), scale[row, :, head]) < 1e-13
            assert worst(last[row, head], torch.from_numpy(after), scale_of_state[row, head]) < 1e-13


@pytest.mark.parametrize("form", [wkv6, wkv6_by_token])
def test_three_tokens_by_hand(form: object) -> None:
    """One channel, S_0 = 8, w = 1/2, u = 3, r = 1: y = S + 3 k v and S = S / 2 + k v."""
    k, v = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 5.0])
    one = torch.ones(1, 3, 1, 1)
    answers, state = form(  # type: ignore[operator]
        one, k.view(1, 3, 1, 1), v.view(1, 3, 1, 1), (0.5 * one).log(), torch.tensor([[3.0]]), 8 * one[:, :1]
    )
    assert answers.flatten().tolist() == pytest.approx([8 + 3, 5 + 18, 8.5 + 0])
    assert state.item() == pytest.approx(4.25)


@pytest.mark.parametrize("form", [wkv6, wkv6_by_token])
@pytest.mark.parametrize("time", [1, 32, 65])
def test_after_a_decay_of_minus_100_only_the_last_write_is_there(form: object, time: int) -> None:
    along, bonus, state = drawn(3, time)
    along["log_decay"] = torch.full_like(along["log_decay"], -100.0)
    _, last = form(**along, bonus=bonus, state=state)  # type: ignore[operator]
    written = along["key"][:, -1].unsqueeze(-1) * along["value"][:, -1].unsqueeze(-2)
    torch.testing.assert_close(last, written, rtol=1e-12, atol=1e-30)


# --------------------------------------------------------------------------------------------------------- the layer


def layer_of(seed: int, width: int = 12, heads: int = 3, kind: str = "mild") -> TimeMix:
    layer = randomised(lambda: TimeMix(width=width, heads=heads, low_rank=2, depth=0.3).double(), seed)
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


def off_over_cuts(layer: TimeMix, seed: int, lengths: list[int]) -> float:
    """In pieces, whole, token by token: the largest error of outputs and last states against the layer in float64."""
    dtype, inputs = layer.decay.dtype, normal(generator(seed), 2, sum(lengths) + 1, 12)
    first = [state.to(dtype) for state in start(seed + 1, 2, layer)]
    exact, inputs, found = copy.deepcopy(layer).double(), inputs.to(dtype), [0.0]
    with torch.no_grad():
        expected = exact(inputs.double(), *(state.double() for state in first))
        for cuts in ([*lengths, 1], [sum(lengths) + 1], [1] * (sum(lengths) + 1)):
            outputs, states = [], first
            for piece in inputs.split(cuts, 1):
                output, *states = layer(piece, *states)
                outputs.append(output)
            pairs = zip((torch.cat(outputs, 1), *states), expected, strict=True)
            found += [error(ours, wanted) for ours, wanted in pairs]
    return max(found)


@settings(deadline=None, max_examples=25)
@given(SEEDS, pieces(shortest=1), KINDS)
def test_the_layer_carries_its_states_over_any_cut(seed: int, lengths: list[int], kind: str) -> None:
    assert off_over_cuts(layer_of(seed, kind=kind), seed, lengths) < TOLERANCE[torch.float64] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
@pytest.mark.parametrize("lengths", FIXED)
def test_the_layer_carries_its_states_in_float32(lengths: list[int], kind: str) -> None:
    assert off_over_cuts(layer_of(len(lengths), kind=kind).float(), 1, lengths) < TOLERANCE[torch.float32] / 2


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
def test_the_layer_is_the_papers(seed: int) -> None:
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


def test_the_first_values_are_the_published_ones() -> None:
    """As `rwkv_v6_demo.py` of RWKV-LM sets them channel by channel; here for the first layer, decays for all."""
    width, share = 12, torch.arange(12) / 12
    layer = TimeMix(width=width, heads=3, low_rank=2, depth=0.0)
    wanted = {"receptance": 0.5, "key": 1.0, "value": 1.0, "gate": 0.5, "decay": 1.0}
    for name, power in wanted.items():
        torch.testing.assert_close(layer.mu[MIXED.index(name)], 1 - share**power)
    torch.testing.assert_close(layer.mu_x, 1 - share)
    assert layer.bonus.flatten().tolist() == pytest.approx([0.0, 0.1, -0.1] * 4)
    assert not layer.mix_down.any()
    assert not layer.decay_down.any()
    for depth in (0.0, 0.5, 1.0):
        decay = [-6 + 5 * (n / (width - 1)) ** (0.7 + 1.3 * depth) for n in range(width)]
        assert TimeMix(width, 3, 2, depth).decay.tolist() == pytest.approx(decay, rel=1e-6)


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ["mild", "extreme"])
@pytest.mark.parametrize("time", [1, 2, 7])
def test_gradients_of_the_function(monkeypatch: pytest.MonkeyPatch, time: int, kind: str) -> None:
    """Against finite differences, for all inputs, over several chunks (of 4 tokens here)."""
    monkeypatch.setattr(rwkv6, "CHUNK", 4)
    along, bonus, state = drawn(5, time, kind, batch=1)
    along["log_decay"].clamp_(min=-100)
    leaves = [x.requires_grad_() for x in (*along.values(), bonus, state)]
    assert torch.autograd.gradcheck(wkv6, leaves)


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
def test_the_chunked_gradient_is_that_of_the_recurrence(kind: str) -> None:
    along, bonus, state = drawn(11, 77, kind)
    weights = normal(generator(0), *along["value"].shape), normal(generator(1), *state.shape)
    leaves = [x.requires_grad_() for x in (*along.values(), bonus, state)]

    def gradients(form: object) -> tuple[Tensor, ...]:
        answers, last = form(*leaves)  # type: ignore[operator]
        return torch.autograd.grad((answers * weights[0]).sum() + (last * weights[1]).sum(), leaves)

    for found, expected in zip(gradients(wkv6), gradients(wkv6_by_token), strict=True):
        assert expected.norm() > 0
        assert error(found, expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_decay", [-100.0, -1e4, -1e-10, 0.0])
def test_no_decay_makes_a_nan(dtype: torch.dtype, log_decay: float) -> None:
    along, bonus, state = drawn(2, 70)
    along["log_decay"] = torch.full_like(along["log_decay"], log_decay)
    leaves = [x.to(dtype).requires_grad_() for x in (*along.values(), bonus, state)]
    answers, last = wkv6(*leaves)
    gradients = torch.autograd.grad(answers.sum() + last.sum(), leaves)
    assert all(x.isfinite().all() for x in (answers, last, *gradients))


def test_gradients_of_the_layer_reach_inputs_states_and_every_parameter() -> None:
    layer = layer_of(4, width=4, heads=2)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    leaves = [normal(generator(8), 1, 3, 4), *start(9, 1, layer)]

    def call(inputs: Tensor, shift: Tensor, wkv: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs, shift, wkv))

    values = [parameter.detach().clone() for parameter in parameters]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (*leaves, *values)])
