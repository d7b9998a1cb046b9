"""The machinery of ablations: losses, donors, hooks that are taken off again, outputs and states of the intact run."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from branch_cases import MODULES, STATES, TRAINED, additive, as_numpy, constants, states_over_time, wrapped
from models import TinyTransformer
from torch import Tensor, nn
from torch.nn import functional

import statecheck as sc
from statecheck.errors import CapabilityMissing
from statecheck.experiments import (
    ablate_outputs,
    ablate_states,
    ablated_modules,
    credited,
    document_losses,
    draw_donors,
    hooked,
    loss_scale,
    losses,
    of_donors,
)
from statecheck.statistics import mean_t


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestLosses:
    @pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
    def test_cross_entropy_is_minus_the_log_of_the_softmax(self, dtype: torch.dtype, close: float) -> None:
        outputs = 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
        targets = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
        p = np.exp(as_numpy(outputs))
        p /= p.sum(axis=2, keepdims=True)
        truth = -np.log(np.take_along_axis(p, targets.numpy()[..., None], 2))[..., 0]
        found = losses(outputs, targets, "cross_entropy")
        assert found.dtype == torch.float64
        assert as_numpy(found) == pytest.approx(truth, abs=close)

    def test_half_precision_is_summed_in_single(self) -> None:
        outputs, targets = torch.zeros(1, 1, 70_000, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.long)
        assert losses(outputs, targets, "cross_entropy").item() == pytest.approx(np.log(70_000), rel=1e-6)

    def test_of_a_document_do_not_hang_on_the_calls(self) -> None:
        module = additive()
        windows = module.sample(3, 301)
        y = (constants(module)[1][:, None, None, None] * states_over_time(module, as_numpy(windows))).sum(0)
        truth = ((y[:, :-1] - as_numpy(windows)[:, 1:]) ** 2).mean(axis=(1, 2))
        assert as_numpy(document_losses(sc.fresh(wrapped(module)), windows)) == pytest.approx(truth)

    def test_the_scale_of_vectors_is_their_variance_and_not_their_mean(self) -> None:
        facts = wrapped(additive()).facts
        x = torch.randn(8, 50, 16, generator=torch.Generator().manual_seed(0)).double()
        truth = np.var(as_numpy(x).reshape(-1, 16), axis=0).mean()
        assert loss_scale(x, facts) == pytest.approx(truth)
        assert loss_scale(1000 + 3 * x, facts) == pytest.approx(9 * truth)
        assert loss_scale(torch.ones(2, 3, 16), facts) == 1.0


class TestDonors:
    @pytest.mark.parametrize(("n", "times"), [(2, 1), (5, 4), (16, 4), (33, 4), (3, 7)])
    def test_nobody_is_his_own_and_all_give_as_often_as_they_take(self, n: int, times: int) -> None:
        donors = draw_donors(n, times, generator())
        assert donors.shape == (times, n)
        assert not (donors == np.arange(n)).any()
        assert all(sorted(row) == list(range(n)) for row in donors.tolist())
        different = min(times, n - 1)
        assert all(len(set(column)) == different for column in donors.T.tolist())

    def test_they_are_seeded(self) -> None:
        assert np.array_equal(draw_donors(16, 4, generator(1)), draw_donors(16, 4, generator(1)))
        assert not np.array_equal(draw_donors(16, 4, generator(1)), draw_donors(16, 4, generator(2)))

    def test_one_document_has_none(self) -> None:
        with pytest.raises(ValueError, match="at least 2 documents"):
            draw_donors(1, 4, generator())

    def test_credit_keeps_the_mean(self) -> None:
        table, donors = generator().normal(size=(4, 16)), draw_donors(16, 4, generator())
        assert credited(table, donors).mean() == pytest.approx(table.mean())

    def test_intervals_cover_what_hangs_on_donors_as_much_as_on_recipients(self) -> None:
        """Effects (B_j - B_i)^2, mean 2: without the donors' part, intervals cover three quarters of the time."""
        rng, hits = generator(), {"both": 0, "recipients": 0}
        for _ in range(100):
            b, donors = rng.normal(size=(24, 8)), draw_donors(24, 4, rng)
            table = ((b[donors] - b) ** 2).mean(axis=2)
            for name, values in (("both", credited(table, donors)), ("recipients", table.mean(axis=0))):
                estimate = mean_t(values, rng)
                hits[name] += estimate.low <= 2 <= estimate.high
        assert hits["both"] >= 88
        assert hits["recipients"] <= 82

    def test_states_without_a_row_for_each_document_can_not_be_exchanged(self) -> None:
        with pytest.raises(CapabilityMissing, match=r"'bias' has shape \(1, 2\) for a batch of 3"):
            of_donors({"bias": torch.ones(1, 2)}, np.array([1, 2, 0]))


Pair = namedtuple("Pair", "first second")


class TestHooks:
    @pytest.mark.parametrize(
        "returned", [lambda x: (x, 7), lambda x: [x, 7], lambda x: Pair(x, 7)], ids=["tuple", "list", "named"]
    )
    def test_of_several_things_the_first_is_the_output(self, returned: Callable[[Tensor], Any]) -> None:
        class Several(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return returned(x)

        module = nn.Sequential(Several())
        with hooked(module, ["0"], lambda name, value: value + 1):
            output = module(torch.zeros(2))
        assert type(output) is type(returned(torch.zeros(2)))
        assert output[0].tolist() == [1, 1]
        assert output[1] == 7

    def test_they_are_off_afterwards_whatever_happens(self) -> None:
        def raises(name: str, value: Tensor) -> Tensor:
            raise RuntimeError("in the middle")

        module = nn.Sequential(nn.Identity())
        with pytest.raises(RuntimeError, match="in the middle"), hooked(module, ["0"], raises):
            module(torch.zeros(2))
        assert not module[0]._forward_hooks
        assert module(torch.zeros(2)).tolist() == [0, 0]

    def test_what_is_no_tensor_can_not_be_replaced(self) -> None:
        class Named(nn.Module):
            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"y": x}

        module = Named()
        holder = nn.Sequential(module)
        with (
            pytest.raises(CapabilityMissing, match="module '0' returns a dict"),
            hooked(holder, ["0"], lambda *_: None),
        ):
            holder(torch.zeros(2))


class TestModules:
    def test_a_component_owns_what_its_patterns_name_and_not_what_lies_inside(self) -> None:
        class Deep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fast = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))

        components = {"a": sc.ComponentFacts(modules=("layers.*.fast", "layers.*.fast.*"))}
        module = nn.ModuleDict({"layers": nn.ModuleList([Deep(), Deep()])})
        model: Any = SimpleNamespace(module=module, facts=SimpleNamespace(components=components))
        assert ablated_modules(model) == {"a": ("layers.0.fast", "layers.1.fast")}

    def test_none_where_one_component_names_none(self) -> None:
        model = sc.wrap(additive(), width=16, components=STATES, modules={"fast": MODULES["fast"]})
        assert ablated_modules(model) == {}


class Stack(nn.Module):
    """Two layers of "a", each fed by the layer below; "b" adds nothing but is there. y = the second layer of "a"."""

    def __init__(self, *, cells: bool = False, flat: bool = False, direct: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.b = nn.Linear(3, 3)
        self.cells, self.flat, self.direct = cells, flat, direct
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for x_t in x.split(1 if self.cells else max(1, x.shape[1]), 1):
            y = 0.0 * self._layer(self.b, x_t)
            for layer in self.a:
                x_t = torch.tanh(self._layer(layer, x_t))
            outputs.append(x_t + y)
        self.h = x.sum(1) if self.h is None else self.h + x.sum(1)
        return torch.cat(outputs, 1)

    def _layer(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if self.direct:
            return functional.linear(x, layer.weight, layer.bias)
        return layer(x.flatten(0, 1)).view(x.shape) if self.flat else layer(x)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"a.h": self.h, "b.h": self.h}

    def set_states(self, states: dict[str, Tensor] | None) -> None:
        self.h = None if states is None else states["a.h"]


def stack(**options: bool) -> sc.StatefulModel:
    names = {"a": "a.*", "b": "b.*"}
    return sc.wrap(Stack(**options), width=3, components=names, modules={"a": "a.*", "b": "b"}, training_length=20)


def vectors(n: int = 6, time: int = 21) -> Tensor:
    return torch.randn(n, time, 3, generator=torch.Generator().manual_seed(0))


class TestOutputs:
    def test_donors_outputs_are_those_of_their_intact_run(self) -> None:
        """The last layer of "a" is the output: with "a" from a donor the loss is that of the donor's own outputs. Had
        the first layer's exchange reached the second one's, it would be that of the donor's donor."""
        model, windows = stack(), vectors()
        found = ablate_outputs(model, windows, 4, generator())
        outputs = model(windows[:, :-1]) if model.set_states(None) is None else None
        for row, time in zip(found.donors, found.without["a"], strict=True):
            truth = (outputs[torch.from_numpy(row)] - windows[:, 1:]).square().mean(dim=(1, 2))  # type: ignore[index]
            assert time == pytest.approx(as_numpy(truth), rel=1e-6)
        assert np.array_equal(found.without["b"], np.tile(found.intact, (4, 1)))  # exactly

    def test_modules_may_be_called_once_a_token(self) -> None:
        whole, cells = (ablate_outputs(stack(cells=c), vectors(), 4, generator()) for c in (False, True))
        assert cells.without["a"] == pytest.approx(whole.without["a"], rel=1e-5)
        assert cells.intact == pytest.approx(whole.intact, rel=1e-5)

    def test_documents_can_be_ablated_in_groups(self) -> None:
        windows = vectors(13)
        found = ablate_outputs(stack(), windows, 4, generator(), most=1)
        groups = [range(0, 7), range(7, 13)]
        for group in groups:
            assert set(found.donors[:, group].ravel().tolist()) == set(group)
        assert not (found.donors == np.arange(13)).any()
        alone = ablate_outputs(stack(), windows, 4, generator())
        assert found.intact == pytest.approx(alone.intact, rel=1e-6)

    def test_full_enumeration_is_exact(self) -> None:
        """All ordered pairs of 8 documents: mean over i != j, t of (e_i + f_i - f_j)^2 - e_i^2, summed up in numpy."""
        module = additive()
        windows = module.sample(8, 33)
        found = ablate_outputs(wrapped(module), windows, 7, generator()).effects().mean(axis=0)
        f = constants(module)[1][:, None, None, None] * states_over_time(module, as_numpy(windows)[:, :-1])
        e = as_numpy(windows)[:, 1:] - f.sum(0)
        pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
        truth = [np.mean([((e[i] + g[i] - g[j]) ** 2 - e[i] ** 2).mean() for i, j in pairs]) for g in f]
        assert found == pytest.approx(truth, rel=1e-9)
        # The same by hand: twice the variance over documents (unbiased), and what the error knows of f.
        spread = [2 * g.var(axis=0, ddof=1).mean() + 16 / 7 * (e * (g - g.mean(axis=0))).mean() for g in f]
        assert found == pytest.approx(spread, rel=1e-9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"flat": True}, r"module 'b' returns an output of shape \(32, 3\) for 2 documents"),
            ({"direct": True}, r"component 'a': its modules \(a.0, a.1\) are never called"),
        ],
    )
    def test_outputs_that_can_not_be_exchanged(self, options: dict[str, bool], message: str) -> None:
        model = stack(**options)
        with pytest.raises(CapabilityMissing, match=message):
            ablate_outputs(model, vectors(), 4, generator())
        assert not any(child._forward_hooks for child in model.module.modules())  # type: ignore[attr-defined]

    def test_a_module_that_is_not_called_alike_twice(self) -> None:
        class Fickle(Stack):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                Fickle.calls += 1
                self.cells = Fickle.calls > 60
                return super().forward(x)

        names = {"a": "a.*", "b": "b.*"}
        model = sc.wrap(Fickle(), width=3, components=names, modules={"a": "a.*", "b": "b"}, training_length=20)
        Fickle.calls = 58  # the probe, the intact run; then it changes its ways
        with pytest.raises(CapabilityMissing, match="is not called alike in two runs"):
            ablate_outputs(model, vectors(), 4, generator())


class TestStates:
    def test_are_taken_from_the_donor_before_every_token(self) -> None:
        """f_i(t) = w (a h_j(t-1) + x_i(t)) with all ordered pairs, in numpy; nothing is exchanged before the first."""
        module = additive()
        windows = module.sample(6, 25)
        found = ablate_states(wrapped(module, modules=False), windows, 5, generator())
        a, w = constants(module)
        x = as_numpy(windows)
        h = states_over_time(module, x[:, :-1])
        before = np.concatenate([np.zeros_like(h[:, :, :1]), h[:, :, :-1]], axis=2)  # h(t-1)
        e = x[:, 1:] - (w[:, None, None, None] * h).sum(0)
        assert found.by == "state"
        assert found.intact == pytest.approx((e**2).mean(axis=(1, 2)))
        for b, component in enumerate(STATES):
            for time, donors in enumerate(found.donors):
                moved = w[b] * a[b] * (before[b] - before[b][donors])
                assert found.without[component][time] == pytest.approx(((e + moved) ** 2).mean(axis=(1, 2)))

    def test_a_cache_of_keys_and_values_is_state(self) -> None:
        torch.manual_seed(0)
        names = {"keys": "*.k", "values": "*.v"}
        model = sc.wrap(TinyTransformer(), components=names, training_length=TRAINED)
        windows = torch.randint(32, (6, 20), generator=torch.Generator().manual_seed(0))
        effects = ablate_states(model, windows, 5, generator()).effects()
        assert (np.abs(effects) > 1e-6).all()

    def test_without_set_states_there_is_none(self) -> None:
        model = wrapped(additive(), modules=False)
        facts = sc.ModelFacts(**{**vars(model.facts), "capabilities": frozenset({sc.Capability.RESET})})
        with pytest.raises(CapabilityMissing, match="set_states"):
            ablate_states(model.with_facts(facts), vectors(), 4, generator())  # type: ignore[attr-defined]

    def test_a_component_with_neither_modules_nor_states_can_not_be_ablated(self) -> None:
        model = wrapped(additive(), modules=False)
        facts = model.facts
        states = {name: sc.StateFacts(**{**vars(s), "component": "fast"}) for name, s in facts.states.items()}
        alone = sc.ModelFacts(**{**vars(facts), "states": states})
        with pytest.raises(CapabilityMissing, match="component 'slow' has no states, and no modules"):
            ablate_states(model.with_facts(alone), additive().sample(6, 20), 4, generator())  # type: ignore[attr-defined]
