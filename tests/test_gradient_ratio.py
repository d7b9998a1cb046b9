"""gradient-ratio: against sensitivities computed in numpy, its bands, culprits by name, and what can't be said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import Declines
from torch import Tensor, nn
from torch.nn.utils import parametrize

import statecheck as sc
from statecheck.errors import CapabilityMissing
from statecheck.probes.contract import Evidence, gather
from statecheck.probes.gradient_ratio import NAME, balanced, parameters_of
from statecheck.suite import judge, load_suite
from statecheck.testing.branches import AdditiveBranches
from statecheck.testing.two_branch import TwoBranch, turning_levels
from statecheck.verdict import Measurement, Outcome

TRAINED = 32
FAIL, PASS, SKIP, WARN = sc.Status.FAIL, sc.Status.PASS, sc.Status.SKIP, sc.Status.WARN
INCONCLUSIVE, NOT_APPLICABLE = sc.Status.INCONCLUSIVE, sc.Status.NOT_APPLICABLE
TWO = {"fast": [(0.5, 0.25)], "slow": [(0.9, 0.05)]}
NAMES = {"fast": "*.fast.*", "slow": "*.slow.*"}
PREFIXES = {"fast": "fast.*", "slow": "slow.*"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def additive(module: AdditiveBranches, **said: Any) -> sc.StatefulModel:
    parameters = said.pop("parameters", NAMES)
    return sc.wrap(module, width=module.width, training_length=TRAINED, components=NAMES, parameters=parameters, **said)


def two_branch(module: nn.Module) -> sc.StatefulModel:
    return sc.wrap(module, width=8, training_length=TRAINED, components=PREFIXES, parameters=PREFIXES)


def judged(model: sc.StatefulModel, inputs: Tensor | None) -> sc.Verdict:
    return sc.check_model(model, inputs=inputs, only=["gradient-ratio"])["gradient-ratio"]


def value(verdict: sc.Verdict) -> float:
    return verdict.parts[0].measurements[0].value


def shown(verdict: sc.Verdict, name: str) -> float:
    return next(one.value for one in verdict.shown if one.name == name)


class TestByHand:
    def test_two_leaky_branches_in_numpy(self) -> None:
        """y = w h: dy/dw = h and dy/da = w s, where s(t) = h(t-1) + a s(t-1); of two windows, both from nothing."""
        module = AdditiveBranches(TWO, width=3).double()
        x = module.sample(17, 2 * TRAINED + 1, seed=2).double()  # as long as a batch: what is read is known
        verdict = judged(additive(module), x)
        norms: dict[str, list[float]] = {"fast": [], "slow": []}
        for row in x.numpy():
            windows = [row[:-1][:TRAINED], row[:-1][TRAINED:]]
            targets = [row[1:][:TRAINED], row[1:][TRAINED:]]
            slopes = dict.fromkeys(norms, np.zeros(2))
            for read, wanted in zip(windows, targets, strict=True):
                states = {name: self._sensitivities(read, a) for name, [(a, _)] in TWO.items()}
                y = sum(np.float32(TWO[name][0][1]).item() * h for name, (h, _) in states.items())
                error = 2 * (y - wanted) / (2 * TRAINED * 3)
                for name, (h, s) in states.items():
                    w = np.float32(TWO[name][0][1]).item()
                    slopes[name] = slopes[name] + np.array([(error * h).sum(), (error * w * s).sum()])
            for name in norms:
                norms[name].append(float(np.linalg.norm(slopes[name])))
        ratios = np.array(norms["fast"]) / np.array(norms["slow"])
        assert value(verdict) == pytest.approx(np.median(ratios), rel=1e-9)  # of 17: one of them
        sizes = [math.hypot(*(np.float32(number).item() for number in TWO[name][0])) for name in norms]
        assert shown(verdict, "ratio of |gradient| |parameters|") == pytest.approx(
            np.median(ratios) * sizes[0] / sizes[1], rel=1e-9
        )
        assert shown(verdict, "ratio of gradients per parameter (RMS)") == pytest.approx(value(verdict))  # two each

    @staticmethod
    def _sensitivities(read: np.ndarray, retention: float) -> tuple[np.ndarray, np.ndarray]:
        """h and dh/da after each element, (time, width)."""
        a = np.float32(retention).item()
        h, s = np.zeros_like(read), np.zeros_like(read)
        for t in range(len(read)):
            h[t] = read[t] + (a * h[t - 1] if t else 0)
            s[t] = h[t - 1] + a * s[t - 1] if t else 0
        return h, s

    def test_per_parameter_and_per_scale(self) -> None:
        verdict = judged(two_branch(TwoBranch()), turning_levels(16, 100))
        module, sizes, norms = TwoBranch(), [], []
        for part in (module.fast, module.slow):
            sizes.append(sum(p.numel() for p in part.parameters()))
            norms.append(math.sqrt(sum(float(p.detach().double().square().sum()) for p in part.parameters())))
        by_number = value(verdict) * math.sqrt(sizes[1] / sizes[0])
        assert shown(verdict, "ratio of gradients per parameter (RMS)") == pytest.approx(by_number, rel=1e-6)
        by_size = value(verdict) * norms[0] / norms[1]
        assert shown(verdict, "ratio of |gradient| |parameters|") == pytest.approx(by_size, rel=1e-6)

    def test_shared_parameters_are_in_neither(self) -> None:
        """The gate of TwoBranch is named by no pattern: whatever its gradient is, nothing changes."""
        model = two_branch(TwoBranch())
        found = parameters_of(model, ["fast", "slow"])
        named = {name for own in found.values() for name in own}
        assert {name for name, _ in TwoBranch().named_parameters()} - named == {"fusion.weight", "fusion.bias"}


class TestBands:
    @pytest.mark.parametrize(
        ("low", "middle", "high", "status"),
        [
            (0.25, 0.3, 0.4, PASS),
            (2.0, 2.5, 2.9, PASS),
            (0.12, 0.15, 0.18, WARN),
            (3.5, 5.0, 9.0, WARN),
            (0.05, 0.06, 0.07, FAIL),
            (11.0, 12.0, 13.0, FAIL),
            (0.18, 0.2, 0.22, INCONCLUSIVE),
            (0.08, 0.1, 0.12, INCONCLUSIVE),
            (2.5, 3.0, 3.5, INCONCLUSIVE),
            (9.0, 10.0, 11.0, INCONCLUSIVE),
            (0.15, 0.5, 4.0, INCONCLUSIVE),
        ],
    )
    def test_of_the_suite(self, low: float, middle: float, high: float, status: sc.Status) -> None:
        suite = load_suite("phase39").only(["gradient-ratio"])
        intervals = tuple((level, low, high) for level in (0.95, 0.9995))
        number = Measurement(NAME, middle, low=low, high=high, intervals=intervals, n=16)
        assert judge(suite, {"gradient-ratio": Outcome((number,))})[0].status is status

    @pytest.mark.parametrize(
        ("order", "ratio", "inside"),
        [(("rwkv", "mamba"), 0.3, True), (("rwkv", "mamba"), 1.0, False), (("mamba", "rwkv"), 3.0, True)],
    )
    def test_the_predicted_band_is_a_note(self, order: tuple[str, str], ratio: float, inside: bool) -> None:
        evidence = self.predicted(order, tokenizer=Path("tokenizer.json"), vocabulary=4096)
        measured = balanced(evidence).measurements[0].value
        band = (0.7 * measured / ratio * 0.3, 1.3 * measured / ratio * 0.3)  # around what `ratio` stands for
        if order[0] == "mamba":
            band = (0.7 / measured * ratio * 0.3, 1.4 / measured * ratio * 0.3)
        outcome = balanced(evidence, predicted=band)
        note = outcome.measurements[0].note
        assert "which are of other quantities" in outcome.notes[-1]
        assert "predicted band" in note
        assert ("not in the predicted band" not in note) is inside

    @pytest.mark.parametrize(("tokenizer", "vocabulary"), [(None, 4096), (Path("tokenizer.json"), 256)])
    def test_no_band_was_predicted_for_anything_but_byte_pairs(self, tokenizer: Path | None, vocabulary: int) -> None:
        evidence = self.predicted(("rwkv", "mamba"), tokenizer=tokenizer, vocabulary=vocabulary)
        assert balanced(evidence).measurements[0].note == "rwkv over mamba"

    @staticmethod
    def predicted(order: tuple[str, str], *, tokenizer: Path | None, vocabulary: int) -> Evidence:
        """A model of vectors that claims to read byte pairs: the note asks the facts alone."""
        module = AdditiveBranches({"rwkv": [(0.5, 0.2)], "mamba": [(0.9, 0.05)]})
        names = {name: f"*.{name}.*" for name in order}
        model = sc.wrap(module, width=module.width, training_length=TRAINED, components=names, parameters=names)
        evidence = gather(model, module.sample(16, 70))
        facts = replace(model.facts, tokenizer=tokenizer, vocabulary=vocabulary)
        return replace(evidence, model=model.with_facts(facts))  # type: ignore[attr-defined]


class TestCulprits:
    def test_healthy_branches_pass(self) -> None:
        verdict = judged(two_branch(TwoBranch()), turning_levels(16, 100))
        assert verdict.status is PASS
        number = verdict.parts[0].measurements[0]
        assert number.low < number.value < number.high
        assert (number.n, number.note) == (16, "fast over slow")

    @pytest.mark.parametrize("fault", ["detached", "times zero"])
    def test_a_branch_that_gets_no_gradient_fails_by_name(self, fault: str) -> None:
        class Broken(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                slow = self.branch("slow")(x)
                return self.branch("fast")(x) + (slow.detach() if fault == "detached" else 0 * slow)

        module = Broken(TWO)
        verdict = judged(additive(module), module.sample(16, 70))
        assert verdict.status is FAIL
        assert "the gradient of the parameters of slow is zero in 16 of 16 batches" in verdict.reason

    def test_a_gradient_that_is_not_finite_fails_by_name(self) -> None:
        class Broken(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                return self.branch("fast")(x) + (self.branch("slow")(x) * 0).sqrt()

        module = Broken(TWO)
        verdict = judged(additive(module), module.sample(16, 70))
        assert verdict.status is FAIL
        assert "the gradient of the parameters of slow is not finite in 16 of 16 batches" in verdict.reason

    @pytest.mark.parametrize("scale", [0.01, 100.0])
    def test_one_branch_with_nearly_all_of_the_gradient(self, scale: float) -> None:
        """The slow branch's parameters kept as p / scale: the same function, the gradient times `scale`."""

        class Times(nn.Module):
            def forward(self, kept: Tensor) -> Tensor:
                return scale * kept

            def right_inverse(self, value: Tensor) -> Tensor:
                return value / scale

        module = AdditiveBranches(TWO)
        x = module.sample(16, 70)
        healthy = judged(additive(module), x)
        for name in ("weight", "retention"):
            parametrize.register_parametrization(module.branch("slow"), name, Times())
        verdict = judged(additive(module), x)
        assert (healthy.status, verdict.status) == (PASS, FAIL)
        assert value(verdict) == pytest.approx(value(healthy) / scale, rel=1e-4)
        name = "ratio of |gradient| |parameters|"  # what does not move
        assert shown(verdict, name) == pytest.approx(shown(healthy, name), rel=1e-4)


class TestFrozen:
    def test_parameters_count_all_the_same_and_stay_frozen(self) -> None:
        inputs = turning_levels(16, 100)
        healthy = judged(two_branch(TwoBranch()), inputs)
        module = TwoBranch().requires_grad_(False)
        verdict = judged(two_branch(module), inputs)
        assert value(verdict) == value(healthy)
        assert not any(p.requires_grad for p in module.parameters())
        assert all(p.grad is None for p in module.parameters())
        assert "5 parameters of slow are frozen" in verdict.notes

    def test_parameters_of_inference_mode_are_no_evidence(self) -> None:
        with torch.inference_mode():
            module = TwoBranch()
        verdict = judged(two_branch(module), turning_levels(16, 100))
        assert (verdict.status, "inference" in verdict.reason.lower()) == (SKIP, True)


class TestWhatCanNotBeSaid:
    def test_of_one_component(self) -> None:
        module = AdditiveBranches(TWO)
        model = sc.wrap(module, width=module.width, training_length=TRAINED)
        assert judged(model, module.sample(16, 70)).status is NOT_APPLICABLE

    def test_on_fewer_than_sixteen_documents(self) -> None:
        module = AdditiveBranches(TWO)
        assert judged(additive(module), module.sample(15, 70)).status is INCONCLUSIVE

    def test_without_text(self) -> None:
        assert judged(additive(AdditiveBranches(TWO)), None).status is SKIP

    def test_of_components_whose_parameters_nobody_named(self) -> None:
        module = AdditiveBranches(TWO)
        model = additive(module, parameters={"fast": "*.fast.*"})
        verdict = judged(model, module.sample(16, 70))
        assert verdict.status is SKIP
        assert "component 'slow' has no parameters (no pattern is given): say wrap(..., parameters=" in verdict.reason

    def test_of_a_parameter_in_two_components(self) -> None:
        module = AdditiveBranches(TWO)
        model = additive(module, parameters={"fast": "*", "slow": "*.slow.*"})
        verdict = judged(model, module.sample(16, 70))
        assert (verdict.status, "belongs to fast and slow: give it to one" in verdict.reason) == (SKIP, True)

    def test_of_a_parameter_that_two_components_share(self) -> None:
        module = AdditiveBranches(TWO)
        x = module.sample(16, 70)
        module.branch("slow").weight = module.branch("fast").weight
        verdict = judged(additive(module), x)
        assert (verdict.status, "belongs to fast and slow" in verdict.reason) == (SKIP, True)

    def test_of_a_model_without_a_module(self) -> None:
        class Bare:
            facts = additive(AdditiveBranches(TWO)).facts

        with pytest.raises(CapabilityMissing, match="shows no module"):
            parameters_of(Bare(), ["fast", "slow"])  # type: ignore[arg-type]

    def test_of_a_model_that_reads_one_element_a_call(self) -> None:
        class Stepwise(AdditiveBranches):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[1] > 1:
                    raise ValueError("one element a call")
                return super().forward(x)

        module = Stepwise(TWO)
        verdict = judged(additive(module), AdditiveBranches(TWO).sample(16, 70))
        assert (verdict.status, "no sequence can be read in one call" in verdict.reason) == (SKIP, True)

    def test_a_model_that_raises_within_its_training_length_fails(self) -> None:
        module = AdditiveBranches(TWO)
        ends = Declines(module, raises_beyond=20)
        said = {"components": {"fast": ["*.fast.*", "read"], "slow": "*.slow.*"}, "parameters": NAMES}
        model = sc.wrap(ends, width=module.width, training_length=TRAINED, **said)  # type: ignore[arg-type]
        verdict = judged(model, module.sample(16, 70))
        assert (verdict.status, "out of range" in verdict.reason) == (FAIL, True)


class TestBatches:
    def test_three_components_compare_the_first_two(self) -> None:
        branches = {**TWO, "third": [(0.2, 0.01)]}
        module = AdditiveBranches(branches)
        names = {name: f"*.{name}.*" for name in branches}
        model = sc.wrap(module, width=module.width, training_length=TRAINED, components=names, parameters=names)
        verdict = judged(model, module.sample(16, 70))
        assert verdict.notes == ("not compared: third (first and second alone)",)
        assert {one.where.component for one in verdict.shown} == {None, "fast", "slow"}

    def test_short_documents_give_one_window(self) -> None:
        module = AdditiveBranches(TWO)
        x = module.sample(16, TRAINED + 1)
        short, long = judged(additive(module), x), judged(additive(module), module.sample(16, 2 * TRAINED + 1))
        assert value(short) != value(long)
        assert short.parts[0].measurements[0].n == 16

    def test_the_model_is_left_as_it_was(self) -> None:
        module = TwoBranch().train()
        flags = [p.requires_grad for p in module.parameters()]
        judged(two_branch(module), turning_levels(16, 100))
        assert module.training
        assert [p.requires_grad for p in module.parameters()] == flags
        assert all(p.grad is None for p in module.parameters())
