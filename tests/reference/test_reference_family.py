"""Every make of hybrid: it is its glossary, any cut gives the same answer, gradients reach all of it."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from agreement import TOLERANCE, both_forms, error
from cuts import generator, normal
from family import BASE, MAKES, config_of, family_model, model_again, some_states
from observed_models import same
from statecheck_reference.attention import Attention
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.models import MODELS
from statecheck_reference.rwkv6 import TimeMix
from test_reference_hybrid import ids, off_over_cuts
from torch import Tensor, nn

import statecheck as sc

every_make = pytest.mark.parametrize("make", MAKES)


# --------------------------------------------------------------------------------------------------- the right answers


@both_forms
@every_make
def test_a_model_is_its_glossary(make: str) -> None:
    """Logits and next states, of rows that have read something before, against the family written anew in numpy."""
    model = family_model(make, 5)
    first, inputs = some_states(model, 2), ids(2, 9)
    model.set_states(first)
    logits, states = model(inputs), model.get_states()
    for row in range(2):
        own = {name: state[row].numpy() for name, state in first.items()}
        expected, after = model_again(model, inputs[row].numpy(), own)
        assert error(logits[row], torch.from_numpy(expected)) < TOLERANCE[torch.float64]
        assert after.keys() == states.keys()
        for name, state in after.items():
            assert error(states[name][row], torch.from_numpy(state)) < TOLERANCE[torch.float64], name


@pytest.mark.parametrize(
    ("make", "change"),
    [
        ("parallel", {"fusion": "gate", "blend": 0.9}),
        ("interleaved", {"ratio": "1:3"}),
        ("sequential", {"branch_norm": False}),
        ("gamma", {"residual_gamma": 0.0}),
        ("norm-groups", {"norm_groups": 2}),
        ("attention", {"attention_at": 1}),
        ("attention", {"attention_window": 4}),
        ("no-feeding", {"feed_forward": 10}),
        ("mamba-1", {"mamba_version": 2}),
    ],
)
def test_every_option_makes_another_model(make: str, change: dict) -> None:
    """Or a test of the makes would say nothing of it."""
    one, other = family_model(make), HybridLanguageModel(replace(config_of(make), **change)).double()
    fits = {n: p for n, p in one.state_dict().items() if n in (own := other.state_dict()) and own[n].shape == p.shape}
    other.load_state_dict(fits, strict=False)
    assert error(other(ids(2, 9)), one(ids(2, 9))) > 1e-3


@every_make
def test_whole_in_pieces_and_token_by_token_agree(make: str) -> None:
    for dtype, tolerance in TOLERANCE.items():  # norms over a few channels make much of rounding
        assert off_over_cuts(family_model(make, dtype=dtype), 1, [1, 12, 2, 5]) < 3 * tolerance


@pytest.mark.parametrize(
    ("make", "layer"), [("attention", Attention), ("mamba-1", Mamba1Mixer), ("pure-rwkv", TimeMix)]
)
def test_a_mixer_that_forgets_between_calls_is_caught(
    make: str, layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of several tokens start from nothing, single tokens go on from the state."""
    right = layer.forward

    def forgetful(self: nn.Module, inputs: Tensor, *states: Tensor | None) -> tuple[Tensor, ...]:
        *held, asked = states
        return right(self, inputs, *held if inputs.shape[1] == 1 else map(torch.zeros_like, held), asked)

    monkeypatch.setattr(layer, "forward", forgetful)
    assert off_over_cuts(family_model(make), 1, [7, 5]) > 100 * TOLERANCE[torch.float32]


@every_make
def test_rows_of_a_batch_do_not_meet_and_every_state_matters(make: str) -> None:
    model = family_model(make)
    first, inputs = some_states(model, 3), ids(3, 7)
    model.set_states(first)
    together, states = model(inputs), model.get_states()
    for row in range(3):
        model.set_states({name: state[row : row + 1] for name, state in first.items()})
        assert error(model(inputs[row : row + 1])[0], together[row]) < 1e-12
        assert all(error(state[0], states[name][row]) < 1e-12 for name, state in model.get_states().items())
    expected = model_from(model, states, ids(3, 3, 2))
    for name, state in states.items():
        assert error(model_from(model, {**states, name: torch.zeros_like(state)}, ids(3, 3, 2)), expected) > 1e-5, name


def model_from(model: HybridLanguageModel, states: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What the model says of `inputs`, read on from `states`."""
    model.set_states(states)
    return model(inputs)


@every_make
def test_the_states_are_those_that_the_config_declares(make: str) -> None:
    model = family_model(make)
    model(ids(2, 5))
    found = {name: tuple(state.shape) for name, state in model.get_states().items()}
    assert found == {name: (2, *shape) for name, shape in config_of(make).state_shapes.items()}
    assert list(found) == list(config_of(make).state_shapes)
    own = {name.rpartition(".")[2]: state[0].numel() for name, state in model.get_states().items()}
    assert own == config_of(make).parameters_of_state


@pytest.mark.parametrize("make", ["attention", "mamba-1", "mamba-1 in turn"])
def test_both_paths_of_a_trace_give_the_same_table(make: str) -> None:
    """The statistics of the states of Mamba-1 and of a model with attention, in and outside of the recurrence."""
    config = config_of(make)
    declared = MODELS["hybrid"].declared(config.to_dict()).for_wrap()
    model = sc.wrap(family_model(make), vocabulary=config.vocabulary, **declared)
    fused, generic = (sc.trace(model, ids(2, 40), every=4, path=path) for path in ("fused", "generic"))
    same(fused, generic)
    assert {row["component"] for row in fused.observations} == {"rwkv", "mamba"}


@every_make
def test_a_call_without_tokens_tells_the_same_heads_as_one_with_some(make: str) -> None:
    model = family_model(make)
    _, some = model.forward_with_statistics(ids(2, 4), every=1, entropy=True, running=None)
    running = {name: own["running"] for name, own in some.items()}
    _, none = model.forward_with_statistics(ids(2, 0), every=1, entropy=True, running=running)
    assert none.keys() == some.keys() == model.state_shapes.keys()
    for name, own in none.items():
        assert {key: x.shape[2:] for key, x in own.items()} == {key: x.shape[2:] for key, x in some[name].items()}
        assert torch.equal(own["running"], running[name]), name


# ----------------------------------------------------------------------------------------------------------- gradients


@every_make
def test_every_parameter_moves_the_output_as_its_gradient_says(make: str) -> None:
    """None has a gradient of 0; along a random direction in all that bear one name the slope is that of the loss."""
    model, draw, step = family_model(make, 2), generator(0), 1e-6
    first, inputs = some_states(model), ids(1, 5)

    def loss() -> Tensor:
        return model_from(model, first, inputs).log_softmax(-1)[..., 0].sum()

    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    slopes: dict[str, float] = {}
    directions: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, parameter), gradient in zip(named.items(), torch.autograd.grad(loss(), [*named.values()]), strict=True):
        assert gradient.any(), name
        place, direction = re.sub(r"blocks\.\d+", "blocks.N", name), normal(draw, *parameter.shape)
        slopes[place] = slopes.get(place, 0.0) + float((gradient * direction).sum())
        directions.setdefault(place, []).append((parameter, direction))
    for place, moves in directions.items():
        ends = []
        for side in (step, -step):
            with torch.no_grad(), moved(moves, side):
                ends.append(float(loss()))
        assert abs(slopes[place]) > 1e-6, place
        assert slopes[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7), place
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == (["blocks.0.fusion.weight", "blocks.1.fusion.weight"] if make == "fixed-sum" else [])


@contextmanager
def moved(moves: list[tuple[Tensor, Tensor]], by: float) -> Iterator[None]:
    """Parameters moved by so much of their directions."""
    before = [parameter.clone() for parameter, _ in moves]
    for parameter, direction in moves:
        parameter += by * direction
    yield
    for (parameter, _), value in zip(moves, before, strict=True):
        parameter.copy_(value)


@pytest.mark.parametrize("make", ["attention", "mamba-1", "sequential"])
def test_gradients_reach_the_states_given(make: str) -> None:
    """Through a later call too, against differences; not which places of a cache are filled."""
    model = family_model(make, 3)
    states = some_states(model)
    names = [name for name in states if not name.endswith("filled")]

    def losses(*chosen: Tensor) -> Tensor:
        model.set_states(states | dict(zip(names, chosen, strict=True)))
        model(ids(1, 2))
        return model(ids(1, 2, 2)).log_softmax(-1)[..., 0].sum(1)

    assert torch.autograd.gradcheck(losses, [states[name].requires_grad_() for name in names], fast_mode=True)


# -------------------------------------------------------------------------------------------- activation checkpointing


def told(model: HybridLanguageModel) -> list[Tensor]:
    """Two calls that tell their statistics, and the gradient through both: all that comes out, one after the other."""
    found, running = [], None
    for length in (7, 5):
        logits, own = model.forward_with_statistics(ids(2, length, length), every=2, entropy=True, running=running)
        running = {name: one["running"] for name, one in own.items()}
        found += [logits, *(x for one in own.values() for x in one.values())]
    before = model.get_signals()
    gradients = torch.autograd.grad(logits.square().sum(), [p for p in model.parameters() if p.requires_grad])
    signals = model.get_signals()
    assert signals.keys() == before.keys()
    assert all(torch.equal(signals[name], signal) for name, signal in before.items())  # of the last call, after it too
    return [*found, *gradients, *signals.values(), *model.get_states().values()]


@every_make
def test_computing_blocks_again_changes_nothing(make: str) -> None:
    """Outputs, statistics, gradients, signals and states to the last bit."""
    plain = family_model(make, dtype=torch.float32)
    again = copy.deepcopy(plain)
    again.activation_checkpointing = True
    for ours, theirs in zip(told(again), told(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert again.backend == plain.backend != "no call yet"


def test_a_gradient_can_be_asked_for_twice_and_through_states() -> None:
    model = family_model("attention")
    model.activation_checkpointing = True
    first = {name: state.requires_grad_() for name, state in some_states(model).items()}
    loss = model_from(model, first, ids(1, 4)).square().sum()
    one, two = (torch.autograd.grad(loss, [first["blocks.0.attention.keys"]], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, two)
    assert one.any()


def test_computing_blocks_again_holds_less_until_the_gradient() -> None:
    """What a call leaves in memory for its gradient: of a block only what it was given, stream and states."""
    config = replace(BASE, width=32, blocks=6, mamba_inner=48, feed_forward=64, attention_at=2)
    kept = {}
    for recomputing in (False, True):
        model = HybridLanguageModel(config)
        model.activation_checkpointing = recomputing
        kept[recomputing] = kept_bytes(model, ids(2, 96))
    stream, states = 4 * 2 * 96 * 32, 4 * 2 * sum(torch.Size(shape).numel() for shape in config.state_shapes.values())
    assert 6 * stream <= kept[True] <= 10 * stream + states  # into six blocks, out of the last, around the last norm
    assert kept[True] < kept[False] / 20


def kept_bytes(model: HybridLanguageModel, inputs: Tensor) -> int:
    """Bytes that a call keeps for its gradient, those of each storage once, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def given(block: nn.Module, arguments: tuple[Tensor, dict[str, Tensor], object]) -> None:
        for x in (arguments[0], *arguments[1].values()):  # kept by a block that is computed again, and told to no hook
            count(x)

    for block in model.blocks:
        block.register_forward_pre_hook(given)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        logits = model(inputs)
    assert logits.requires_grad
    return sum(size for storage, size in storages.items() if storage not in own)
