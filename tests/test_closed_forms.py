"""Answers known by hand, asked for through the public door: linear states, a counter, a shift register, a predictor.

h(t) = a h(t-1) + x(t) under unit normal x has variance v(t) = (1 - a^2t) / (1 - a^2); under constant x = 1 it is
m(t) = (1 - a^t) / (1 - a). Windows are averaged over exactly as phase 3.9 says: (T0 - W, T0] and (T - W, T].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from models import Integrator, LinearRecurrentUnit
from torch import Tensor, nn

import statecheck as sc
from statecheck.report.record import Report
from statecheck.testing.oracles import Counter, LinearState, SelectiveCounter, ShiftRegister, topical_tokens

DOCUMENTS, CHANNELS, TRAINED = 24, 64, 256


def exact(retentions: Sequence[float]) -> LinearState:
    """In float64, the retentions too."""
    module = LinearState(retentions).double()
    module.retention.data = torch.tensor(retentions, dtype=torch.float64)
    return module


def linear(*retentions: float) -> sc.StatefulModel:
    module = exact(retentions)
    said = {"*": {"recurrence": "diagonal"}}
    return sc.wrap(module, width=len(retentions), training_length=TRAINED, states=said, loss="mse")


def normal(width: int, *, documents: int = DOCUMENTS, time: int = 4 * TRAINED, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(documents, time, width, generator=generator, dtype=torch.float64)


def part(report: Report, name: str) -> sc.Verdict:
    return next(one for row in report for one in row.parts if one.id == name)


def measured(report: Report, name: str) -> sc.Measurement:
    return next(m for row in report for m in row.measurements if m.name == name)


def shown(report: Report, name: str) -> sc.Measurement:
    return next(m for row in report for m in row.shown if m.name == name)


def variance(a: float, t: int) -> float:
    return float(t) if a == 1 else (1 - a ** (2 * t)) / (1 - a**2)


def level(a: float, t: int) -> float:
    return float(t) if a == 1 else (1 - a**t) / (1 - a)


def expected_growth(a: float, *, constant: bool) -> float:
    """RMS over the final window over RMS over the baseline window."""
    energy = (lambda t: level(a, t) ** 2) if constant else (lambda t: variance(a, t))
    window = TRAINED // 8
    first, last = range(TRAINED - window + 1, TRAINED + 1), range(4 * TRAINED - window + 1, 4 * TRAINED + 1)
    return math.sqrt(np.mean([energy(t) for t in last]) / np.mean([energy(t) for t in first]))


RETENTIONS = [(0.9999, 1.9, 3.9), (1.0, 2.0, 4.0), (1.003, 11.0, 18.0), (1.01, 2090.0, 2261.0)]


class TestDivergence:
    @pytest.mark.parametrize(("a", "quoted", "_"), RETENTIONS)
    def test_zero_mean_drive(self, a: float, quoted: float, _: float) -> None:
        """phase 3.9 quotes 1.9, 2, 11 and 2,090. The interval holds the exact value and is at most 12 % wide."""
        found = measured(sc.check_model(linear(*[a] * CHANNELS), inputs=normal(CHANNELS), only=["D1"]), "D1.growth")
        truth = expected_growth(a, constant=False)
        assert truth == pytest.approx(quoted, rel=0.05)
        assert found.low <= truth <= found.high
        assert found.high / found.low < 1.12
        assert found.n == DOCUMENTS

    @pytest.mark.parametrize(("a", "_", "quoted"), RETENTIONS)
    def test_constant_drive(self, a: float, _: float, quoted: float) -> None:
        """phase 3.9 quotes 3.9, 4, 18 and 2,261: every document is the same, so the value is exact to rounding."""
        inputs = torch.ones(DOCUMENTS, 4 * TRAINED, 2, dtype=torch.float64)
        found = measured(sc.check_model(linear(a, a), inputs=inputs, only=["D1"]), "D1.growth")
        truth = expected_growth(a, constant=True)
        assert truth == pytest.approx(quoted, rel=0.05)
        assert (found.value, found.low, found.high) == pytest.approx((truth, truth, truth), rel=1e-9)

    @pytest.mark.parametrize(
        ("a", "constant", "status"),
        [
            (0.99, False, sc.Status.PASS),
            (0.9999, True, sc.Status.WARN),
            (1.0, True, sc.Status.WARN),
            (1.003, True, sc.Status.FAIL),
            (1.01, False, sc.Status.FAIL),
        ],
    )
    def test_only_expansion_fails(self, a: float, constant: bool, status: sc.Status) -> None:
        inputs = torch.ones(DOCUMENTS, 4 * TRAINED, 8, dtype=torch.float64) if constant else normal(8)
        report = sc.check_model(linear(*[a] * 8), inputs=inputs, only=["D1"])
        assert part(report, "D1.growth").status is status

    def test_one_channel_is_named_among_healthy_ones(self) -> None:
        retentions = [0.9] * 40
        retentions[17] = 1.01
        report = sc.check_model(linear(*retentions), inputs=normal(40), only=["D1"])
        channel = part(report, "D1.channel")
        assert channel.status is sc.Status.FAIL
        assert channel.measurements[0].where.channel == 17


class TestEvolution:
    @pytest.mark.parametrize("a", [0.9, 0.98, 0.995])
    def test_the_centred_cosine_is_the_retention_to_the_lag(self, a: float) -> None:
        """cos(h(t), h(t-k)) = a^k sqrt(v(t-k) / v(t)), the mean over t from 96 on, a position each 32."""
        report = sc.check_model(linear(*[a] * CHANNELS), inputs=normal(CHANNELS), only=["G3.5"])
        found = measured(report, "G3.5.cosine")
        positions = range(96, 4 * TRAINED + 1, 32)
        truth = float(np.mean([a**64 * math.sqrt(variance(a, t - 64) / variance(a, t)) for t in positions]))
        assert found.low <= truth <= found.high
        assert found.value == pytest.approx(truth, abs=0.02)
        assert found.note == "lag 64"

    @pytest.mark.parametrize("a", [0.5, 0.9, 0.99])
    def test_the_raw_cosine_at_lag_one_is_the_retention(self, a: float) -> None:
        """For slow states it is near 1 by algebra: .99 here, of a healthy state, which is why it is not judged."""
        report = sc.check_model(linear(*[a] * CHANNELS), inputs=normal(CHANNELS), only=["G3.5"])
        assert shown(report, "raw cosine at lag 1").value == pytest.approx(a, abs=0.008)
        assert report["G3.5"].status is sc.Status.PASS

    def test_a_training_length_whose_quarter_is_odd(self) -> None:
        model = sc.wrap(LinearState([0.9] * CHANNELS).double(), width=CHANNELS, training_length=100)
        report = sc.check_model(model, inputs=normal(CHANNELS), only=["G3.5", "health"])
        assert measured(report, "G3.5.cosine").value == pytest.approx(0.9**25, abs=0.02)
        assert report["health"].status is sc.Status.PASS


class TestDependence:
    @pytest.mark.parametrize("offset", [0.0, 0.5, 2.0])
    def test_is_variance_over_energy(self, offset: float) -> None:
        """Unit normal input around an offset: I = v / (v + m^2), v = 1 / (1 - a^2), m = offset / (1 - a)."""
        a = 0.9
        report = sc.check_model(linear(*[a] * CHANNELS), inputs=normal(CHANNELS) + offset, only=["S2", "D2"])
        v, mean = 1 / (1 - a**2), offset / (1 - a)
        for name in ("S2.dependence", "D2.frozen"):
            found = measured(report, name)
            assert found.value == pytest.approx(v / (v + mean**2), rel=0.05)
            assert found.low <= v / (v + mean**2) <= found.high


class TestRetention:
    def test_of_a_diagonal_state_is_exact(self) -> None:
        report = sc.check_model(linear(0.9, 0.99, 0.999), inputs=normal(3), only=["D2"])
        half_life = shown(report, "half-life")
        lives = (half_life.low, half_life.value, half_life.high)
        assert [2 ** (-1 / life) for life in lives] == pytest.approx([0.9, 0.99, 0.999], abs=1e-5)
        assert lives == pytest.approx([math.log(2) / -math.log(a) for a in (0.9, 0.99, 0.999)], rel=1e-9)
        assert half_life.note == "diagonal, a unit"

    def test_is_found_by_trying_where_it_is_not_declared(self) -> None:
        model = sc.wrap(exact([0.9, 0.99, 0.999]), width=3, training_length=64)
        report = sc.check_model(model, inputs=normal(3, time=256), only=["D2"])
        assert shown(report, "half-life").value == pytest.approx(math.log(2) / -math.log(0.99), rel=1e-9)

    def test_of_a_complex_state_is_its_modulus(self) -> None:
        model = sc.wrap(LinearRecurrentUnit(width=4, size=9), width=4, training_length=64)
        report = sc.check_model(model, inputs=normal(4, time=256).float(), only=["D2"])
        radius = float(torch.linspace(0.9, 0.995, 9)[4])
        assert shown(report, "half-life").value == pytest.approx(math.log(2) / -math.log(radius), rel=1e-3)

    def test_of_mixing_units_is_that_of_the_norm(self) -> None:
        """h <- .95 Q h + x, Q orthogonal: every difference shrinks by .95, though no unit does by itself."""

        class Turning(Integrator):
            def __init__(self) -> None:
                super().__init__(6)
                generator = torch.Generator().manual_seed(0)
                turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
                self.turn = nn.Parameter(0.95 * turn)

            def forward(self, x: Tensor) -> Tensor:
                outputs = []
                for x_t in x.unbind(1):
                    self.h = x_t if self.h is None else self.h @ self.turn + x_t
                    outputs.append(self.h)
                return torch.stack(outputs, 1)

        model = sc.wrap(Turning(), width=6, training_length=64)
        half_life = shown(sc.check_model(model, inputs=normal(6, time=256), only=["D2"]), "half-life")
        assert half_life.note == "units mix: of the whole state"
        assert half_life.value == pytest.approx(math.log(2) / -math.log(0.95), rel=1e-9)

    @pytest.mark.parametrize(
        ("a", "status", "stuck"),
        [
            (0.4, sc.Status.FAIL, "forget at once"),  # half-life .76 tokens
            (0.55, sc.Status.PASS, ""),
            (0.9996, sc.Status.PASS, ""),  # half-life 1,733 of at most 2,560 tokens
            (0.9998, sc.Status.FAIL, "never forget"),  # 3,465 tokens
        ],
    )
    def test_stuck_at_either_end_fails(self, a: float, status: sc.Status, stuck: str) -> None:
        decay = part(sc.check_model(linear(a, a), inputs=normal(2), only=["D2"]), "D2.decay")
        assert decay.status is status
        assert stuck in decay.reason

    def test_polarised_units_are_healthy(self) -> None:
        report = sc.check_model(linear(0.0, 0.9, 0.9, 1.0), inputs=normal(4), only=["D2"])
        assert part(report, "D2.decay").status is sc.Status.PASS


class TestReach:
    @pytest.mark.parametrize("a", [0.9, 0.98, 0.999])
    def test_of_a_linear_state_is_the_retention_to_the_length(self, a: float) -> None:
        """The smallest over 64 and T_tr / 2 = 128 shared elements: a^128."""
        report = sc.check_model(linear(a, a / 2), inputs=normal(2), only=["D4"])
        assert measured(report, "D4.reach").value == pytest.approx(a**128, rel=1e-6)
        assert shown(report, "reach beyond 64 shared tokens").value == pytest.approx(a**64, rel=1e-6)
        assert shown(report, "reach beyond 128 shared tokens").value == pytest.approx(a**128, rel=1e-6)

    @pytest.mark.parametrize(("length", "expected"), [(65, 1.0), (96, 1.0), (64, 0.0), (48, 0.0)])
    def test_of_a_shift_register_is_one_within_its_length_and_nothing_beyond(
        self, length: int, expected: float
    ) -> None:
        """Each document holds one constant value, so that an older place of the line differs as a newer one did."""
        model = sc.wrap(ShiftRegister(length, 2), width=2, training_length=128, loss="mse")
        constant = normal(2, documents=24, time=1)
        report = sc.check_model(model, inputs=constant.float().expand(-1, 512, -1), only=["D4"])
        found = part(report, "D4.reach")
        assert found.measurements[0].value == pytest.approx(expected, rel=1e-6)
        assert found.status is (sc.Status.PASS if expected else sc.Status.FAIL)

    def test_of_a_state_that_forgets_within_the_shared_text_is_a_failure(self) -> None:
        report = sc.check_model(linear(0.5, 0.5), inputs=normal(2), only=["D4"])  # .5^128 = 3e-39
        assert part(report, "D4.reach").status is sc.Status.FAIL


class TestCounter:
    @pytest.fixture(scope="class")
    @classmethod
    def report(cls) -> Report:
        return sc.check_model(sc.wrap(Counter(CHANNELS).double(), width=CHANNELS, training_length=TRAINED))

    def test_grows_by_the_root_of_four_and_that_is_no_explosion(self, report: Report) -> None:
        found = measured(report, "D1.growth")
        assert found.low <= expected_growth(1.0, constant=False) <= found.high
        assert report["D1"].status is not sc.Status.FAIL

    def test_never_forgets_which_fails_by_name(self, report: Report) -> None:
        decay = part(report, "D2.decay")
        assert decay.status is sc.Status.FAIL
        assert "never forget" in decay.reason
        assert shown(report, "half-life").value == math.inf
        assert report.failures == ["D2"]
        assert report.path == "C"

    def test_holds_everything_that_was_ever_read(self, report: Report) -> None:
        assert measured(report, "D4.reach").value == pytest.approx(1.0, abs=1e-9)

    def test_grows_fourfold_under_constant_drive(self) -> None:
        model = sc.wrap(Counter(2).double(), width=2, training_length=TRAINED)
        inputs = torch.ones(DOCUMENTS, 4 * TRAINED, 2, dtype=torch.float64)
        found = measured(sc.check_model(model, inputs=inputs, only=["D1"]), "D1.growth")
        assert found.value == pytest.approx(expected_growth(1.0, constant=True), rel=1e-9)


class TestSelection:
    @pytest.mark.parametrize(
        ("spread", "status"), [(0.0, sc.Status.FAIL), (0.005, sc.Status.FAIL), (0.5, sc.Status.PASS)]
    )
    def test_without_variance_fails(self, spread: float, status: sc.Status) -> None:
        model = sc.wrap(SelectiveCounter(spread=spread), training_length=64, selective=True)
        report = sc.check_model(model, inputs=topical_tokens(16, 353), only=["D2"])
        assert part(report, "D2.selection").status is status

    @pytest.mark.parametrize("selective", [None, False])
    def test_of_a_component_that_is_not_declared_selective_is_not_asked(self, selective: bool | None) -> None:
        model = sc.wrap(SelectiveCounter(spread=0.0), training_length=64, selective=selective)
        report = sc.check_model(model, inputs=topical_tokens(16, 353), only=["D2"])
        assert part(report, "D2.selection").status is sc.Status.NOT_APPLICABLE

    def test_seen_from_outside_is_the_spread_of_the_rates(self) -> None:
        """a = a_0^rate(x), so log(-log a) = log rate(x) + a constant: the same spread, unit by unit."""
        from statecheck import dynamics

        module = SelectiveCounter(spread=0.5).double()
        model = sc.wrap(module)
        generator = torch.Generator().manual_seed(1)
        random = [torch.rand(48, 48, generator=generator, dtype=torch.float64) for _ in range(2)]
        own, foreign = ({f"layers.{i}.counts": random[i] + gap for i in range(2)} for gap in (0.0, 1.0))
        tokens = torch.arange(48)[:, None]
        after, other = (sc.advance(model, tokens, states)[1] for states in (own, foreign))
        rates = module.rate.detach().log().numpy()
        truth = np.subtract(*np.quantile(rates, [0.95, 0.05])) / 3.29
        assert truth == pytest.approx(rates.std(), rel=0.2)
        for name in own:
            kept = dynamics.retention(*(s[name].detach().numpy() for s in (own, foreign, after, other)))
            assert dynamics.selection_spread(kept) == pytest.approx(np.full(48, truth), rel=1e-6)


class TestLosses:
    """D4 of predictors whose probabilities are written out here a second time, by direct sums over the context."""

    def check(self, retentions: tuple[float, ...], documents: Tensor) -> None:
        module = SelectiveCounter(retentions=retentions).double()
        report = sc.check_model(sc.wrap(module, training_length=64), inputs=documents, only=["D4"])
        nll = {length: self.losses(module, documents.numpy(), length) for length in (64, 128, 256)}
        perplexities = [np.exp((nll[length][:, :64] - nll[64][:, :64]).mean()) for length in (128, 256)]
        assert measured(report, "D4.perplexity").value == pytest.approx(max(perplexities), rel=1e-6)
        assert measured(report, "D4.benefit").value == pytest.approx((nll[64] - nll[256]).mean(), rel=1e-4)
        for length in (64, 128, 256):
            assert shown(report, f"loss after {length} tokens").value == pytest.approx(nll[length][:, :64].mean())

    @staticmethod
    def losses(module: SelectiveCounter, documents: np.ndarray, context: int) -> np.ndarray:
        """Nats of the target at 256 + 32 b + j after exactly context + j tokens, (n, 3 blocks of 32)."""
        rate, keep = module.rate.detach().numpy(), module.log_retention.detach().exp().numpy()
        table = np.zeros((len(documents), 96))
        for row, document in enumerate(documents):
            for j in range(96):
                target = 256 + j
                read = document[target - j % 32 - context : target]
                faded = np.append(np.cumsum(rate[read][::-1])[::-1][1:], 0.0)  # rates of what was read after each
                shares = []
                for a in keep:
                    counts = np.bincount(read, weights=a**faded, minlength=48) + 0.25
                    shares.append(counts / counts.sum())
                table[row, j] = -np.log(np.mean(shares, axis=0)[document[target]])
        return table

    def test_leaky_counts(self) -> None:
        self.check((0.9, 0.98), topical_tokens(16, 256 + 3 * 32 + 1))

    def test_a_bayesian_that_never_forgets(self) -> None:
        """Retention 1: the posterior mean under a Dirichlet(1/4) prior."""
        self.check((1.0,), topical_tokens(16, 256 + 3 * 32 + 1))
