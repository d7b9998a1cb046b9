"""The protocol's helpers, the facts, and gradients through states against float64 autograd of the unrolled model."""

from __future__ import annotations

import pytest
import torch
from models import Declines, Integrator, TinyMamba, ViewsOfABuffer
from torch import Tensor, nn
from torch.nn import functional

import statecheck as sc
from statecheck.errors import CapabilityMissing, ContractError
from statecheck.states import clone, distance


def vectors(rows: int, time: int, width: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, time, width, generator=generator, dtype=torch.float64)


def rnn(kind: str, **options: object) -> sc.StatefulModel:
    torch.manual_seed(0)
    return sc.wrap(getattr(nn, kind)(3, 5, batch_first=True, **options).double())


KINDS = ("LSTM", "GRU", "RNN")


class TestHelpers:
    def test_a_wrapped_module_is_a_stateful_model(self) -> None:
        assert isinstance(sc.wrap(Integrator(), width=3), sc.StatefulModel)

    def test_advance_is_a_function_of_inputs_and_states(self) -> None:
        model, x = sc.wrap(Integrator(), width=3), vectors(2, 8, 3)
        whole, last = sc.advance(model, x, None)
        first, middle = sc.advance(model, x[:, :3], None)
        sc.advance(model, vectors(2, 5, 3, seed=9), None)  # something else in between
        second, end = sc.advance(model, x[:, 3:], middle)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=0)
        assert distance(end, last) < 1e-12

    @pytest.mark.parametrize("module", [ViewsOfABuffer(3), Integrator()], ids=["in place", "by value"])
    def test_advance_leaves_the_callers_tensors_alone(self, module: nn.Module) -> None:
        model = sc.wrap(module, width=3)
        x = vectors(2, 4, 3).to(next(module.parameters()).dtype)
        _, states = sc.advance(model, x, None)
        kept = clone(states)
        sc.advance(model, x, states)
        assert distance(states, kept) == 0

    def test_fresh_forgets_in_place_where_that_is_possible(self) -> None:
        model = sc.wrap(Integrator(), width=3)
        model(vectors(2, 3, 3))
        assert sc.fresh(model) is model
        assert model.get_states() == {}

    def test_fresh_rebuilds_what_can_only_be_observed(self) -> None:
        module = Declines(Integrator(), hides=["set_states"])
        model = sc.wrap(module, width=3)
        model(vectors(2, 3, 3))
        again = sc.fresh(model)
        assert again is not model
        assert again.get_states() == {}
        assert model.get_states()["h"].shape == (2, 3)

    def test_a_missing_capability_is_told_with_its_reason(self) -> None:
        model = sc.wrap(Declines(Integrator(), hides=["set_states"]), width=3)
        with pytest.raises(CapabilityMissing, match="no capability 'set_states': the module has no set_states"):
            sc.advance(model, vectors(2, 1, 3), {"h": torch.zeros(2, 3)})

    def test_names_of_states_by_component_and_layer(self) -> None:
        facts = sc.wrap(TinyMamba(), states={"*.conv": {"kind": "conv"}}).facts
        assert facts.names(layer=1) == ["blocks.1.ssm"]
        assert facts.names(recurrent=False) == ["blocks.0.conv", "blocks.0.ssm", "blocks.1.conv", "blocks.1.ssm"]
        assert facts.names(component="other") == []

    def test_only_memory_proper_is_recurrent(self) -> None:
        assert [kind for kind in sc.StateKind if kind.recurrent] == [sc.StateKind.MATRIX, sc.StateKind.VECTOR]


class TestGradients:
    """The tensor given is the one that gets the gradient, and it is the gradient of the unrolled model."""

    @pytest.mark.parametrize("time", [1, 6])
    @pytest.mark.parametrize("kind", KINDS)
    def test_reach_the_states_given(self, kind: str, time: int) -> None:
        model, x = rnn(kind, num_layers=2), vectors(2, time, 3)
        leaves = {
            name: torch.randn(2, *facts.shape, dtype=torch.float64).tanh().requires_grad_()
            for name, facts in model.facts.states.items()
        }
        outputs, after = sc.advance(model, x, leaves)
        ours = torch.autograd.grad(_scalar(outputs, after), list(leaves.values()))
        expected = torch.autograd.grad(_scalar(*_unrolled(kind, model, x, leaves)), list(leaves.values()))
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_through_two_calls_equal_those_of_one(self, kind: str) -> None:
        model, x = rnn(kind), vectors(2, 9, 3).requires_grad_()
        whole, _ = sc.advance(model, x, None)
        (expected,) = torch.autograd.grad(whole[:, 5:].square().sum(), x)
        _, middle = sc.advance(model, x[:, :5], None)
        after, _ = sc.advance(model, x[:, 5:], middle)
        (ours,) = torch.autograd.grad(after.square().sum(), x)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
        assert bool(ours[:, 0].any())

    def test_of_a_module_with_get_states_are_the_powers_of_its_retention(self) -> None:
        model = sc.wrap(Integrator(), width=3)
        leaf = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
        outputs, _ = sc.advance(model, vectors(1, 7, 3), {"h": leaf})
        (gradient,) = torch.autograd.grad(outputs[:, -1].sum(), leaf)
        torch.testing.assert_close(gradient, torch.full_like(gradient, 0.9**7), rtol=1e-12, atol=0)

    def test_capabilities_say_where_gradients_arrive(self) -> None:
        both = {sc.Capability.GRADIENT_STEP, sc.Capability.GRADIENT_SEQUENCE}
        assert both <= rnn("GRU").facts.capabilities

    def test_a_module_that_detaches_is_found_out(self) -> None:
        class Detaching(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    return super().forward(x)

        facts = sc.wrap(Detaching(), width=3).facts
        assert sc.Capability.GRADIENT_STEP not in facts.capabilities
        assert "do not depend on the tensors given" in facts.missing[sc.Capability.GRADIENT_STEP]

    def test_a_module_whose_cached_step_detaches_is_found_out_for_that_length(self) -> None:
        class CachedStep(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[1] == 1 and self.h is not None:
                    self.h = self.h.detach()
                return super().forward(x)

        facts = sc.wrap(CachedStep(), width=3).facts
        assert sc.Capability.GRADIENT_STEP not in facts.capabilities
        assert sc.Capability.GRADIENT_SEQUENCE in facts.capabilities


def _scalar(outputs: Tensor, states: sc.States) -> Tensor:
    return outputs.square().sum() + sum(value.pow(3).sum() for value in states.values())


def _unrolled(kind: str, model: sc.StatefulModel, x: Tensor, states: sc.States) -> tuple[Tensor, sc.States]:
    """The two layers written out cell by cell, from the equations of torch's documentation."""
    layer: nn.RNNBase = model.module.rnn  # type: ignore[attr-defined]
    after: sc.States = {}
    for i in range(2):
        h, c = states[f"layers.{i}.h"], states.get(f"layers.{i}.c")
        outputs = []
        for x_t in x.unbind(1):
            h, c = _cell(kind, layer, i, x_t, h, c)
            outputs.append(h)
        x = torch.stack(outputs, 1)
        after |= {f"layers.{i}.h": h} | ({} if c is None else {f"layers.{i}.c": c})
    return x, {name: after[name] for name in states}


def _cell(kind: str, layer: nn.RNNBase, i: int, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    w_ih, w_hh, b_ih, b_hh = (
        getattr(layer, f"{name}_l{i}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    a, b = functional.linear(x, w_ih, b_ih), functional.linear(h, w_hh, b_hh)
    if kind == "RNN":
        return torch.tanh(a + b), None
    if kind == "GRU":
        (r_a, z_a, n_a), (r_b, z_b, n_b) = a.chunk(3, 1), b.chunk(3, 1)
        z = torch.sigmoid(z_a + z_b)
        return (1 - z) * torch.tanh(n_a + torch.sigmoid(r_a + r_b) * n_b) + z * h, None
    assert c is not None
    i_gate, f_gate, g, o_gate = (a + b).chunk(4, 1)
    c = torch.sigmoid(f_gate) * c + torch.sigmoid(i_gate) * torch.tanh(g)
    return torch.sigmoid(o_gate) * torch.tanh(c), c


def test_set_states_refuses_names_that_it_does_not_know() -> None:
    model = rnn("LSTM")
    with pytest.raises(ContractError, match=r"expected a state named 'layers\.0\.c', found layers\.0\.h"):
        model.set_states({"layers.0.h": torch.zeros(2, 5)})
