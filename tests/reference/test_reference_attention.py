"""The attention anchor: its formula, its window, states that go over any cut, rows that forget by zeros alone."""

import math

import numpy as np
import pytest
import torch
from agreement import FIXED, TOLERANCE, error, randomised
from cuts import SEEDS, generator, normal, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statecheck_kernels import Observe
from statecheck_kernels.statistics import of_states
from statecheck_reference import attention
from statecheck_reference.attention import Attention
from torch import Tensor
from torch.nn import functional

WIDTH, HEADS = 6, 2
States = list[Tensor]
Array = NDArray[np.float64]


def layer_of(seed: int, window: int = 5) -> Attention:
    return randomised(lambda: Attention(WIDTH, HEADS, window).double(), seed)


def fresh(layer: Attention, batch: int) -> States:
    return [layer.output.weight.new_zeros(batch, *shape) for shape in layer.state_shapes.values()]


def held(layer: Attention, batch: int, seed: int) -> States:
    """States of which some places are empty, anywhere."""
    draw = generator(seed)
    keys, values, filled = (normal(draw, batch, *shape) for shape in layer.state_shapes.values())
    return [x.to(layer.output.weight.dtype) for x in (keys, values, (filled > -0.5).double())]


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return normal(generator(seed), *shape, WIDTH)


def read(layer: Attention, inputs: Tensor, states: States, lengths: list[int] | int = 1) -> tuple[Tensor, States]:
    """Outputs and the last states, of calls of these lengths."""
    outputs = []
    with torch.no_grad():
        for piece in inputs.split(lengths, 1):
            output, *states = layer(piece, *states)
            outputs.append(output)
    return torch.cat(outputs, 1), states


def by_the_formula(layer: Attention, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
    """The glossary in loops over tokens, heads and places of one row: outputs (T, W), and what is kept after them."""
    w_q, w_k, w_v = layer.qkv.weight.detach().numpy().reshape(3, HEADS, WIDTH // HEADS, WIDTH)
    keys, values, filled = (list(state) for state in states)  # one entry a place
    answers = np.zeros((len(x), HEADS, WIDTH // HEADS))
    for t, token in enumerate(x):
        keys, values, filled = [*keys, w_k @ token], [*values, w_v @ token], [*filled, 1.0]  # (H, D) each
        places = [s for s in range(len(keys) - layer.window, len(keys)) if filled[s] == 1.0]
        for h in range(HEADS):
            scores = [math.exp((w_q[h] @ token) @ keys[s][h] / math.sqrt(WIDTH // HEADS)) for s in places]
            for s, score in zip(places, scores, strict=True):
                answers[t, h] += score / sum(scores) * values[s][h]
    outputs = answers.reshape(len(x), WIDTH) @ layer.output.weight.detach().numpy().T
    return outputs, [np.array(kept[len(kept) - layer.window + 1 :]) for kept in (keys, values, filled)]


class TestFormula:
    @pytest.mark.parametrize("window", [2, 3, 9])
    @pytest.mark.parametrize("time", [1, 2, 5, 30])
    @pytest.mark.parametrize("new", [True, False])
    def test_the_layer_is_the_formula(self, time: int, window: int, new: bool) -> None:
        layer, inputs = layer_of(window, window), tokens(2, time)
        states = fresh(layer, 2) if new else held(layer, 2, 3)
        outputs, after = read(layer, inputs, states, time)
        for row in range(2):
            expected, kept = by_the_formula(layer, inputs[row].numpy(), [state[row].numpy() for state in states])
            assert error(outputs[row], torch.from_numpy(expected)) < TOLERANCE[torch.float64]
            for ours, theirs in zip(after, kept, strict=True):
                assert error(ours[row], torch.from_numpy(theirs)) < TOLERANCE[torch.float64]

    def test_numbers_by_hand(self) -> None:
        """Width 1. Without queries the answer is the mean of the last three values; with them the score of a token of
        0 is 0 and that of sqrt(ln 3) to itself ln 3, which share the weight 1 : 3."""
        layer = Attention(1, 1, window=3).double()
        with torch.no_grad():
            layer.qkv.weight.copy_(torch.tensor([[0.0], [1.0], [1.0]]))
            layer.output.weight.fill_(1)
        found, (_, values, filled) = read(layer, torch.tensor([1.0, 2, 3, 7]).double().view(1, 4, 1), fresh(layer, 1))
        assert found.flatten().tolist() == pytest.approx([1, 1.5, 2, 4])
        assert (values.flatten().tolist(), filled.tolist()) == ([3, 7], [[1, 1]])
        torch.nn.init.ones_(layer.qkv.weight)
        score = math.sqrt(math.log(3))
        found, _ = read(layer, torch.tensor([0, score]).double().view(1, 2, 1), fresh(layer, 1), 2)
        assert found.flatten().tolist() == pytest.approx([0, 0.75 * score], rel=1e-7)

    def test_a_window_as_long_as_the_text_is_plain_causal_attention(self) -> None:
        layer, inputs = layer_of(0, window=40), tokens(2, 40)
        query, key, value = layer.qkv(inputs).view(2, 40, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        answers = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        expected = layer.output(answers.transpose(1, 2).flatten(2))
        assert error(read(layer, inputs, fresh(layer, 2), 40)[0], expected) < TOLERANCE[torch.float64]

    def test_first_values_are_normal_with_the_inputs_share(self) -> None:
        torch.manual_seed(0)
        layer = Attention(width=400, heads=4, window=3)
        assert {name: tuple(x.shape) for name, x in layer.named_parameters()} == {
            "qkv.weight": (1200, 400),
            "output.weight": (400, 400),
        }
        for parameter in (x.detach() for x in layer.parameters()):
            assert float(parameter.std()) == pytest.approx(0.05, rel=0.01)
            assert abs(float(parameter.mean())) < 0.001

    @pytest.mark.parametrize(
        ("heads", "window", "said"),
        [(4, 5, "a multiple of heads = 4, found 6"), (2, 1, "at least 2 tokens, the present and one more, found 1")],
    )
    def test_shapes_that_make_no_layer_are_refused(self, heads: int, window: int, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Attention(6, heads, window)


class TestCuts:
    @settings(deadline=None, max_examples=25)
    @given(SEEDS, pieces(shortest=1), st.sampled_from([2, 5, 64, 70]), st.booleans())
    def test_the_states_go_over_any_cut(self, seed: int, lengths: list[int], window: int, new: bool) -> None:
        layer = layer_of(seed, window)
        start = fresh(layer, 2) if new else held(layer, 2, seed)
        inputs = tokens(2, sum(lengths) + 1, seed=seed + 1)
        stepwise = read(layer, inputs, start)
        for cuts in ([*lengths, 1], sum(lengths) + 1):
            for ours, theirs in zip(flat(read(layer, inputs, start, cuts)), flat(stepwise), strict=True):
                assert error(ours, theirs) < TOLERANCE[torch.float64]

    @pytest.mark.parametrize("lengths", FIXED)
    def test_the_states_go_over_cuts_in_float32(self, lengths: list[int]) -> None:
        layer = layer_of(len(lengths), 20)
        inputs, start = tokens(2, sum(lengths)), held(layer, 2, 1)
        exact = read(layer, inputs, start)
        layer.float()
        for cuts in (lengths, sum(lengths), 1):
            found = read(layer, inputs.float(), [state.float() for state in start], cuts)
            for ours, theirs in zip(flat(found), flat(exact), strict=True):
                assert ours.dtype == torch.float32
                assert error(ours, theirs) < TOLERANCE[torch.float32]

    def test_a_long_call_is_what_one_matrix_of_weights_gives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, inputs = layer_of(2, 33), tokens(1, 4200)
        start = held(layer, 1, 2)
        in_pieces = read(layer, inputs, start, 4200)
        monkeypatch.setattr(attention, "PIECE", 4200)
        for ours, theirs in zip(flat(in_pieces), flat(read(layer, inputs, start, 4200)), strict=True):
            assert error(ours, theirs) < TOLERANCE[torch.float64]

    def test_twice_the_text_has_twice_the_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And no more than P + PIECE of them a token, PIECE (P + PIECE) at once."""
        layer, sizes = layer_of(2, 33), []
        plain = functional.scaled_dot_product_attention

        def counted(*arguments: Tensor, attn_mask: Tensor) -> Tensor:
            sizes.append(attn_mask.numel())
            return plain(*arguments, attn_mask=attn_mask)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
        share = 32 + attention.PIECE
        for time in (2048, 4096):
            sizes.clear()
            read(layer, tokens(1, time), fresh(layer, 1), time)
            assert sum(sizes) == time * share
            assert max(sizes) == attention.PIECE * share

    def test_what_is_kept_is_a_copy_of_the_window_alone(self) -> None:
        """Neither the whole call stays in memory with it, nor does a write into it reach what was given."""
        layer = layer_of(0)
        start = held(layer, 2, 0)
        _, after = read(layer, tokens(2, 2), start, 2)
        for given_state, kept in zip(start, after, strict=True):
            assert kept.shape == given_state.shape
            assert kept.untyped_storage().nbytes() == kept.numel() * 8
            before = given_state.clone()
            kept.fill_(7)
            assert torch.equal(given_state, before)


def flat(found: tuple[Tensor, States]) -> list[Tensor]:
    return [found[0], *found[1]]


class TestForgetting:
    @pytest.mark.parametrize("other", [1.0, torch.nan])
    def test_a_row_cleared_by_zeros_is_new_and_the_other_rows_are_as_they_were(self, other: float) -> None:
        layer, inputs = layer_of(1), tokens(3, 7)
        going_on = held(layer, 3, 1)
        going_on[0][1] *= other  # whatever another row holds
        cleared = [state.clone() for state in going_on]
        for state in cleared:
            state[0] = 0
        for cuts in (7, 1):
            found, after = read(layer, inputs, cleared, cuts)
            before, kept = read(layer, inputs, going_on, cuts)
            new, at_first = read(layer, inputs, fresh(layer, 3), cuts)
            assert error(found[0], new[0]) < 1e-14
            assert not torch.equal(before[0, :4], new[0, :4])
            assert same(found[1:], before[1:])
            for one, two, three in zip(after, kept, at_first, strict=True):
                assert torch.equal(one[0], three[0])
                assert same(one[1:], two[1:])

    def test_what_an_empty_place_holds_is_not_read(self) -> None:
        """A first call with nothing filled is a fresh one, whatever the keys and values are."""
        layer, inputs = layer_of(2), tokens(2, 9)
        rubbish = held(layer, 2, 2)
        rubbish[0][0, 1], rubbish[1][1, 2] = torch.nan, torch.inf
        rubbish[2].zero_()
        for cuts in (9, 2, 1):
            expected, _ = read(layer, inputs, fresh(layer, 2), cuts)
            assert error(read(layer, inputs, rubbish, cuts)[0], expected) < 1e-14

    def test_a_place_is_filled_above_one_half(self) -> None:
        layer, inputs = layer_of(2), tokens(1, 3)
        keys, values, _ = held(layer, 1, 2)
        flags = [torch.tensor([x], dtype=torch.float64) for x in ([0.5, 0.51, -2, 3], [0, 1, 0, 1], [1, 1, 0, 1])]
        noisy, plain, other = (read(layer, inputs, [keys, values, flag], 3)[0] for flag in flags)
        assert torch.equal(noisy, plain)
        assert not torch.equal(other, plain)

    @pytest.mark.parametrize("value", [3.0, torch.nan, torch.inf])
    @pytest.mark.parametrize("place", [0, 5, 63, 70])
    def test_a_token_is_seen_by_its_window_and_by_nothing_else(self, place: int, value: float) -> None:
        """By itself and the four tokens after it: a NaN too spoils no earlier output of its call, and no later one."""
        layer, inputs = layer_of(3), tokens(1, 80)
        changed = inputs.clone()
        changed[0, place] = value
        for cuts in (80, [66, 14], 1):
            found, expected = (read(layer, x, fresh(layer, 1), cuts)[0][0] for x in (changed, inputs))
            alike = torch.isclose(found, expected, rtol=1e-13, atol=1e-14)
            seen = torch.zeros(80, 1, dtype=torch.bool)
            seen[place : place + 5] = True
            assert torch.equal(alike, ~seen.expand(80, WIDTH))

    @pytest.mark.parametrize("other", [2.0, torch.nan])
    def test_a_row_does_not_see_another(self, other: float) -> None:
        layer, inputs = layer_of(3), tokens(3, 12)
        changed, start = inputs.clone(), held(layer, 3, 4)
        changed[1] *= other
        moved = [torch.stack([state[0], other * state[1], state[2]]) for state in start]
        for cuts in (12, 1):
            found, expected = flat(read(layer, changed, moved, cuts)), flat(read(layer, inputs, start, cuts))
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
            assert not torch.equal(found[0][1], expected[0][1])


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.nan_to_num(1e9), two.nan_to_num(1e9))


class TestOrder:
    def test_the_order_of_earlier_tokens_in_the_window_makes_no_difference(self) -> None:
        """There are no positions: only which tokens were read, not when, as long as all are in the window."""
        layer, inputs = layer_of(4, window=8), tokens(2, 8)
        turned = inputs[:, [4, 2, 6, 0, 5, 1, 3, 7]]
        for cuts in (8, 1):
            found, expected = (read(layer, x, fresh(layer, 2), cuts)[0] for x in (turned, inputs))
            assert error(found[:, -1], expected[:, -1]) < 1e-14
            assert error(found[:, -2], expected[:, -2]) > 0.01  # of another token
        beyond, expected = (
            read(layer, x, fresh(layer, 2), 9)[0] for x in (with_one_more(turned), with_one_more(inputs))
        )
        assert error(beyond[:, -1], expected[:, -1]) > 0.01  # another token has left the window

    def test_places_of_the_states_may_be_exchanged_together(self) -> None:
        layer, inputs = layer_of(4), tokens(2, 1)
        start = held(layer, 2, 5)
        order = [2, 0, 3, 1]
        expected, _ = read(layer, inputs, start)
        assert error(read(layer, inputs, [state[:, order] for state in start])[0], expected) < 1e-14
        keys, values, filled = start
        assert error(read(layer, inputs, [keys[:, order], values, filled])[0], expected) > 0.01


def with_one_more(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, tokens(len(inputs), 1, seed=9)], 1)


class TestGradients:
    @pytest.mark.parametrize("time", [1, 3])
    def test_gradients_reach_inputs_states_and_every_parameter(self, time: int) -> None:
        """All outputs of the layer, in float64, against differences."""
        layer = layer_of(5, window=4)
        names, parameters = zip(*layer.named_parameters(), strict=True)
        *cached, filled = held(layer, 2, 6)

        def call(inputs: Tensor, keys: Tensor, values: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            arguments = (inputs, keys, values, filled)
            return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), arguments)

        leaves = [tokens(2, time), *cached, *(parameter.detach().clone() for parameter in parameters)]
        assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in leaves])

    def test_the_gradient_of_a_state_ends_with_the_window(self) -> None:
        """The oldest place is seen by the first token alone; an empty place by none."""
        layer = layer_of(5, window=4)
        keys, values, filled = held(layer, 1, 6)
        filled[:] = torch.tensor([1.0, 0, 1])
        values.requires_grad_()
        outputs = layer(tokens(1, 4), keys, values, filled)[0]
        reached = [torch.autograd.grad(outputs[:, t].sum(), values, retain_graph=True)[0] for t in range(4)]
        assert [[bool(place.any()) for place in gradient[0]] for gradient in reached] == [
            [True, False, True],
            [False, False, True],
            [False, False, True],
            [False, False, False],
        ]


class TestStatistics:
    @pytest.mark.parametrize("entropy", [True, False])
    @pytest.mark.parametrize("every", [1, 3, 50])
    def test_they_are_those_of_the_states_after_each_token(
        self, every: int, entropy: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Call after call, each given what the one before held; outputs and states are those of a plain call."""
        monkeypatch.setattr(attention, "STRETCH", 4)
        layer = layer_of(6)
        states, running = fresh(layer, 2), dict.fromkeys(layer.state_shapes)
        for length in (7, 1, 40):
            inputs = tokens(2, length, seed=length)
            asked = {name: Observe(every, entropy, held) for name, held in running.items()}
            plain, after = read(layer, inputs, states, length)
            with torch.no_grad():
                told = layer(inputs, *states, asked)
            assert all(torch.equal(x, y) for x, y in zip(told, [plain, *after], strict=True))
            statistics = layer.statistics
            for name, seen in gathered(layer, inputs, states).items():
                found, expected = statistics[name], of_states(seen, Observe(every, entropy, running[name]))
                assert found is not None
                assert found.largest.shape == (2, length // every, 1 if name == "filled" else HEADS)
                assert found.items().keys() == expected.items().keys()
                for key, value in expected.items().items():
                    torch.testing.assert_close(found.items()[key], value, rtol=1e-12, atol=1e-14, msg=f"{name} {key}")
                running[name] = found.running
            states = after

    def test_only_what_is_asked_for_is_told_and_nothing_of_the_call_before(self) -> None:
        layer = layer_of(6)
        start = fresh(layer, 1)
        layer(tokens(1, 3), *start, {"values": Observe(), "filled": Observe()})
        told = layer.statistics
        assert told["keys"] is None
        assert told["values"] is not None
        assert not told["values"].square_sum.requires_grad
        assert told["filled"] is not None
        assert told["filled"].mean.flatten().tolist() == [0.25, 0.5, 0.75]
        layer(tokens(1, 3), *start)
        assert layer.statistics == {"keys": None, "values": None, "filled": None}


def gathered(layer: Attention, inputs: Tensor, states: States) -> dict[str, Tensor]:
    """The states after each token, (B, T, H, units), read one token at a time."""
    seen: dict[str, States] = {name: [] for name in layer.state_shapes}
    for token in inputs.split(1, 1):
        _, states = read(layer, token, states)
        for name, state in zip(seen, states, strict=True):
            seen[name].append(state.unsqueeze(1) if name == "filled" else state.transpose(1, 2).flatten(2))
    return {name: torch.stack(kept, 1) for name, kept in seen.items()}
