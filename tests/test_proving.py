"""What a model tells of its states is held against them before it is used: culprits, each caught with its reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from observed_models import HEADS, WIDTH, Selective, Told, same, vectors, wrapped
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised
from statecheck.protocol import Capability
from statecheck.tracing import trace


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Late(Selective):
    """Tells of the step before."""

    def states_of(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        before = dict(self.held)
        outputs, found = super().states_of(x)
        if getattr(self, "telling", False) and before:
            found = {n: torch.cat([before[n][:, None], value[:, :-1]], 1) for n, value in found.items()}
        return outputs, found

    def forward_with_statistics(self, inputs: Tensor, **options: Any) -> Told:
        self.telling = True
        found = super().forward_with_statistics(inputs, **options)
        self.telling = False
        return found


class Altered(Selective):
    """Changes one thing of what it tells."""

    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        raise NotImplementedError

    def forward_with_statistics(self, inputs: Tensor, **options: Any) -> Told:
        return self.alter(*super().forward_with_statistics(inputs, **options))


class MixedHeads(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        told["layers.1.S"]["square_sum"] = told["layers.1.S"]["square_sum"].roll(1, dims=2)
        return outputs, told


class Still(Selective):
    def forward_with_statistics(self, inputs: Tensor, **options: Any) -> Told:
        before = dict(self.held)
        found = super().forward_with_statistics(inputs, **options)
        self.held = before
        return found


class Forgetful(Selective):
    def forward_with_statistics(self, inputs: Tensor, *, running: Any, **options: Any) -> Told:
        return super().forward_with_statistics(inputs, running=None, **options)


class OtherOutputs(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        return outputs * 1.01, told


class Broken(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        raise RuntimeError("no kernel for this")


class Incomplete(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        del told["layers.0.c"]
        return outputs, told


class NoMean(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        del told["layers.0.c"]["mean"]
        return outputs, told


class Loose(Altered):
    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        return outputs


class Narrow(Altered):
    """Counts by a share of 0.5."""

    def alter(self, outputs: Tensor, told: dict[str, dict[str, Tensor]]) -> Any:
        told["layers.0.S"]["near_largest"] = told["layers.0.S"]["near_largest"] + 2
        return outputs, told


CULPRITS: list[tuple[Selective, str]] = [
    (Late(), r"square_sum of state 'layers.0.S' is [\d.e-]+, and [\d.e-]+ by get_states\(\)"),
    (MixedHeads(), "square_sum of state 'layers.1.S' is"),
    (Still(), "it leaves other states behind than a call does"),
    (Forgetful(), "(near_largest|running) of state 'layers.0.S' is"),
    (OtherOutputs(), "its outputs are not those of a call"),
    (Broken(), "the model raised RuntimeError in forward_with_statistics: no kernel for this"),
    (Incomplete(), "no statistics of state 'layers.0.c': found layers.0.S, layers.1.S, layers.1.c"),
    (NoMean(), r"'mean' of state 'layers.0.c': expected a tensor \(3, 2, 1\), found NoneType"),
    (Loose(), r"forward_with_statistics returned a Tensor: expected \(outputs, statistics\)"),
    (Narrow(), "near_largest of state 'layers.0.S' is"),
]


class TestFoundByTrying:
    def test_a_model_that_tells_the_truth_has_the_capability(self) -> None:
        module = Selective()
        model = wrapped(module)
        assert Capability.STATISTICS in model.facts.capabilities
        assert Capability.STATISTICS not in model.facts.missing
        assert module.get_states() == {}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_in_every_dtype(self, dtype: torch.dtype) -> None:
        assert Capability.STATISTICS in wrapped(dtype=dtype).facts.capabilities

    @pytest.mark.parametrize(("module", "reason"), CULPRITS, ids=lambda one: type(one).__name__)
    def test_what_is_wrong_is_not_used_and_said(self, module: Selective, reason: str) -> None:
        model = wrapped(module)
        said = model.facts.missing[Capability.STATISTICS]
        assert re.search(reason, said), said
        assert Capability.STATISTICS not in model.facts.capabilities
        x = vectors(3, 40)
        found = trace(model, x, 4)
        assert found.path == f"generic: states read every 4 elements ({said})"
        same(trace(wrapped(), x, 4), found)
        with pytest.raises(CapabilityMissing, match="no capability 'statistics'"):
            model.forward_with_statistics(x, every=4, entropy=True, running=None)  # type: ignore[attr-defined]

    def test_heads_that_were_not_declared(self) -> None:
        model = wrapped(states={})
        said = model.facts.missing[Capability.STATISTICS]
        assert "expected shape (3, 2, 1) (one head, as no head_axis is declared), found (3, 2, 3)" in said

    def test_a_head_axis_that_is_not_there_is_refused_as_ever(self) -> None:
        with pytest.raises(ContractError, match="head_axis=7"):
            wrapped(states={"layers.*.S": {"head_axis": 7}})

    def test_a_module_without_the_method(self) -> None:
        model = sc.wrap(nn.GRU(4, 4))
        assert "no forward_with_statistics" in model.facts.missing[Capability.STATISTICS]

    def test_states_that_stay_zero_prove_nothing(self) -> None:
        module = Selective()
        nn.init.zeros_(module.project[0].weight)
        nn.init.zeros_(module.project[0].bias)
        assert "'layers.0.S' stayed zero" in wrapped(module).facts.missing[Capability.STATISTICS]

    def test_states_that_are_not_finite_prove_nothing(self) -> None:
        module = Selective()
        nn.init.constant_(module.mix.bias, torch.nan)
        assert "'layers.1.S' was not finite" in wrapped(module).facts.missing[Capability.STATISTICS]

    def test_a_module_that_can_not_be_copied(self) -> None:
        class Stuck(Selective):
            def __deepcopy__(self, memo: object) -> Any:
                raise TypeError("can't copy a lock")

        assert "can't be copied" in wrapped(Stuck()).facts.missing[Capability.STATISTICS]


class TestTheAdapter:
    def test_it_is_guarded_as_a_call_is(self) -> None:
        model: Any = wrapped()
        options: dict[str, Any] = {"every": 2, "entropy": False, "running": None}
        outputs, told = model.forward_with_statistics(vectors(2, 6), **options)
        assert outputs.shape == (2, 6, WIDTH)
        assert told["layers.0.S"]["mean"].shape == (2, 3, HEADS)
        assert "entropy" not in told["layers.0.S"]
        with pytest.raises(ContractError, match="the states hold 2 rows, the inputs 3"):
            model.forward_with_statistics(vectors(3, 6), **options)
        with pytest.raises(ContractError, match="expected vectors of width 6, found 5"):
            model.forward_with_statistics(torch.zeros(2, 6, 5).double(), **options)

    def test_what_the_module_raises_later_is_told(self) -> None:
        class Tires(Selective):
            def states_of(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
                if x.shape[1] > 100:
                    raise IndexError("too long")
                return super().states_of(x)

        with pytest.raises(ModelRaised, match="IndexError in forward_with_statistics: too long"):
            trace(wrapped(Tires()), vectors(2, 200), 1, apart=0)

    def test_a_stateful_model_of_its_own_is_asked(self) -> None:
        class Own:
            """A StatefulModel that is no adapter."""

            def __init__(self, inner: Any) -> None:
                self.inner, self.facts = inner, inner.facts
                self.get_states, self.set_states = inner.get_states, inner.set_states
                self.forward_with_statistics = inner.forward_with_statistics

            def __call__(self, inputs: Tensor, **options: Any) -> Tensor:
                return self.inner(inputs, **options)

        x, own = vectors(2, 50), Own(wrapped())
        same(trace(sc.wrap(own), x, 5), trace(wrapped(), x, 5, path="generic"))
        own.forward_with_statistics = lambda x, **options: (x, {})
        with pytest.raises(ContractError, match=r"gave no statistics of state 'layers\.0\.S': found none"):
            trace(own, x, 5)  # type: ignore[arg-type]
