"""Every form is the papers' recurrence: their sums, three steps by hand, any cut and any decay, gradients."""

import math

import pytest
import statecheck_kernels
import torch
from cuts import KINDS, SEEDS, generator, log_decays, pieces, worst
from drawing import SCAN, SSD, WKV6, Arguments, Operation, Sizes, cut, drawn, gradients, oracle, results, run
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_kernels import selective_scan, ssd, wkv6
from torch import Tensor
from unrolled import UNROLLED

FORMS = [
    pytest.param(name, marks=pytest.mark.skipif(not usable, reason=f"{name}: {detail}"))
    for name, usable, detail in statecheck_kernels.describe()
    if name != "triton"  # its own tests run it
]
every_form = pytest.mark.parametrize("form", FORMS)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_recurrence = pytest.mark.parametrize("operation", [WKV6, SCAN, SSD], ids=lambda operation: operation.name)
SUM = {torch.float32: 2e-6, torch.float64: 1e-12}  # of the terms' sizes; worst case of 193 terms: 1.2e-5, met: 1.005e-6
HEADS_AND_GROUPS = [(1, 1), (2, 1), (3, 3), (4, 2), (6, 3), (6, 2)]
FEW = st.integers(1, 20)  # keys, values, channels: with vectors of 4 to 16 numbers, whole ones and what is left over


def with_decays(operation: Operation, arguments: Arguments, kind: str, seed: int) -> Arguments:
    """The arguments, with log decays of that kind where the recurrence has them; what is written stays as large."""
    draw = generator(seed)
    if kind == "mild":
        return arguments
    if operation is WKV6:
        batch, steps, *channels = arguments["log_w"].shape
        log_w = log_decays(draw, kind, batch, steps, math.prod(channels))
        return {**arguments, "log_w": log_w.view(batch, steps, *channels)}
    dt, A, x = arguments["dt"], arguments["A"], arguments["x"]
    if kind == "by channel":
        return {**arguments, "dt": torch.ones_like(dt), "A": log_decays(draw, "extreme", *A.shape)}
    dt = -log_decays(draw, kind, *dt.shape)  # dt x is written, D x is not
    written = x / (dt.unsqueeze(-1) if x.dim() > dt.dim() else dt)
    return {**arguments, "dt": dt, "A": -torch.ones_like(A), "x": written, "D": 0 * arguments["D"]}


def terms(operation: Operation, arguments: Arguments) -> Arguments:
    """Of each output and each unit of the last state: the sum of the absolute values of its terms."""
    logarithms = ("log_w", "A")
    return results(oracle(operation, {n: x if n in logarithms else x.abs() for n, x in arguments.items()}))


def sizes_of(operation: Operation) -> st.SearchStrategy[Sizes]:
    if operation is not SSD:
        return st.fixed_dictionaries({letter: FEW for letter in operation.usual})
    return st.builds(lambda pair, P, N: {"H": pair[0], "P": P, "G": pair[1], "N": N},
                     st.sampled_from(HEADS_AND_GROUPS), FEW, FEW)  # fmt: skip


def in_pieces(operation: Operation, arguments: Arguments, form: str, lengths: list[int]) -> Arguments:
    """One call a piece, each from the state of the one before."""
    start, state, outputs = 0, arguments["state"], []
    for length in lengths:
        piece = {**cut(arguments, operation, start, start + length), "state": state}
        start, (answers, state, *_) = start + length, run(operation, piece, form)
        outputs.append(answers)
    return {"outputs": torch.cat(outputs, 1), "state": state}


@every_recurrence
@every_form
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_whole_in_pieces_and_step_by_step_agree(operation: Operation, form: str, data: st.DataObject) -> None:
    """Each with the recurrence in float64, so with one another; at any sizes, cuts and decays."""
    seed, kind, batch = data.draw(SEEDS), data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 3))
    lengths, dtype = data.draw(pieces()), data.draw(st.sampled_from([torch.float32, torch.float64]))
    arguments = drawn(operation, sum(lengths), data.draw(sizes_of(operation)), batch, seed=seed)
    arguments = {name: x.to(dtype) for name, x in with_decays(operation, arguments, kind, seed).items()}
    wide = {name: x.double() for name, x in arguments.items()}
    expected, scale = results(oracle(operation, wide)), terms(operation, wide)
    for cuts in (lengths, [sum(lengths)], [1] * sum(lengths) or [0]):
        found = in_pieces(operation, arguments, form, cuts)
        for name, x in found.items():
            assert x.dtype == dtype
            assert worst(x, expected[name], scale[name]) < SUM[dtype], name


@pytest.mark.parametrize("number", [0, 2, 4])
@every_kind
@every_recurrence
@every_form
def test_every_form_is_the_papers_sum_over_all_earlier_steps(
    form: str, operation: Operation, kind: str, number: int
) -> None:
    """Over several chunks; of the state space models with D x beside it where decays are not extreme by step."""
    arguments = with_decays(operation, drawn(operation, 67, operation.sizes[number], seed=7), kind, 7)
    outputs, state = UNROLLED[operation.name]({name: x.numpy() for name, x in arguments.items()})
    found, scale = results(run(operation, arguments, form)), terms(operation, arguments)
    assert worst(found["outputs"], torch.from_numpy(outputs), scale["outputs"]) < 1e-13
    assert worst(found["state"], torch.from_numpy(state), scale["state"]) < 1e-13


@every_form
def test_three_steps_of_wkv6_by_hand(form: str) -> None:
    """One channel, S_0 = 8, w = 1/2, u = 3, r = 1: y = S + 3 k v, then S = S / 2 + k v."""
    k, v = torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1.0, 3.0, 5.0]).view(1, 3, 1, 1)
    one = torch.ones(1, 3, 1, 1)
    scan = wkv6(one, k, v, (0.5 * one).log(), torch.tensor([[3.0]]), 8 * one[:, :1], form=form)
    assert scan.outputs.flatten().tolist() == pytest.approx([8 + 3, 5 + 18, 8.5 + 0])
    assert scan.state.item() == pytest.approx(4.25)


@every_form
def test_three_steps_of_a_state_space_model_by_hand(form: str) -> None:
    """One channel, h_0 = 8, dt = 2, exp(dt A) = 1/2: h = h / 2 + 2 x b, then y = c h + 10 x, so x counts at once."""
    x, b, c = (torch.tensor(numbers).view(1, 3, 1) for numbers in ([0.5, 1.0, 2.5], [1.0, 3.0, 0.0], [1.0, 2.0, 3.0]))
    rate, skip, two = torch.tensor([0.5]).log() / 2, torch.tensor([10.0]), torch.full((1, 3, 1), 2.0)
    heads = ssd(x[..., None], two, rate, b[..., None], c[..., None], skip, torch.full((1, 1, 1, 1), 8.0), form=form)
    scan = selective_scan(x, two, rate.view(1, 1), b, c, skip, torch.full((1, 1, 1), 8.0), form=form)
    for found in (heads, scan):
        assert found.outputs.flatten().tolist() == pytest.approx([5.0 + 5, 2 * 8.5 + 10, 3 * 4.25 + 25])
        assert found.state.item() == pytest.approx(4.25)


@every_form
@every_recurrence
@pytest.mark.parametrize("steps", [1, 32, 65, 130])
def test_after_a_decay_of_minus_100_only_the_last_write_is_there(operation: Operation, form: str, steps: int) -> None:
    arguments = drawn(operation, steps, seed=3)
    if operation is WKV6:
        arguments["log_w"].fill_(-100)
        written = arguments["k"][:, -1].unsqueeze(-1) * arguments["v"][:, -1].unsqueeze(-2)
    else:
        arguments["dt"].fill_(2)
        arguments["A"].fill_(-50)
        write = arguments["B"][:, -1]  # (B, N), or (B, G, N) for two heads each
        write = write.repeat_interleave(2, 1) if operation is SSD else write
        written = 2 * arguments["x"][:, -1].unsqueeze(-1) * write.unsqueeze(-2)
    torch.testing.assert_close(run(operation, arguments, form).state, written, rtol=1e-12, atol=1e-30)


@every_form
@every_recurrence
@pytest.mark.parametrize("kind", ["mild", "extreme"])
@pytest.mark.parametrize("steps", [1, 2, 7, 67])
def test_gradients_are_those_of_differences(operation: Operation, form: str, kind: str, steps: int) -> None:
    """For all inputs; over several chunks along random directions, which is quicker."""
    sizes = {"H": 2, "K": 2, "V": 3, "D": 2, "N": 2, "P": 2, "G": 1}
    sizes = {letter: sizes[letter] for letter in operation.usual}
    arguments = with_decays(operation, drawn(operation, steps, sizes, batch=1, seed=5), kind, 5)
    for name in {"log_w", "dt", "x"} & arguments.keys():
        arguments[name].clamp_(-100, 100)  # differences of larger numbers have no digits
    names = list(arguments)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return run(operation, dict(zip(names, values, strict=True)), form)[:2]

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in arguments.values()], fast_mode=steps > 7)


@every_form
@every_recurrence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_decay", [-100.0, -1e4, -1e-10, 0.0])
def test_no_decay_makes_a_nan(operation: Operation, form: str, dtype: torch.dtype, log_decay: float) -> None:
    arguments = drawn(operation, 70, dtype=dtype, seed=2)
    arguments["log_w" if operation is WKV6 else "A"].fill_(log_decay)
    if operation is not WKV6:
        arguments["dt"].fill_(1)
    found = {**results(run(operation, arguments, form)), **gradients(operation, arguments, form)}
    assert all(bool(x.isfinite().all()) for x in found.values())
