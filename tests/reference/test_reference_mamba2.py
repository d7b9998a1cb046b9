"""Mamba-2: its three forms agree at any cut and any decay, its layer is the published one, its gradients are right."""

import copy

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
from statecheck_reference import mamba2
from statecheck_reference.mamba2 import CONVOLUTION, GatedRMSNorm, Mamba2Mixer, ssd, ssd_by_token
from torch import Tensor

Arrays = dict[str, Tensor]
HEADS_AND_GROUPS = [(1, 1), (2, 1), (3, 3), (4, 2), (6, 3), (6, 2)]


def drawn(
    seed: int, time: int, kind: str = "mild", batch: int = 2, heads: int = 4, groups: int = 2
) -> tuple[Arrays, Tensor]:
    """Arguments of the recurrence: those along time, and a state that is not zero."""
    draw = generator(seed)
    size, states = (int(n) for n in torch.randint(1, 5, (2,), generator=draw))
    along = {
        "x": normal(draw, batch, time, heads, size),
        "log_decay": log_decays(draw, kind, batch, time, heads),
        "write": normal(draw, batch, time, groups, states),
        "read": normal(draw, batch, time, groups, states),
    }
    return along, normal(draw, batch, heads, size, states)


def to(dtype: torch.dtype, arrays: Arrays) -> Arrays:
    return {name: x.to(dtype) for name, x in arrays.items()}


def terms(along: Arrays, state: Tensor) -> tuple[Tensor, Tensor]:
    """Of each answer and each element of the last state: the sum of the absolute values of its terms."""
    return ssd_by_token(**{name: x if name == "log_decay" else x.abs() for name, x in along.items()}, state=state.abs())


@settings(deadline=None, max_examples=60)
@given(SEEDS, pieces(), KINDS, DTYPES, st.integers(1, 3), st.sampled_from(HEADS_AND_GROUPS))
def test_whole_in_pieces_and_token_by_token_agree(
    seed: int, lengths: list[int], kind: str, dtype: torch.dtype, batch: int, heads: tuple[int, int]
) -> None:
    """Each within half the tolerance of the recurrence in float64, so within the tolerance of one another."""
    along, state = drawn(seed, sum(lengths), kind, batch, *heads)
    along, state = to(dtype, along), state.to(dtype)
    exact = to(torch.float64, along)
    expected, last = ssd_by_token(**exact, state=state.double())
    scale, scale_of_state = terms(exact, state.double())
    for form, cuts in ((ssd, lengths), (ssd, [sum(lengths)]), (ssd_by_token, lengths), (ssd, [1] * sum(lengths))):
        answers, carried = [expected[:, :0].to(dtype)], state
        for piece in split(along, cuts):
            answer, carried = form(**piece, state=carried)
            answers.append(answer)
        assert answers[-1].dtype == carried.dtype == dtype
        assert worst(torch.cat(answers, 1), expected, scale) < TOLERANCE[dtype] / 2
        assert worst(carried, last, scale_of_state) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
@pytest.mark.parametrize("heads_and_groups", HEADS_AND_GROUPS)
@pytest.mark.parametrize("form", [ssd, ssd_by_token])
def test_both_forms_are_the_papers_semiseparable_matrix(
    form: object, heads_and_groups: tuple[int, int], kind: str
) -> None:
    """Head h reads and writes what group h // (H / G) says, neighbours together, as in the published code."""
    heads, groups = heads_and_groups
    along, state = drawn(7, 67, kind, 2, heads, groups)
    answers, last = form(**along, state=state)  # type: ignore[operator]
    scale, scale_of_state = terms(along, state)
    for head in range(heads):
        group = head // (heads // groups)
        x, log_a = along["x"][1, :, head].numpy(), along["log_decay"][1, :, head].numpy()
        b, c = along["write"][1, :, group].numpy(), along["read"][1, :, group].numpy()
        expected, after = paper.ssm(x, log_a, b, c, state[1, head].numpy())
        assert worst(answers[1, :, head], torch.from_numpy(expected), scale[1, :, head]) < 1e-12
        assert worst(last[1, head], torch.from_numpy(after), scale_of_state[1, head]) < 1e-12


@pytest.mark.parametrize("form", [ssd, ssd_by_token])
def test_three_tokens_by_hand(form: object) -> None:
    """One channel, h_0 = 8, a = 1/2: h = h / 2 + x b and y = c h, so the current token counts at once."""
    x, b, c = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in ([1.0, 2.0, 5.0], [1.0, 3.0, 0.0], [1.0, 2, 3]))
    half = torch.full((1, 3, 1), 0.5)
    answers, state = form(x, half.log(), b, c, torch.full((1, 1, 1, 1), 8.0))  # type: ignore[operator]
    assert answers.flatten().tolist() == pytest.approx([5.0, 2 * 8.5, 3 * 4.25])
    assert state.item() == pytest.approx(4.25)


@pytest.mark.parametrize("form", [ssd, ssd_by_token])
@pytest.mark.parametrize("time", [1, 64, 130])
def test_after_a_decay_of_minus_100_only_the_last_write_is_there(form: object, time: int) -> None:
    along, state = drawn(3, time, heads=2)
    along["log_decay"] = torch.full_like(along["log_decay"], -100.0)
    _, last = form(**along, state=state)  # type: ignore[operator]
    written = along["x"][:, -1].unsqueeze(-1) * along["write"][:, -1].unsqueeze(-2)
    torch.testing.assert_close(last, written, rtol=1e-12, atol=1e-30)


# --------------------------------------------------------------------------------------------------------- the layer


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


def off_over_cuts(layer: Mamba2Mixer, seed: int, lengths: list[int]) -> float:
    """In pieces, whole, token by token: the largest error of outputs and last states against the layer in float64."""
    dtype, inputs = layer.A_log.dtype, normal(generator(seed), 2, sum(lengths) + 1, 6)
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
@given(SEEDS, pieces(shortest=1), KINDS, st.sampled_from(HEADS_AND_GROUPS))
def test_the_layer_carries_its_states_over_any_cut(
    seed: int, lengths: list[int], kind: str, heads_and_groups: tuple[int, int]
) -> None:
    assert off_over_cuts(layer_of(seed, *heads_and_groups, kind), seed, lengths) < TOLERANCE[torch.float64] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
@pytest.mark.parametrize("lengths", FIXED)
def test_the_layer_carries_its_states_in_float32(lengths: list[int], kind: str) -> None:
    assert off_over_cuts(layer_of(len(lengths), kind=kind).float(), 1, lengths) < TOLERANCE[torch.float32] / 2


@pytest.mark.parametrize("kind", ["mild", "extreme"])
@pytest.mark.parametrize("heads_and_groups", HEADS_AND_GROUPS)
@pytest.mark.parametrize("time", [1, 2, 5, 66])
def test_the_layer_is_the_published_one(time: int, heads_and_groups: tuple[int, int], kind: str) -> None:
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
    parameters = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    for row in range(2):
        given_states = (conv[row].numpy(), ssm[row].numpy())
        expected = paper.mamba2(parameters, inputs[row].numpy(), *given_states, groups)
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours[row], torch.from_numpy(theirs)) < TOLERANCE[torch.float64]


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


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", ["mild", "extreme"])
@pytest.mark.parametrize("time", [1, 2, 7])
def test_gradients_of_the_function(monkeypatch: pytest.MonkeyPatch, time: int, kind: str) -> None:
    """Against finite differences, for all inputs, over several chunks (of 3 tokens here)."""
    monkeypatch.setattr(mamba2, "CHUNK", 3)
    along, state = drawn(5, time, kind, batch=1)
    along["log_decay"].clamp_(min=-100)
    assert torch.autograd.gradcheck(ssd, [x.requires_grad_() for x in (*along.values(), state)])


@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
def test_the_chunked_gradient_is_that_of_the_recurrence(kind: str) -> None:
    along, state = drawn(11, 141, kind)
    weights = normal(generator(0), *along["x"].shape), normal(generator(1), *state.shape)
    leaves = [x.requires_grad_() for x in (*along.values(), state)]

    def gradients(form: object) -> tuple[Tensor, ...]:
        answers, last = form(*leaves)  # type: ignore[operator]
        return torch.autograd.grad((answers * weights[0]).sum() + (last * weights[1]).sum(), leaves)

    for found, expected in zip(gradients(ssd), gradients(ssd_by_token), strict=True):
        assert expected.norm() > 0
        assert error(found, expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_decay", [-100.0, -1e4, -1e-10, 0.0])
def test_no_decay_makes_a_nan(dtype: torch.dtype, log_decay: float) -> None:
    along, state = drawn(2, 70)
    along["log_decay"] = torch.full_like(along["log_decay"], log_decay)
    leaves = [x.to(dtype).requires_grad_() for x in (*along.values(), state)]
    answers, last = ssd(*leaves)
    gradients = torch.autograd.grad(answers.sum() + last.sum(), leaves)
    assert all(x.isfinite().all() for x in (answers, last, *gradients))


def test_gradients_of_the_layer_reach_inputs_states_and_every_parameter() -> None:
    layer = layer_of(4, heads=2, groups=1)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    leaves = [normal(generator(8), 1, 3, 6), *start(9, 1, layer)]

    def call(inputs: Tensor, conv: Tensor, ssm: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs, conv, ssm))

    values = [parameter.detach().clone() for parameter in parameters]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (*leaves, *values)])
