"""`sc.wrap_op`: what is made of a function, that a right one conforms, and that each kind of wrong one is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conforming import CARRYING, broken, skipped
from statecheck_kernels import wkv6
from torch import Tensor
from torch.nn import functional

import statecheck as sc
from statecheck.errors import ContractError
from statecheck.protocol import native_of

KEEP = 0.9


def leaky(x: Tensor, *, initial_state: Tensor | None = None, output_final_state: bool = False) -> tuple:
    """h = 0.9 h + x, y = h."""
    h = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state
    outputs = []
    for x_t in x.unbind(1):
        h = KEEP * h + x_t
        outputs.append(h)
    return torch.stack(outputs, 1), h if output_final_state else None


def by_heads(q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gated linear attention, (batch, heads, time, ...): S = exp(g) S + k' v, y = q S."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        S = g[:, :, t, None, None].exp() * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], S))
    return torch.stack(outputs, 2), S


class Scan(NamedTuple):
    outputs: Tensor
    state: Tensor


def packed(x: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Scan:
    """The leaky sum of packed sequences, each from its own row of the state."""
    if cu_seqlens is None:
        return Scan(*leaky(x, initial_state=initial_state, output_final_state=True))
    bounds = list(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True))
    states = [None] * len(bounds) if initial_state is None else list(initial_state[:, None])
    parts = [
        leaky(x[:, a:b], initial_state=state, output_final_state=True)
        for (a, b), state in zip(bounds, states, strict=True)
    ]
    return Scan(torch.cat([y for y, _ in parts], 1), torch.cat([h for _, h in parts]))


class TestWhatIsMade:
    def test_outputs_and_state_are_the_functions_own(self) -> None:
        model = sc.wrap_op(leaky, {"x": (2,)})
        x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
        model(x[:, :2])
        torch.testing.assert_close(model(x[:, 2:]), torch.tensor([[[1.81, 1.8]]]))
        torch.testing.assert_close(model.get_states()["state"], torch.tensor([[1.81, 1.8]]))

    def test_features_go_to_the_arguments_in_order_each_by_way_of_its_transform(self) -> None:
        seen: dict[str, Tensor] = {}

        def spying(a: Tensor, b: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            seen.update(a=a, b=b)
            return a.flatten(2), a[:, -1]

        model = sc.wrap_op(spying, {"a": (2, 2), "b": ()}, transforms={"b": torch.neg})
        model(torch.arange(10.0).view(1, 2, 5))
        assert seen["a"].tolist() == [[[[0.0, 1.0], [2.0, 3.0]], [[5.0, 6.0], [7.0, 8.0]]]]
        assert seen["b"].tolist() == [[-4.0, -9.0]]

    def test_time_may_come_after_the_heads(self) -> None:
        shapes = {"q": (2, 3), "k": (2, 3), "v": (2, 4), "g": (2,)}
        model = sc.wrap_op(by_heads, shapes, transforms={"g": functional.logsigmoid}, time_axis=2)
        x = torch.randn(2, 5, 22, generator=torch.Generator().manual_seed(0))
        q, k, v, g = x.split([6, 6, 8, 2], 2)
        given = (a.unflatten(2, (2, -1)).transpose(1, 2) for a in (q, k, v))
        expected, last = by_heads(*given, functional.logsigmoid(g).transpose(1, 2))
        torch.testing.assert_close(model(x), expected.transpose(1, 2).flatten(2))
        torch.testing.assert_close(model.get_states()["state"], last)

    def test_tensors_among_the_options_are_parameters_and_the_rest_goes_along(self) -> None:
        def scaled(x: Tensor, rate: Tensor, power: int, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
            y, h = leaky(x, initial_state=h0, output_final_state=True)
            return rate**power * y, h

        model = sc.wrap_op(scaled, {"x": (1,)}, options={"rate": torch.tensor([3.0]), "power": 2})
        assert model(torch.ones(1, 1, 1)).item() == 9.0
        assert [name for name, _ in model.module.named_parameters()] == ["calls.gain", "calls.tensors.rate"]  # type: ignore[attr-defined]

    def test_the_state_has_the_dtype_that_the_operation_gives_it(self) -> None:
        def wide(x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            y, h = leaky(x.float(), initial_state=state, output_final_state=True)
            return y.to(x.dtype), h

        model = sc.wrap_op(wide, {"x": (3,)}, dtype=torch.bfloat16)
        assert (model.facts.dtype, model.facts.states["state"].dtype) == ("bfloat16", "float32")

    def test_a_chunk_size_of_the_signature_is_a_boundary(self) -> None:
        def chunked(x: Tensor, chunk_size: int = 24, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return leaky(x, initial_state=initial_state, output_final_state=True)

        assert sc.wrap_op(chunked, {"x": (1,)}, boundaries=(7,)).facts.boundaries == (7, 24)

    def test_uncached_is_the_reference(self) -> None:
        model = sc.wrap_op(leaky, {"x": (1,)}, reference=lambda x: (100 * x, None))
        uncached = native_of(model).uncached
        assert uncached is not None
        assert uncached(torch.ones(1, 2, 1), None).flatten().tolist() == [100.0, 100.0]

    def test_single_elements_on_a_warm_state_go_to_step(self) -> None:
        def doubled(x: Tensor, initial_state: Tensor | None = None, output_final_state: bool = True) -> tuple:
            return 2 * x, initial_state

        model = sc.wrap_op(leaky, {"x": (1,)}, step=doubled)
        assert [model(torch.ones(1, 1, 1)).item() for _ in range(2)] == [1.0, 2.0]

    def test_packed_sequences_start_from_nothing_and_the_first_of_a_row_from_its_state(self) -> None:
        model = sc.wrap_op(packed, {"x": (1,)})
        model(torch.tensor([[[10.0]], [[20.0]]]))
        segments = torch.tensor([[0, 0, 1], [4, 7, 7]])
        outputs = model(torch.ones(2, 3, 1), segments=segments)[..., 0]
        torch.testing.assert_close(outputs, torch.tensor([[10.0, 10.0, 1.0], [19.0, 1.0, 1.9]]))
        torch.testing.assert_close(model.get_states()["state"], torch.tensor([[1.0], [1.9]]))


class TestLaws:
    @pytest.mark.parametrize(
        "laws", [CARRYING, ("PACK", "GRAD", "PARITY", "NUM", "SIZE")], ids=["carrying", "the rest"]
    )
    def test_an_operation_of_our_own_conforms(self, laws: tuple[str, ...]) -> None:
        shapes = {"r": (2, 4), "k": (2, 4), "v": (2, 3), "log_w": (2, 4)}
        u = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        model = sc.wrap_op(
            wkv6,
            shapes,
            transforms={"log_w": functional.logsigmoid},
            options={"u": u, "form": "chunked"},
            reference=lambda r, k, v, log_w, u, form: wkv6(r, k, v, log_w, u, form="reference"),
        )
        assert broken(model, *laws) == []

    @pytest.mark.parametrize(
        ("law", "step"),
        [
            ("CHUNK", lambda x, h: (x, None if x.shape[1] > 1 else h)),
            ("STEP", lambda x, h: (x, None if x.shape[1] == 1 else h)),
            ("BATCH", lambda x, h: (x + 0.1 * x.roll(1, 0) * (len(x) > 1), h)),
            ("ALIAS", lambda x, h: (x, h if h is None else h.add_(1.0) - 1.0)),
        ],
    )
    def test_a_wrong_operation_is_caught(self, law: str, step: Callable[[Tensor, Any], tuple]) -> None:
        def wrong(x: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            x, h = step(x, initial_state)
            return leaky(x, initial_state=h, output_final_state=True)

        assert law in broken(sc.wrap_op(wrong, {"x": (3,)}), law)

    def test_one_that_starts_elsewhere_than_its_reference_is_caught(self) -> None:
        def ones(x: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            h = torch.ones_like(x[:, 0]) if initial_state is None else initial_state
            return leaky(x, initial_state=h, output_final_state=True)

        assert broken(sc.wrap_op(ones, {"x": (3,)}), "STEP") == []
        assert broken(sc.wrap_op(ones, {"x": (3,)}, reference=lambda x: leaky(x)), "STEP") == ["STEP"]

    def test_packed_sequences_that_meet_are_caught(self) -> None:
        def meeting(x: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Scan:
            if cu_seqlens is None:
                return packed(x, initial_state)
            whole = packed(x, None if initial_state is None else initial_state[:1])
            return Scan(whole.outputs, packed(x, initial_state, cu_seqlens).state)

        assert broken(sc.wrap_op(packed, {"x": (2,)}), "PACK") == []
        assert broken(sc.wrap_op(meeting, {"x": (2,)}), "PACK") == ["PACK"]

    def test_a_state_that_is_detached_has_no_gradient_to_judge(self) -> None:
        def detached(x: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            h = None if initial_state is None else initial_state.detach()
            return leaky(x, initial_state=h, output_final_state=True)

        missing = sc.wrap_op(detached, {"x": (2,)}).facts.missing
        assert "no gradient reaches the tensors given" in missing[sc.Capability.GRADIENT_SEQUENCE]

    def test_without_packing_the_law_is_left_out_with_the_reason(self) -> None:
        assert "its calls take no segments" in skipped(sc.wrap_op(leaky, {"x": (2,)}), "PACK")


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "said", "message"),
        [
            (lambda x: (x, x), {}, r"takes no initial state: it has x; say initial='name'"),
            (leaky, {"initial": "memory"}, "takes no memory: it has x, initial_state"),
            (lambda x, state=None: x, {}, "returned no final state"),
            (leaky, {"options": {"output_final_state": False}}, "returned no final state.*is a switch off"),
            (leaky, {"options": {"scale": 2}}, "takes no scale: it has x, initial_state"),
            (leaky, {"transforms": {"y": torch.exp}}, "transforms: no argument y; they are x"),
            (leaky, {"reference": lambda q: q}, "takes no x: it has q"),
        ],
        ids=["no initial", "another initial", "no final", "switched off", "option", "transform", "reference"],
    )
    def test_what_can_not_be_carried_on(self, function: Any, said: dict[str, Any], message: str) -> None:
        with pytest.raises(ContractError, match=message):
            sc.wrap_op(function, {"x": (2,)}, **said)

    def test_one_that_takes_whole_chunks_alone(self) -> None:
        def whole(x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            assert x.shape[1] % 8 == 0
            return leaky(x, initial_state=state, output_final_state=True)

        with pytest.raises(ContractError, match=r"AssertionError.*wrap a function that takes calls of any length"):
            sc.wrap_op(whole, {"x": (2,)})


def test_operations_of_fla_conform() -> None:
    simple = pytest.importorskip("fla.ops.simple_gla.naive")
    shapes = {"q": (2, 4), "k": (2, 4), "v": (2, 3), "g": (2,)}
    model = sc.wrap_op(
        simple.naive_chunk_simple_gla,
        shapes,
        transforms={"g": functional.logsigmoid},
        reference=simple.naive_recurrent_simple_gla,
    )
    assert model.facts.boundaries == (64,)
    assert broken(model, "STEP", "CHUNK", "PREFIX", "BATCH") == []
