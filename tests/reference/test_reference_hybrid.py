"""The hybrid as a model: any cut gives the same answer, its states are its caller's, gradients reach them."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from agreement import FIXED, TOLERANCE, both_forms, error, randomised
from cuts import KINDS, SEEDS, generator, log_decays, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_kernels import Observe, Scan
from statecheck_reference import mamba2, rwkv6
from statecheck_reference.carrying import States
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from torch import Tensor

SMALL = HybridConfig(
    vocabulary=23,
    width=8,
    blocks=2,
    rwkv_heads=2,
    low_rank=2,
    mamba_inner=12,
    mamba_heads=4,
    mamba_groups=2,
    mamba_state=3,
    feed_forward=10,
)


def model_of(seed: int, kind: str = "mild", dtype: torch.dtype = torch.float32) -> HybridLanguageModel:
    """Weights that all matter; log decays from -1e4 to -1e-10 of whole channels, or extremes from token to token."""
    model = randomised(lambda: HybridLanguageModel(SMALL), seed)
    with torch.no_grad():
        for n, block in enumerate(model.blocks):
            if kind == "by channel":
                block.rwkv.decay.copy_((-log_decays(generator(seed + n), kind, SMALL.width)).log())
                block.mamba.A_log.copy_((-log_decays(generator(seed - n), kind, SMALL.mamba_heads)).log())
                block.mamba.dt_bias.fill_(0.5)
            if kind == "extreme":
                block.rwkv.decay_up.mul_(4)
                block.mamba.in_proj.weight[-SMALL.mamba_heads :].mul_(4)
    return model.to(dtype)


@pytest.fixture
def model() -> HybridLanguageModel:
    return model_of(0)


def ids(batch: int, time: int, seed: int = 1) -> Tensor:
    return torch.randint(0, SMALL.vocabulary, (batch, time), generator=generator(seed))


# --------------------------------------------------------------------------------------------------- the right answers


def off_over_cuts(model: HybridLanguageModel, seed: int, lengths: list[int]) -> float:
    """In pieces, whole, token by token: the largest error of logits and last states against the model in float64.

    The states go out by get_states and back in by set_states between any two pieces.
    """
    inputs, exact, found = ids(2, sum(lengths) + 1, seed), copy.deepcopy(model).double(), [0.0]
    with torch.no_grad():
        expected = {"logits": exact(inputs), **exact.get_states()}
        for cuts in ([*lengths, 1], [sum(lengths) + 1], [1] * (sum(lengths) + 1)):
            outputs, states = [], None
            for piece in inputs.split(cuts, 1):
                model.set_states(None)
                model.set_states(states)
                outputs.append(model(piece))
                states = model.get_states()
            after = {"logits": torch.cat(outputs, 1), **model.get_states()}
            found += [error(after[name], wanted) for name, wanted in expected.items()]
    return max(found)


@both_forms
@settings(deadline=None, max_examples=12)
@given(SEEDS, pieces(), st.sampled_from(KINDS))
def test_whole_in_pieces_and_token_by_token_agree(seed: int, lengths: list[int], kind: str) -> None:
    assert off_over_cuts(model_of(seed, kind, torch.float64), seed, lengths) < TOLERANCE[torch.float64] / 2


@both_forms
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", FIXED)
def test_whole_in_pieces_and_token_by_token_agree_in_float32(lengths: list[int], kind: str) -> None:
    assert off_over_cuts(model_of(len(lengths), kind), 1, lengths) < TOLERANCE[torch.float32] / 2


@pytest.mark.parametrize(("module", "name"), [(rwkv6, "wkv6"), (mamba2, "ssd")])
def test_a_branch_that_forgets_between_calls_is_caught(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commonest fault: calls of several tokens start from nothing, single tokens go on from the state."""
    right = getattr(module, name)

    def forgetful(*arguments: Tensor, statistics: Observe | None = None) -> Scan:
        *others, state = arguments
        kept = state if others[0].shape[1] == 1 else torch.zeros_like(state)
        return right(*others, kept, statistics=statistics)

    monkeypatch.setattr(module, name, forgetful)
    assert off_over_cuts(model_of(0, dtype=torch.float64), 1, [7, 5]) > 100 * TOLERANCE[torch.float32]


@both_forms
def test_rows_of_a_batch_do_not_meet(model: HybridLanguageModel) -> None:
    inputs = ids(3, 40)
    together, states = model(inputs), model.get_states()
    for row in range(3):
        model.set_states(None)
        assert error(model(inputs[row : row + 1])[0], together[row]) < 1e-5
        assert all(error(state[0], states[name][row]) < 1e-5 for name, state in model.get_states().items())


@both_forms
@pytest.mark.parametrize("name", ["rwkv.wkv", "rwkv.shift", "mamba.ssm", "mamba.conv"])
@pytest.mark.parametrize("block", [0, 1])
def test_every_state_matters(model: HybridLanguageModel, block: int, name: str) -> None:
    model(ids(2, 6))
    states = model.get_states()
    expected = model(ids(2, 3, seed=2))
    full = f"blocks.{block}.{name}"
    model.set_states({**states, full: torch.zeros_like(states[full])})
    assert error(model(ids(2, 3, seed=2)), expected) > 1e-3


# ---------------------------------------------------------------------------------------------------------- the states


def test_states_are_flat_batch_first_and_empty_before_the_first_call(model: HybridLanguageModel) -> None:
    assert model.get_states() == {} == model.get_signals()
    model(ids(2, 5))
    found = {name: tuple(state.shape) for name, state in model.get_states().items()}
    shapes = {"rwkv.wkv": (2, 2, 4, 4), "rwkv.shift": (2, 8), "mamba.ssm": (2, 4, 3, 3), "mamba.conv": (2, 24, 3)}
    assert found == {f"blocks.{n}.{name}": shape for n in range(2) for name, shape in shapes.items()}
    assert found == {name: (2, *shape) for name, shape in model.state_shapes.items()}


@pytest.mark.parametrize("nothing", [None, {}])
def test_forgetting_is_as_if_nothing_had_been_read(model: HybridLanguageModel, nothing: States | None) -> None:
    expected = model(ids(2, 5))
    model.set_states(nothing)
    assert model.get_states() == {}
    assert torch.equal(model(ids(2, 5)), expected)
    assert not torch.allclose(model(ids(2, 5)), expected)  # and the memory matters


def test_a_state_put_back_continues_where_it_was_taken(model: HybridLanguageModel) -> None:
    model(ids(2, 6))
    states = model.get_states()
    expected = model(ids(2, 4, seed=2))
    model(ids(2, 9, seed=3))
    model.set_states(dict(reversed(states.items())))
    assert torch.equal(model(ids(2, 4, seed=2)), expected)


@both_forms
def test_the_callers_tensors_and_the_models_never_meet(model: HybridLanguageModel) -> None:
    model(ids(2, 6))
    states = model.get_states()
    values = {name: state.clone() for name, state in states.items()}
    expected = model(ids(2, 4, seed=2))
    assert all(torch.equal(states[name], values[name]) for name in states)
    model.set_states(states)
    assert torch.equal(model(ids(2, 4, seed=2)), expected)
    assert all(torch.equal(states[name], values[name]) for name in states)  # nothing was written in place
    model.set_states(states)
    for state in model.get_states().values():
        state.data.zero_()
    assert torch.equal(model(ids(2, 4, seed=2)), expected)


def test_no_tokens_change_nothing(model: HybridLanguageModel) -> None:
    assert model(ids(2, 0)).shape == (2, 0, 23)
    assert model.get_states() == {}
    model(ids(2, 3))
    before = model.get_states()
    assert model(ids(2, 0)).shape == (2, 0, 23)
    assert all(torch.equal(state, before[name]) for name, state in model.get_states().items())


def test_another_batch_without_a_reset_is_refused(model: HybridLanguageModel) -> None:
    model(ids(2, 3))
    before = model.get_states()
    for time in (0, 1, 4):
        with pytest.raises(ValueError, match=r"expected a batch of 2, .* found 3; call set_states\(None\)"):
            model(ids(3, time))
    assert all(torch.equal(state, before[name]) for name, state in model.get_states().items())
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
def test_wrong_inputs_are_refused_with_a_reason(model: HybridLanguageModel, inputs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(inputs)
    assert model.get_states() == {}


def test_states_that_do_not_fit_are_refused_with_a_reason(model: HybridLanguageModel) -> None:
    model(ids(2, 3))
    good = model.get_states()
    wkv, ssm = "blocks.1.rwkv.wkv", "blocks.0.mamba.ssm"
    without = {name: state for name, state in good.items() if name != wkv}
    cases = [
        (without, f"missing: {wkv}; unknown: none"),
        ({**good, "blocks.2.rwkv.wkv": good[wkv]}, "missing: none; unknown: blocks.2.rwkv.wkv"),
        ({**good, wkv: torch.zeros(2, 2, 4, 5)}, rf"states\['{wkv}'\]: expected shape \(batch, 2, 4, 4\)"),
        ({**good, wkv: good[wkv][0]}, r"found \(2, 4, 4\)"),
        ({**good, ssm: torch.zeros(3, 4, 3, 3)}, r"found \(3, 4, 3, 3\)"),
        ({name: state[:0] for name, state in good.items()}, "one batch of at least 1"),
        ({**good, ssm: good[ssm].double()}, rf"states\['{ssm}'\]: expected torch.float32 .* found torch.float64"),
    ]
    for states, message in cases:
        with pytest.raises(ValueError, match=message):
            model.set_states(states)
    with pytest.raises(TypeError, match=rf"states\['{ssm}'\]: expected a tensor, found list"):
        model.set_states({**good, ssm: [1.0]})  # type: ignore[dict-item]
    assert all(torch.equal(state, good[name]) for name, state in model.get_states().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_after_a_call_remembers_and_goes_its_own_way(model: HybridLanguageModel, copied: object) -> None:
    model(ids(2, 3))  # with a graph: the plain deepcopy of such tensors is refused by torch
    twin = copied(model)  # type: ignore[operator]
    assert torch.equal(twin(ids(2, 4)), model(ids(2, 4)))
    twin(ids(2, 4, seed=9))
    theirs, own = twin.get_states(), model.get_states()
    assert not any(torch.equal(theirs[name], state) for name, state in own.items())


@both_forms
def test_another_precision_takes_the_memory_along(model: HybridLanguageModel) -> None:
    model(ids(2, 3))
    before = model.get_states()
    model.double()
    assert {state.dtype for state in model.get_states().values()} == {torch.float64}
    assert all(torch.equal(state.float(), before[name]) for name, state in model.get_states().items())
    assert model(ids(2, 3)).dtype == torch.float64


def test_the_signals_are_those_of_the_last_call(model: HybridLanguageModel) -> None:
    model(ids(2, 3))
    model(ids(2, 5))
    signals = model.get_signals()
    shapes = {"gate": (2, 5, 8), "rwkv.log_decay": (2, 5, 2, 4), "mamba.log_decay": (2, 5, 4)}
    found = {name: tuple(signal.shape) for name, signal in signals.items()}
    assert found == {f"blocks.{n}.{name}": shape for n in range(2) for name, shape in shapes.items()}
    for name, signal in signals.items():
        assert not signal.requires_grad
        assert bool(((signal > 0) & (signal < 1)).all() if name.endswith("gate") else (signal < 0).all())
    signals["blocks.0.gate"].zero_()
    assert bool(model.get_signals()["blocks.0.gate"].all())


# ----------------------------------------------------------------------------------------------------------- gradients


@both_forms
@pytest.mark.parametrize("calls", [[1], [3], [2, 1, 2]])
def test_gradients_reach_the_states_given(calls: list[int]) -> None:
    """Through every later call too, against finite differences in float64."""
    model = model_of(2, dtype=torch.float64)
    model(ids(2, 5, seed=4))
    states = {name: state.detach() for name, state in model.get_states().items()}

    def losses(*chosen: Tensor) -> Tensor:
        model.set_states(dict(zip(states, chosen, strict=True)))
        outputs = [model(ids(2, length, seed)).log_softmax(-1)[..., 0].sum(1) for seed, length in enumerate(calls)]
        return outputs[-1]

    assert torch.autograd.gradcheck(
        losses, [state.clone().requires_grad_() for state in states.values()], fast_mode=True
    )  # along random directions in each state


@both_forms
def test_gradients_flow_back_through_get_states() -> None:
    """Into the parameters of an earlier call, and through a round trip of the states by get and set."""
    model = model_of(3, dtype=torch.float64)
    first, second = ids(2, 34), ids(2, 3, seed=2)
    whole = model(torch.cat([first, second], 1))[:, 34:].square().sum()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    model.set_states(None)
    model(first)
    model.set_states(model.get_states())
    found = torch.autograd.grad(model(second).square().sum(), list(model.parameters()))
    assert all(error(ours, wanted) < 1e-9 for ours, wanted in zip(found, expected, strict=True))


@both_forms
@pytest.mark.parametrize("kind", ["mild", "by channel"])
def test_every_parameter_has_a_finite_gradient(kind: str) -> None:
    model = model_of(1, kind)
    model(ids(2, 40))
    loss = torch.nn.functional.cross_entropy(model(ids(2, 70)).flatten(0, 1), ids(2, 70, seed=2).flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.norm() > 0, name
