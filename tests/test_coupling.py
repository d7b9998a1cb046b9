"""coupling: kappa against numpy, its invariance, the gradient check, culprits by name, and what can't be said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from models import Declines, LinearRecurrentUnit, TinyHybrid, TinyMamba, TinyRWKV, fitted
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import CapabilityMissing, InputRefused
from statecheck.experiments import boundaries
from statecheck.plots import png
from statecheck.probes import GradientStateCouplingAnalyzer
from statecheck.probes.coupling import CouplingReading
from statecheck.testing.branches import AdditiveBranches
from statecheck.testing.oracles import topical_tokens
from statecheck.testing.two_branch import TwoBranch, turning_levels

TRAINED, AFTER = 64, 64
FAIL, PASS, SKIP = sc.Status.FAIL, sc.Status.PASS, sc.Status.SKIP
INCONCLUSIVE, NOT_APPLICABLE = sc.Status.INCONCLUSIVE, sc.Status.NOT_APPLICABLE
TWO = {"fast": [(0.5, 0.25)], "slow": [(0.9, 0.05)]}
ALIKE = {"fast": [(0.9, 0.03)], "slow": [(0.91, 0.027)]}
NAMES = {"fast": "*.fast.*", "slow": "*.slow.*"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def additive(module: AdditiveBranches) -> sc.StatefulModel:
    return sc.wrap(module, width=module.width, training_length=TRAINED, components=NAMES)


def two_branch(module: nn.Module) -> sc.StatefulModel:
    return sc.wrap(module, width=8, training_length=TRAINED, components={"fast": "fast.*", "slow": "slow.*"})


def measured(model: sc.StatefulModel, inputs: Tensor, seed: int = 0) -> CouplingReading:
    return GradientStateCouplingAnalyzer().measure(model, inputs, seed=seed)


def judged(model: sc.StatefulModel, inputs: Tensor) -> sc.Verdict:
    return sc.check_model(model, inputs=inputs, only=["coupling"])["coupling"]


def parts(verdict: sc.Verdict) -> dict[str, sc.Verdict]:
    return {one.id: one for one in verdict.parts}


class TestByHand:
    def test_two_leaky_branches_in_numpy(self) -> None:
        """h(p + k) = a^k h(p) + ..., y = sum of w h: dL/dh(p) = 2 / (64 D v) sum over k of w a^k (y - x)(p + k)."""
        module = AdditiveBranches(TWO, width=3).double()
        x = module.sample(20, TRAINED + AFTER + 1, seed=3).double()  # windows of the whole rows: what is read is known
        found = measured(additive(module), x)
        read, variance = x.numpy(), float((x - x.mean((0, 1))).square().mean())
        held = {}
        for name, [(a, w)] in TWO.items():
            h = np.zeros((20, TRAINED + AFTER + 1, 3))
            for t in range(h.shape[1]):
                h[:, t] = np.float32(a).item() * h[:, t - 1] + read[:, t] if t else read[:, t]
            held[name] = (np.float32(a).item(), np.float32(w).item(), h)
        y = sum(w * h for _, w, h in held.values())
        for name, (a, w, h) in held.items():
            effects, norms = [], []
            for p in boundaries(TRAINED):
                errors = y[:, p : p + AFTER] - read[:, p + 1 : p + AFTER + 1]  # of what is read after p elements
                powers = w * a ** np.arange(1, AFTER + 1)
                slope = 2 / (AFTER * 3 * variance) * np.einsum("k,nkd->nd", powers, errors)
                before = h[:, p - 1]
                effects.append(((before - before.mean(0)) * slope).sum(1))
                norms.append((slope**2).sum(1))
            assert found.kappa[name] == pytest.approx(np.sqrt(np.mean(np.square(effects))), rel=1e-9)
            assert found.raw[name] == pytest.approx(np.sqrt(np.mean(norms)), rel=1e-9)
        assert found.ratio == pytest.approx(max(found.kappa.values()) / min(found.kappa.values()))
        assert (found.positions, found.documents) == ((33, 45, 57, 64), 20)

    def test_it_is_the_first_order_effect_of_the_mean_of_documents(self) -> None:
        """(L(h) - L(h - e (h - h_mean))) / e of a GRU beside a leaky average, with no gradient taken."""
        module = TwoBranch().double()
        model, x = two_branch(module), turning_levels(17, TRAINED + AFTER + 1).double()
        found = measured(model, x)
        variance = float((x - x.mean((0, 1))).square().mean())
        effects: dict[str, list[Tensor]] = {"fast": [], "slow": []}
        with torch.no_grad():
            for p in boundaries(TRAINED):
                model.set_states(None)
                model(x[:, :p])
                held = model.get_states()

                def loss(states: sc.States, p: int = p) -> Tensor:
                    model.set_states(states)
                    errors = model(x[:, p : p + AFTER]) - x[:, p + 1 : p + AFTER + 1]
                    return errors.square().mean((1, 2)) / variance

                for name in effects:
                    h = held[f"{name}.h"]
                    shift = 1e-5 * (h - h.mean(0))
                    up, down = ({**held, f"{name}.h": h + sign * shift} for sign in (1, -1))
                    effects[name].append((loss(up) - loss(down)) / 2e-5)
        for name, values in effects.items():
            assert found.kappa[name] == pytest.approx(torch.stack(values).square().mean().sqrt().item(), rel=1e-6)

    def test_layers_and_heads_add_up_before_the_root(self) -> None:
        """Two equal layers have the same effect: twice that of one, in every document."""
        once = AdditiveBranches({"fast": [(0.5, 0.2)], "slow": [(0.9, 0.05)]}, width=2).double()
        twice = AdditiveBranches({"fast": [(0.5, 0.1), (0.5, 0.1)], "slow": [(0.9, 0.05)]}, width=2).double()
        x = once.sample(16, 160).double()
        one, two = (measured(additive(module), x) for module in (once, twice))
        assert two.kappa["fast"] == pytest.approx(one.kappa["fast"], rel=1e-6)
        assert two.layers["fast", 0] == pytest.approx(two.layers["fast", 1], rel=1e-12)
        assert two.layers["fast", 0] == pytest.approx(one.kappa["fast"] / 2, rel=1e-6)

    def test_heads_are_cut_along_their_axis(self) -> None:
        torch.manual_seed(0)
        module = TinyRWKV(heads=2, layers=1)
        components = {"shift": "*.shift", "wkv": "*.wkv"}
        tokens = topical_tokens(4, 140, 32)
        readings = []
        for axis in (1, 3):  # heads, or the four value channels taken for heads: another cut of the same sum
            states = {"*.wkv": {"head_axis": axis}}
            model = sc.wrap(module, training_length=TRAINED, components=components, states=states)
            readings.append(measured(model, tokens))
        assert [len(reading.heads) for reading in readings] == [2, 4]
        assert readings[0].kappa == readings[1].kappa
        assert set(readings[0].heads) == {("wkv", 0, 0), ("wkv", 0, 1)}

    def test_boundaries_lie_close_together_in_short_lengths(self) -> None:
        assert boundaries(256) == [225, 237, 249, 256]
        assert boundaries(1) == [1]


class Recoordinated(nn.Module):
    """TwoBranch whose slow state is kept in other coordinates: M h."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.inner = TwoBranch().double()
        self.matrix, self.inverse = matrix, torch.linalg.inv(matrix)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept
        self.inner.set_states({**kept, "slow.h": kept["slow.h"] @ self.inverse.T} if kept else None)
        y = self.inner(x)
        states = self.inner.get_states()
        self.kept = {**states, "slow.h": states["slow.h"] @ self.matrix.T}
        return y

    def get_states(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.kept = dict(states or {})


@pytest.mark.parametrize("kind", ["a random matrix", "a diagonal of condition 1e4"])
def test_no_linear_change_of_coordinates_moves_kappa(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 24
    matrix = 1e-3 * torch.randn(size, size, generator=generator, dtype=torch.double)
    if kind != "a random matrix":
        matrix = torch.logspace(-5, -1, size, dtype=torch.double).diag()
    x = turning_levels(16, 160).double()
    plain = measured(two_branch(Recoordinated(torch.eye(size, dtype=torch.double))), x)
    other = measured(two_branch(Recoordinated(matrix)), x)
    assert dict(other.kappa) == pytest.approx(dict(plain.kappa), rel=1e-6)
    assert other.ratio == pytest.approx(plain.ratio, rel=1e-6)
    assert other.interval == pytest.approx(plain.interval, rel=1e-6)
    assert other.raw["slow"] / plain.raw["slow"] > 100  # the norm moves by orders
    assert other.raw["fast"] == pytest.approx(plain.raw["fast"])


class TestGradient:
    @pytest.mark.parametrize("double", [True, False])
    def test_of_a_healthy_model_is_the_slope(self, double: bool) -> None:
        x = turning_levels(16, 160)
        module = TwoBranch()
        model = two_branch(module.double() if double else module)
        found = measured(model, x.double() if double else x)
        assert max(high for _, high in found.gradient_bounds.values()) < 0.01
        assert max(found.gradient_error.values()) < 1e-3

    def test_through_caches_and_convolution_windows(self) -> None:
        torch.manual_seed(0)
        tokens = topical_tokens(8, 140, 32)
        mamba = sc.wrap(
            fitted(TinyMamba(layers=1), tokens, steps=10),
            training_length=TRAINED,
            components={"conv": "*.conv", "ssm": "*.ssm"},
        )
        hybrid = sc.wrap(
            TinyHybrid(), training_length=TRAINED, components={"leak": ["leak", "position"], "att": "cache"}
        )
        for model in (mamba, hybrid):
            found = measured(model, tokens)
            assert max(high for _, high in found.gradient_bounds.values()) < 0.02
            assert min(found.kappa.values()) > 0

    def test_of_complex_states(self) -> None:
        x = 0.1 * torch.randn(16, 160, 4, generator=torch.Generator().manual_seed(0))
        found = measured(sc.wrap(LinearRecurrentUnit(), width=4, training_length=TRAINED), x)
        assert found.gradient_bounds["state"][1] < 0.01
        assert math.isnan(found.ratio)  # of one component
        assert found.kappa["state"] > 0

    @pytest.mark.parametrize(("share", "caught"), [(0.5, True), (0.2, True), (0.01, False)])
    def test_a_branch_that_is_detached_in_part(self, share: float, caught: bool) -> None:
        """`share` of one layer's output is detached: the rest of its gradient is there, and wrong by as much."""

        class PartlyDetached(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                slow = self.branch("slow")(x)
                return self.branch("fast")(x) + share * slow.detach() + (1 - share) * slow

        module = PartlyDetached(TWO)
        verdict = judged(additive(module), module.sample(16, 200))
        found = parts(verdict)["coupling.gradient"]
        assert found.measurements[0].value == pytest.approx(share, rel=0.05)
        assert (found.status is FAIL) is caught
        assert ("component slow" in found.reason and "detach" in found.reason) or not caught
        assert parts(verdict)["coupling.ratio"].measurements  # it has a kappa, if a wrong one

    def test_a_slope_within_rounding_is_inconclusive(self) -> None:
        module = AdditiveBranches({"fast": [(0.5, 0.25)], "slow": [(0.9, 0.05)]})
        x = module.sample(16, 200)
        module.branch("slow").scale = 3e-8
        found = parts(judged(additive(module), x))["coupling.gradient"]
        assert found.status is INCONCLUSIVE
        assert found.measurements[0].high > 0.05

    @pytest.mark.parametrize("bends", [3.0, 300.0, 3000.0])
    def test_a_right_gradient_does_not_fail_where_the_loss_bends_within_the_steps(self, bends: float) -> None:
        """Beyond a bend a wide difference is near 0, as if the gradient were wrong; only smaller steps know better."""

        class Bent(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return self.branch("fast")(x) + torch.sin(bends * self.branch("slow")(x))

        module = Bent(TWO)
        found = parts(judged(additive(module), module.sample(16, 200)))["coupling.gradient"]
        assert found.status is (PASS if bends < 10 else INCONCLUSIVE)

    def test_a_detached_branch_fails_where_the_loss_bends_a_little(self) -> None:
        class BentAndDetached(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                bent = torch.sin(3 * self.branch("slow")(x))
                return self.branch("fast")(x) + 0.5 * bent.detach() + 0.5 * bent

        module = BentAndDetached(TWO)
        found = parts(judged(additive(module), module.sample(16, 200)))["coupling.gradient"]
        assert (found.status, found.measurements[0].value) == (FAIL, pytest.approx(0.5, abs=0.05))

    def test_a_gradient_that_is_wrong_by_a_factor(self) -> None:
        class Louder(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, slope: Tensor) -> Tensor:
                return 2 * slope

        class Wrong(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return Louder.apply(self.branch("fast")(x)) + self.branch("slow")(x)

        module = Wrong(TWO)
        found = parts(judged(additive(module), module.sample(16, 200)))["coupling.gradient"]
        assert (found.status, found.measurements[0].value) == (FAIL, pytest.approx(0.5, rel=0.01))


class TestCulprits:
    def test_healthy_branches_of_one_size_pass(self) -> None:
        module = AdditiveBranches(ALIKE)
        verdict = judged(additive(module), module.sample(32, 200))
        assert verdict.status is PASS
        ratio = parts(verdict)["coupling.ratio"].measurements[0]
        assert 1 <= ratio.low <= ratio.value <= ratio.high < 2.5
        assert "kappa of" in ratio.note

    def test_a_detached_branch_fails_by_name(self) -> None:
        class Detached(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return self.branch("fast")(x) + self.branch("slow")(x).detach()

        module = Detached(TWO)
        verdict = judged(additive(module), module.sample(16, 200))
        by_name = parts(verdict)["coupling.ratio"]
        assert by_name.status is FAIL
        assert "slow: the gradient of the loss by its state is exactly 0, though the loss does move" in by_name.reason
        assert "it is detached" in by_name.reason
        gradient = parts(verdict)["coupling.gradient"]
        assert (gradient.status, gradient.measurements[0].value) == (FAIL, 1.0)
        assert gradient.measurements[0].where.component == "slow"

    def test_a_branch_times_zero_fails_by_name_and_has_no_slope(self) -> None:
        module = AdditiveBranches(TWO)
        x = module.sample(16, 200)
        module.branch("slow").scale = 0.0
        verdict = judged(additive(module), x)
        by_name = parts(verdict)["coupling.ratio"]
        assert by_name.status is FAIL
        assert "slow: the gradient of the loss by its state is exactly 0, and the loss does not move" in by_name.reason
        assert parts(verdict)["coupling.gradient"].status is PASS  # of the other branch
        reading = measured(additive(module), x)
        assert set(reading.broken) == {"slow"}
        assert (reading.kappa["slow"], math.isnan(reading.gradient_error["slow"])) == (0.0, True)

    def test_a_branch_times_a_hundredth_fails_by_its_ratio(self) -> None:
        module = AdditiveBranches(ALIKE)
        x = module.sample(32, 200)
        module.branch("slow").scale = 0.01
        verdict = judged(additive(module), x)
        found = parts(verdict)["coupling.ratio"]
        assert (found.status, found.measurements[0].where.component) == (FAIL, "fast")
        assert found.measurements[0].value == pytest.approx(100, rel=0.5)
        assert parts(verdict)["coupling.gradient"].status is PASS

    def test_a_state_that_is_not_carried_on(self) -> None:
        module = AdditiveBranches(TWO)
        x = module.sample(16, 200)
        module.branch("slow").carried = False
        found = parts(judged(additive(module), x))["coupling.ratio"]
        assert found.status is FAIL
        assert "slow" in found.reason
        assert "nothing reads it" in found.reason

    def test_a_state_that_is_the_same_in_all_documents(self) -> None:
        class Frozen(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                self.branch("slow").h = torch.ones_like(self.branch("slow").h)
                return y

        module = Frozen(TWO)
        found = parts(judged(additive(module), module.sample(16, 200)))["coupling.ratio"]
        assert (found.status, "its state is the same in all documents" in found.reason) == (FAIL, True)

    def test_one_of_three_is_left_out_by_name(self) -> None:
        branches = {**ALIKE, "dead": [(0.8, 0.02)]}
        module = AdditiveBranches(branches)
        module.branch("dead").scale = 0.0
        x = module.sample(32, 200)
        model = sc.wrap(
            module, width=module.width, training_length=TRAINED, components={n: f"*.{n}.*" for n in branches}
        )
        found = [one for one in judged(model, x).parts if one.id == "coupling.ratio"]
        assert sorted(str(one.status) for one in found) == ["FAIL", "PASS"]
        assert "dead" in next(one.reason for one in found if one.status is FAIL)

    def test_a_loss_that_is_not_finite_fails_by_name(self) -> None:
        class Overflows(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * (torch.inf if self.branch("fast").h is not None else 1.0)

        module = Overflows(TWO)
        found = parts(judged(additive(module), module.sample(16, 200)))["coupling.ratio"]
        assert (found.status, "not finite" in found.reason) == (FAIL, True)


class TestWhatCanNotBeSaid:
    def test_of_one_component(self) -> None:
        module = AdditiveBranches(TWO)
        verdict = judged(sc.wrap(module, width=module.width, training_length=TRAINED), module.sample(16, 200))
        assert (verdict.status, "one component (state)" in verdict.reason) == (NOT_APPLICABLE, True)

    def test_of_a_component_whose_state_is_a_position(self) -> None:
        torch.manual_seed(0)
        components = {"memory": ["leak", "cache"], "clock": "position"}
        model = sc.wrap(TinyHybrid(), training_length=TRAINED, components=components)
        verdict = judged(model, topical_tokens(16, 200, 32))
        assert (verdict.status, "(memory)" in verdict.reason) == (NOT_APPLICABLE, True)

    def test_on_fewer_than_sixteen_documents(self) -> None:
        module = AdditiveBranches(TWO)
        verdict = judged(additive(module), module.sample(15, 200))
        assert verdict.status is INCONCLUSIVE
        assert {one.id for one in verdict.parts} == {"coupling.ratio", "coupling.gradient"}
        reading = measured(additive(module), module.sample(15, 200))
        assert reading.ratio > 1
        assert all(map(math.isnan, reading.interval))

    def test_without_text(self) -> None:
        verdict = sc.check_model(additive(AdditiveBranches(TWO)), only=["coupling"])["coupling"]
        assert (verdict.status, "needs text" in verdict.reason) == (SKIP, True)

    def test_without_a_way_to_put_states_back(self) -> None:
        class Shows(AdditiveBranches):
            set_states = None  # type: ignore[assignment]

            def reset(self) -> None:
                AdditiveBranches.set_states(self, None)

        module = Shows(TWO)
        verdict = judged(additive(module), AdditiveBranches(TWO).sample(16, 200))
        assert (verdict.status, "set_states" in verdict.reason) == (SKIP, True)

    def test_without_gradients(self) -> None:
        class Inference(AdditiveBranches):
            @torch.no_grad()
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)

        module = Inference(TWO)
        verdict = judged(additive(module), module.sample(16, 200))
        assert (verdict.status, "gradient" in verdict.reason) == (SKIP, True)

    def test_where_the_backward_pass_raises(self) -> None:
        class Short(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, slope: Tensor) -> Tensor:
                if slope.shape[1] > 8:
                    raise NotImplementedError("no backward for more than 8 elements")
                return slope

        class Kernel(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return Short.apply(super().forward(x))

        module = Kernel(TWO)
        verdict = judged(additive(module), module.sample(16, 200))
        assert (verdict.status, "no backward for more than 8 elements" in verdict.reason) == (SKIP, True)

    def test_of_a_state_without_a_row_for_each_document(self) -> None:
        class Shared(AdditiveBranches):
            def get_states(self) -> dict[str, Tensor]:
                states = super().get_states()
                return {**states, "layers.0.slow.bias": torch.ones(1, 3)} if states else {}

        module = Shared(TWO)
        verdict = judged(additive(module), module.sample(16, 200))
        assert (verdict.status, "see S0" in verdict.reason) == (SKIP, True)

    def test_of_too_little_for_a_mean(self) -> None:
        module = AdditiveBranches(TWO)
        with pytest.raises(InputRefused, match="at least 2 documents, found 1"):
            measured(additive(module), module.sample(1, 200))
        with pytest.raises(CapabilityMissing, match="needs a loss"):
            measured(sc.wrap(nn.GRU(2, 3), training_length=8), torch.zeros(4, 20, 2))


class Stepwise(AdditiveBranches):
    """Takes one element a call once it is warm. `cut`: what it keeps between calls has no gradient."""

    cut = False

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 1 and self.branch("fast").h is not None:
            raise ValueError("one element a call")
        y = super().forward(x)
        if self.cut:
            for name in ("fast", "slow"):
                self.branch(name).h = self.branch(name).h.detach()  # type: ignore[union-attr]
        return y


class TestCalls:
    def test_one_element_a_call_gives_the_same_numbers(self) -> None:
        plain, stepwise = AdditiveBranches(TWO).double(), Stepwise(TWO).double()
        x = plain.sample(16, 200).double()
        model = additive(stepwise)
        assert sc.Capability.GRADIENT_SEQUENCE not in model.facts.capabilities
        one, other = measured(additive(plain), x), measured(model, x)
        assert dict(other.kappa) == pytest.approx(dict(one.kappa), rel=1e-9)

    def test_gradients_that_end_with_a_call_are_no_evidence(self) -> None:
        module = Stepwise(TWO)
        module.cut = True
        verdict = judged(additive(module), AdditiveBranches(TWO).sample(16, 200))
        assert (verdict.status, "end with a call of one element" in verdict.reason) == (SKIP, True)

    def test_a_model_that_ends_at_its_training_length_is_cut_before(self) -> None:
        module = AdditiveBranches(TWO)
        x = module.sample(16, 200)
        ends = Declines(module, raises_beyond=TRAINED)
        components = {"fast": ["*.fast.*", "read"], "slow": "*.slow.*"}
        found = measured(sc.wrap(ends, width=module.width, training_length=TRAINED, components=components), x)
        assert found.positions == (17, 23, 29, 32)

    def test_the_model_is_left_as_it_was(self) -> None:
        module = TwoBranch().train()
        model, x = two_branch(module), turning_levels(16, 160)
        with torch.no_grad():
            model(x[:3, :5])
        before, state = model.get_states(), torch.random.get_rng_state()
        measured(model, x)
        after = model.get_states()
        assert all(torch.equal(before[name], after[name]) and not after[name].requires_grad for name in before)
        assert module.training
        assert all(p.grad is None for p in module.parameters())
        assert torch.equal(state, torch.random.get_rng_state())


class TestReading:
    def test_agrees_with_the_row(self) -> None:
        module = AdditiveBranches({**ALIKE, "slow": [(0.91, 0.027), (0.5, 0.02)]})
        model, x = additive(module), module.sample(16, 200)
        reading, verdict = measured(model, x), judged(model, x)
        ratio = parts(verdict)["coupling.ratio"].measurements[0]
        assert (reading.ratio, *reading.interval) == (ratio.value, ratio.low, ratio.high)
        shown = {(one.where.component, one.where.layer): one.value for one in verdict.shown if one.name == "kappa"}
        whole = {name: shown[name, None] for name in reading.kappa}
        assert whole == dict(reading.kappa)
        assert {key: value for key, value in shown.items() if key[1] is not None} == dict(reading.layers)
        assert {series.label for series in verdict.series} == {"fast", "slow"}

    def test_as_a_table_and_a_picture(self) -> None:
        torch.manual_seed(0)
        components = {"shift": "*.shift", "wkv": "*.wkv"}
        model = sc.wrap(TinyRWKV(), training_length=TRAINED, components=components, states={"*.wkv": {"head_axis": 1}})
        reading = measured(model, topical_tokens(4, 140, 32))
        frame = reading.to_frame()
        assert len(frame) == len(reading.kappa) + len(reading.layers) + len(reading.heads) == 2 + 4 + 8
        assert list(frame.columns) == ["component", "layer", "head", "kappa", "raw", "gradient_error"]
        assert frame["kappa"].iloc[0] == reading.kappa["shift"]
        assert png(reading.plot()).startswith(b"\x89PNG")

    def test_is_that_of_its_seed(self) -> None:
        module = AdditiveBranches(TWO)
        model, x = additive(module), module.sample(16, 400)
        one, again, other = (measured(model, x, seed) for seed in (0, 0, 1))
        assert one == again
        assert one.kappa != other.kappa
