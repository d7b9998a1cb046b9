"""The LSTM language model: its equations by hand, its states, its errors."""

import copy
import math

import pytest
import torch
from statecheck_reference.lstm import LSTMConfig, LSTMLanguageModel, States
from torch import Tensor

SMALL = LSTMConfig(vocabulary=23, width=16, layers=3)


@pytest.fixture
def model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(SMALL)


def ids(batch: int, time: int, seed: int = 1) -> Tensor:
    return torch.randint(0, SMALL.vocabulary, (batch, time), generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_two_steps_by_hand() -> None:
    """No weights, only biases: the gates are constants and c_2 = f c_1 + i g, h = o tanh(c), logits = E h + b."""
    model = LSTMLanguageModel(LSTMConfig(vocabulary=2, width=1, layers=1)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight_" in name:
                parameter.zero_()
        gates = torch.tensor([0.3, 1.0, -0.7, 0.2], dtype=torch.float64)  # i, f, g, o
        model.get_parameter("layers.0.bias_ih_l0").copy_(gates)
        model.embedding.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        model.output_bias.copy_(torch.tensor([0.0, 0.5]))
    logits = model(torch.tensor([[0, 1]]))
    written = sigmoid(0.3) * math.tanh(-0.7)
    cells = [written, sigmoid(1.0) * written + written]
    hidden = [sigmoid(0.2) * math.tanh(cell) for cell in cells]
    expected = torch.tensor([[[2 * h, -h + 0.5] for h in hidden]], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-14, atol=0)
    assert model.get_states()["layers.0.c"].item() == pytest.approx(cells[1], rel=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_token_by_token_in_chunks_and_whole_agree(
    model: LSTMLanguageModel, dtype: torch.dtype, tolerance: float
) -> None:
    model.to(dtype)
    inputs = ids(3, 41)
    whole = model(inputs)
    after = model.get_states()
    for pieces in (inputs.split(1, dim=1), inputs.split([7, 1, 13, 20], dim=1)):
        model.set_states(None)
        parts = torch.cat([model(piece) for piece in pieces], dim=1)
        assert (parts - whole).norm() <= tolerance * whole.norm()
        for name, state in model.get_states().items():
            assert (state - after[name]).norm() <= tolerance * after[name].norm()


def test_states_are_flat_batch_first_and_empty_before_the_first_call(model: LSTMLanguageModel) -> None:
    assert model.get_states() == {}
    model(ids(2, 5))
    states = model.get_states()
    assert set(states) == {f"layers.{index}.{part}" for index in range(3) for part in "hc"}
    assert {tuple(state.shape) for state in states.values()} == {(2, 16)}
    model.set_states(states)
    model.set_states({})
    assert model.get_states() == {}


def test_a_state_put_back_continues_where_it_was_taken(model: LSTMLanguageModel) -> None:
    first, second = ids(2, 6), ids(2, 4, seed=2)
    model(first)
    states = model.get_states()
    expected = model(second)
    model(ids(2, 9, seed=3))
    model.set_states(states)
    assert torch.equal(model(second), expected)
    model.set_states(None)
    assert not torch.allclose(model(second), expected)  # the memory matters


def test_the_callers_tensors_and_the_models_never_meet(model: LSTMLanguageModel) -> None:
    first, second = ids(2, 6), ids(2, 4, seed=2)
    model(first)
    states = model.get_states()
    values = {name: state.clone() for name, state in states.items()}
    expected = model(second)
    assert all(torch.equal(states[name], values[name]) for name in states)
    model.set_states(None)
    model(first)
    for state in model.get_states().values():
        state.data.zero_()
    assert torch.equal(model(second), expected)


@pytest.mark.parametrize("time", [1, 3])
def test_gradients_reach_the_states_given(model: LSTMLanguageModel, time: int) -> None:
    """Against finite differences in float64."""
    model.double()
    inputs, names = ids(2, time), ["layers.0.c", "layers.0.h", "layers.2.c"]
    model(ids(2, 5, seed=4))
    states = {name: state.detach() for name, state in model.get_states().items()}

    def loss(*chosen: Tensor) -> Tensor:
        given: States = {**states, **dict(zip(names, chosen, strict=True))}
        model.set_states(given)
        return model(inputs).log_softmax(-1)[..., 0].sum()

    leaves = [states[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, leaves)


def test_no_tokens_change_nothing(model: LSTMLanguageModel) -> None:
    assert model(ids(2, 0)).shape == (2, 0, 23)
    assert model.get_states() == {}
    model(ids(2, 3))
    before = model.get_states()
    assert model(ids(2, 0)).shape == (2, 0, 23)
    assert all(torch.equal(state, before[name]) for name, state in model.get_states().items())


def test_another_batch_without_a_reset_is_refused(model: LSTMLanguageModel) -> None:
    model(ids(2, 3))
    for time in (0, 1, 4):
        with pytest.raises(ValueError, match=r"expected a batch of 2, .* found 3; call set_states\(None\)"):
            model(ids(3, time))
    model.set_states(None)
    assert model(ids(3, 4)).shape == (3, 4, 23)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), "expected token ids of shape"),
        (torch.zeros(2, 4), "in torch.float32"),
        (torch.tensor([[1, 23]]), "expected token ids from 0 to 22, found 23"),
        (torch.tensor([[-1, 2]]), "found -1"),
        (torch.zeros(0, 4, dtype=torch.int64), "a batch of 0"),
    ],
)
def test_wrong_inputs_are_refused_with_a_reason(model: LSTMLanguageModel, inputs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(inputs)
    assert model.get_states() == {}


def changed(states: States, name: str, value: object) -> dict:
    return {**states, name: value}


def test_states_that_do_not_fit_are_refused_with_a_reason(model: LSTMLanguageModel) -> None:
    model(ids(2, 3))
    good = model.get_states()
    without = {name: state for name, state in good.items() if name != "layers.1.c"}
    cases = [
        (without, "missing: layers.1.c; unknown: none"),
        (changed(good, "layers.3.h", good["layers.0.h"]), "missing: none; unknown: layers.3.h"),
        (changed(good, "layers.1.c", torch.zeros(2, 15)), r"states\['layers.1.c'\]: expected shape \(batch, 16\)"),
        (changed(good, "layers.1.c", torch.zeros(3, 16)), r"found \(3, 16\)"),
        (changed(good, "layers.0.h", torch.tensor(1.0)), r"found \(\)"),
        (changed(good, "layers.1.c", torch.zeros(2, 16, dtype=torch.float64)), "found torch.float64"),
    ]
    for states, message in cases:
        with pytest.raises(ValueError, match=message):
            model.set_states(states)
    with pytest.raises(TypeError, match=r"states\['layers.0.h'\]: expected a tensor, found list"):
        model.set_states(changed(good, "layers.0.h", [1.0]))
    assert all(torch.equal(state, good[name]) for name, state in model.get_states().items())


def test_a_copy_after_a_call_remembers_and_goes_its_own_way(model: LSTMLanguageModel) -> None:
    model(ids(2, 3))  # with a graph: the plain deepcopy of such tensors is refused by torch
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids(2, 4)), model(ids(2, 4)))
    twin(ids(2, 4, seed=9))
    assert not torch.equal(twin.get_states()["layers.0.c"], model.get_states()["layers.0.c"])


def test_another_precision_takes_the_memory_along(model: LSTMLanguageModel) -> None:
    model(ids(2, 3))
    model.double()
    assert {state.dtype for state in model.get_states().values()} == {torch.float64}
    assert model(ids(2, 3)).dtype == torch.float64


def test_an_untrained_model_is_undecided_and_remembers_by_default() -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(LSTMConfig())
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    log_shares = model(torch.arange(64).reshape(2, 32)).log_softmax(-1)
    entropy = -(log_shares.exp() * log_shares).sum(-1).mean()
    assert math.log(4096) - 0.05 < entropy <= math.log(4096)
    for index in range(2):
        bias = model.get_parameter(f"layers.{index}.bias_ih_l0") + model.get_parameter(f"layers.{index}.bias_hh_l0")
        assert torch.equal(bias, torch.cat([torch.zeros(224), torch.ones(224), torch.zeros(448)]))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_a_config_of_wrong_values_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"LSTMConfig.width: expected a whole number of at least 1"):
        LSTMConfig(width=value)  # type: ignore[arg-type]
