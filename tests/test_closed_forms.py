"""Numbers derived by hand that the rows must reproduce: D1, G3.5, D2 and D4 of states with known retention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import statecheck as sc
from statecheck.testing.oracles import Counter, LinearState, SelectiveCounter, ShiftRegister, topical_tokens
from statecheck.verdict import Measurement, Status

T = 256
ROWS, WIDTH = 32, 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def noise(length: int = 4 * T, offset: float = 0.0, seed: int = 0, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return offset + torch.randn(ROWS, length, width, generator=generator)


def check(module: nn.Module, inputs: Tensor, *only: str, **declared: object) -> sc.Report:
    model = sc.wrap(module, width=inputs.shape[2], training_length=T, **declared)  # type: ignore[arg-type]
    return sc.check_model(model, inputs=inputs, only=only)


def number(report: sc.Report, name: str) -> Measurement:
    return next(m for row in report for m in (*row.measurements, *row.shown) if m.name == name)


# D1 -------------------------------------------------------------------------------------------------------------


def expected_growth(a: float, *, constant: bool) -> float:
    """RMS over (T - W, T] over RMS over (T0 - W, T0] of h(t) = a h(t-1) + x(t)."""

    def energy(t: np.ndarray) -> np.ndarray:
        if constant:
            return (t if a == 1 else (1 - a**t) / (1 - a)) ** 2
        return t if a == 1 else (1 - a ** (2 * t)) / (1 - a**2)

    first, last = np.arange(T - T // 8 + 1, T + 1.0), np.arange(4 * T - T // 8 + 1, 4 * T + 1.0)
    return float(np.sqrt(energy(last).mean() / energy(first).mean()))


@pytest.mark.parametrize(
    ("a", "quoted", "status"),
    [(0.9999, 1.9, "WARN"), (1.0, 2.0, "WARN"), (1.003, 11, "FAIL"), (1.01, 2090, "FAIL")],
)
def test_growth_under_zero_mean_drive(a: float, quoted: float, status: str) -> None:
    expected = expected_growth(a, constant=False)
    assert expected == pytest.approx(quoted, rel=0.08)
    report = check(LinearState([a] * 384), noise(width=384), "D1")
    found = number(report, "D1.growth")
    assert found.value == pytest.approx(expected, rel=0.03)
    assert found.low * 0.99 <= expected <= found.high * 1.01  # the median of ratios is 1 % off the ratio of energies
    if status == "FAIL":
        assert (report["D1.growth"].status is Status.FAIL) == (found.low > 10)


@pytest.mark.parametrize(("a", "quoted"), [(0.9999, 3.9), (1.0, 4.0), (1.003, 18), (1.01, 2261)])
def test_growth_under_constant_drive(a: float, quoted: float) -> None:
    expected = expected_growth(a, constant=True)
    assert expected == pytest.approx(quoted, rel=0.06)  # quoted without the width of the windows
    found = number(check(LinearState([a] * WIDTH), noise(offset=200.0), "D1"), "D1.growth")
    assert found.value == pytest.approx(expected, rel=0.01)


def test_one_channel_among_many_is_found_by_its_own_ratio() -> None:
    retention = [0.9] * WIDTH
    retention[17] = 1.003
    report = check(LinearState(retention), noise(), "D1")
    found = number(report, "D1.channel")
    assert found.where.channel == 17
    assert found.value == pytest.approx(expected_growth(1.003, constant=False), rel=0.25)


def test_a_counter_grows_for_ever_without_exploding() -> None:
    report = check(Counter(WIDTH), noise(), "D1", "D2")
    assert report["D1.growth"].status in (Status.WARN, Status.INCONCLUSIVE)
    assert report["D1.channel"].status is Status.PASS
    assert report["D2.decay"].status is Status.FAIL
    assert "never forget" in report["D2.decay"].reason


# G3.5 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.9, 0.98, 0.995])
def test_the_centred_cosine_is_the_retention_to_the_lag(a: float) -> None:
    def variance(t: np.ndarray) -> np.ndarray:
        return (1 - a ** (2 * t)) / (1 - a**2)

    positions = np.arange(96.0, 4 * T + 1, 32)  # half a lag apart, from the first with a state a lag before
    expected = float(np.mean(a**64 * np.sqrt(variance(positions - 64) / variance(positions))))
    report = check(LinearState([a] * WIDTH), noise(), "G3.5")
    found = number(report, "G3.5.cosine")
    assert found.value == pytest.approx(expected, abs=0.01)
    assert found.low - 0.005 <= expected <= found.high + 0.005
    assert number(report, "raw cosine at lag 1").value == pytest.approx(a, abs=0.01)


class Squash(nn.Module):
    """The state is tanh(gain x(t)): no memory, and known shares of values near the bound."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.gain * x)
        self.h = y[:, -1]
        return y

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


@pytest.mark.parametrize(("gain", "pinned"), [(3.0, 0.0), (10.0, 1.0)])
def test_units_with_half_of_their_values_at_the_bound_are_pinned(gain: float, pinned: float) -> None:
    """tanh(3x): 38 % of values within 1 % of the bound, so no unit is pinned; tanh(10x): 79 %, so all are."""
    report = check(Squash(gain), noise(), "G3.5")
    assert number(report, "G3.5.pinned").value == pinned


# D2 -------------------------------------------------------------------------------------------------------------


def test_dependence_of_an_unbiased_state_is_one_and_falls_with_what_all_documents_share() -> None:
    assert number(check(LinearState([0.9] * WIDTH), noise(), "D2"), "D2.frozen").value == pytest.approx(1.0, abs=0.05)
    shared = noise()[:1].expand(ROWS, -1, -1)
    found = number(check(LinearState([0.9] * WIDTH), shared + 0.1 * noise(seed=1), "D2"), "D2.frozen")
    assert found.value == pytest.approx(0.01 / 1.01, rel=0.35)


@pytest.mark.parametrize("a", [0.5, 0.9, 0.99, 0.999])
def test_half_life_from_outside_is_exact_for_a_diagonal_recurrence(a: float) -> None:
    found = number(check(LinearState([a] * WIDTH), noise(), "D2"), "half-life")
    assert found.value == pytest.approx(math.log(2) / -math.log(a), rel=1e-3)
    assert found.note.startswith("diagonal")


@pytest.mark.parametrize(("a", "fails"), [(0.45, True), (0.55, False), (0.9999, True), (0.9995, False)])
def test_decay_fails_when_all_units_forget_at_once_or_never(a: float, fails: bool) -> None:
    """Half-lives: 0.87, 1.16, 6,931 and 1,386 tokens; the bounds are 1 token and 2,560."""
    report = check(LinearState([a] * WIDTH), noise(), "D2")
    assert (report["D2.decay"].status is Status.FAIL) == fails


@pytest.mark.parametrize(("spread", "status"), [(0.0, Status.FAIL), (0.005, Status.FAIL), (0.5, Status.PASS)])
def test_selection_is_the_spread_of_the_decay_rate_over_tokens(spread: float, status: Status) -> None:
    module = SelectiveCounter(spread=spread)
    model = sc.wrap(module, training_length=64, selective=True)
    report = sc.check_model(model, inputs=topical_tokens(32, 300), only=["D2"])
    assert report["D2.selection"].status is status
    undeclared = sc.check_model(sc.wrap(module, training_length=64), inputs=topical_tokens(32, 300), only=["D2"])
    assert undeclared["D2.selection"].status is Status.NOT_APPLICABLE


# D4 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.95, 0.99])
def test_reach_is_the_retention_to_the_number_of_shared_tokens(a: float) -> None:
    report = check(LinearState([a] * WIDTH), noise(), "D4")
    assert number(report, "D4.reach").value == pytest.approx(a**128, rel=0.02)
    assert number(report, "reach beyond 64 shared tokens").value == pytest.approx(a**64, rel=0.01)


@pytest.mark.parametrize(("length", "reach"), [(100, 0.0), (200, 1.0)])
def test_a_shift_register_reaches_as_far_as_it_is_long(length: int, reach: float) -> None:
    x = noise()[:, :, :4]
    model = sc.wrap(ShiftRegister(length, 4), width=4, training_length=T)
    report = sc.check_model(model, inputs=x, only=["D4"])
    found = number(report, "D4.reach").value  # 128 shared tokens: beyond the first, within the second
    assert (found == 0.0) if reach == 0.0 else (found > 0.3)
    assert (report["D4.reach"].status is Status.FAIL) == (reach == 0.0)


class RunningMean(nn.Module):
    """Predicts the next vector as the mean of all that was read: mean error 1 + 1/t after t vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        total, count = self.state or (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0, :1]))
        sums = total[:, None] + x.cumsum(1)
        counts = count[:, None] + torch.arange(1, x.shape[1] + 1)[None, :, None]
        self.state = sums[:, -1], counts[:, -1].to(x)
        return sums / counts

    def get_states(self) -> dict[str, Tensor]:
        return dict(zip(("total", "count"), self.state, strict=True)) if self.state else {}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.state = None if states is None else (states["total"], states["count"])


def test_benefit_of_averaging_over_a_longer_context() -> None:
    """Documents at a level of their own in white noise: the error after t vectors is 1 + 1/t."""
    generator = torch.Generator().manual_seed(3)
    level = torch.randn(64, 1, WIDTH, generator=generator)
    x = level + torch.randn(64, 4 * 64 + 10 * 32 + 1, WIDTH, generator=generator)
    report = sc.check_model(sc.wrap(RunningMean(), width=WIDTH, training_length=64), inputs=x, only=["D4"])

    def error(context: int) -> float:
        return float(np.mean([1 + 1 / (context + j) for j in range(32)]))

    found = number(report, "D4.benefit")
    expected = math.log(error(64) / error(256))
    assert found.low <= expected <= found.high
    assert found.high - found.low < expected
    assert report["D4.benefit"].status is Status.PASS


class ForgetsItsTrade(nn.Module):
    """Predicts the same token again with a logit of `margin`, and uniformly once more than 100 were read."""

    def __init__(self, vocabulary: int, margin: float) -> None:
        super().__init__()
        self.vocabulary, self.margin = vocabulary, margin
        self.seen: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        seen = torch.zeros(len(tokens), 1) if self.seen is None else self.seen
        position = seen + torch.arange(1, tokens.shape[1] + 1)
        self.seen = position[:, -1:]
        known = nn.functional.one_hot(tokens, self.vocabulary).float() * self.margin
        return torch.where((position > 100)[..., None], torch.zeros_like(known), known)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.seen is None else {"seen": self.seen}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.seen = None if states is None else states["seen"]


@pytest.mark.parametrize(
    ("vocabulary", "margin", "status"), [(8, 0.5, Status.PASS), (8, 2.0, Status.WARN), (32, 4.0, Status.FAIL)]
)
def test_perplexity_ratio_of_a_model_that_breaks_down(vocabulary: int, margin: float, status: Status) -> None:
    """r = V / (1 + (V - 1) exp(-margin)): uniform over V against the margin."""
    tokens = (torch.arange(32) % vocabulary)[:, None].expand(-1, 300)
    model = sc.wrap(ForgetsItsTrade(vocabulary, margin), training_length=64)
    report = sc.check_model(model, inputs=tokens, only=["D4"])
    expected = vocabulary / (1 + (vocabulary - 1) * math.exp(-margin))
    assert number(report, "D4.perplexity").value == pytest.approx(expected, rel=1e-5)
    assert report["D4.perplexity"].status is status


# health ---------------------------------------------------------------------------------------------------------


def common_signal() -> Tensor:
    """One signal that all documents share, and little of their own."""
    return noise()[:1].expand(ROWS, -1, -1) + 0.01 * noise(seed=1)


@pytest.mark.parametrize(
    ("module", "inputs", "limiting"),
    [
        (LinearState([1.003] * WIDTH), noise(), {"bounded", "moving"}),
        (Squash(0.1), noise(1) + 0.15 * noise(seed=1), {"moving"}),
        (LinearState([0.9] * WIDTH), common_signal(), {"responsive"}),
        (Squash(10.0), noise(), {"unpinned"}),
    ],
    ids=["bounded", "moving", "responsive", "unpinned"],
)
def test_each_sub_score_of_health_falls_alone(module: nn.Module, inputs: Tensor, limiting: set[str]) -> None:
    shown = {m.name: m.value for m in check(module, inputs, "health")["health"].shown}
    assert {name for name, score in shown.items() if score < 0.7} == limiting


def test_bounded_alone() -> None:
    """A state without memory whose scale grows with time: R = 20 at four times the length."""

    class Louder(Squash):
        def __init__(self) -> None:
            super().__init__(1.0)
            self.t: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            t = torch.zeros(len(x), 1) if self.t is None else self.t
            times = t + torch.arange(1, x.shape[1] + 1)
            y = x * torch.exp(times * math.log(20) / (3 * T))[..., None]
            self.h, self.t = y[:, -1], times[:, -1:]
            return y

        def get_states(self) -> dict[str, Tensor]:
            return {} if self.h is None or self.t is None else {"h": self.h, "t": self.t}

        def set_states(self, states: Mapping[str, Tensor] | None) -> None:
            self.h, self.t = (None, None) if states is None else (states["h"], states["t"])

    report = check(Louder(), noise(), "health", "D1", states={"t": {"kind": "position"}})
    shown = {m.name: m.value for m in report["health"].shown}
    assert {name for name, score in shown.items() if score < 0.7} == {"bounded"}
    assert number(report, "D1.growth").value == pytest.approx(20, rel=0.02)
