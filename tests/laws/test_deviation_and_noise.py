"""How far outputs are from what they should be, and how far rounding alone moves them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from law_models import Counting, Remembering
from torch import Tensor, nn

import statecheck as sc
from statecheck import noise
from statecheck.deviation import by_position, deviation
from statecheck.noise import ASSUMED, copied, noise_floor, nudged


def rows(*values: list[float]) -> Tensor:
    """(1, positions, features)"""
    return torch.tensor([list(values)])


def test_a_position_is_measured_against_its_own_size_or_the_median() -> None:
    """Sizes 1, 4, 10, median 4. Off by 1 each: 1/4 of the small one, 1/4, 1/10."""
    expected = torch.tensor([[1.0], [4.0], [10.0]])
    assert by_position(expected + 1, expected).tolist() == pytest.approx([0.25, 0.25, 0.1])


def test_one_wrong_position_counts_however_many_are_right() -> None:
    expected = torch.ones(1, 1000, 2)
    found = expected.clone()
    found[0, 700, 1] = 2.0
    brought = deviation(found, expected)
    assert brought.error == pytest.approx(1 / math.sqrt(2))
    assert brought.first == "first at row 0, position 700, feature 1: expected 1, found 2"


def test_the_first_position_that_is_told_is_at_least_half_as_wrong_as_the_worst() -> None:
    expected = torch.ones(2, 3, 1)
    found = expected.clone()
    found[0, 1], found[0, 2], found[1, 0] = 1.1, 1.6, 2.0
    assert deviation(found, expected).first.startswith("first at row 0, position 2, feature 0")


def test_rows_of_different_lengths_are_told_apart() -> None:
    expected = [torch.ones(3, 1), torch.ones(2, 1)]
    found = [torch.ones(3, 1), torch.tensor([[1.0], [3.0]])]
    assert str(deviation(found, expected)) == "2 relative, first at row 1, position 1, feature 0: expected 1, found 3"


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3, 3), (1, 3, 4)])
def test_another_shape_is_infinitely_far(shape: tuple[int, ...]) -> None:
    brought = deviation(torch.ones(shape), torch.ones(1, 3, 3))
    assert brought.error == math.inf
    assert brought.first.startswith("expected shapes [(3, 3)], found [")


def test_what_is_not_finite_must_be_so_in_both() -> None:
    assert deviation(rows([math.nan]), rows([1.0])).error == math.inf
    assert deviation(rows([1.0]), rows([math.inf])).error == math.inf
    assert deviation(rows([math.nan], [1.0]), rows([math.nan], [1.0])).error == 0.0


def test_zero_expected_and_nothing_at_all() -> None:
    assert deviation(rows([0.0]), rows([0.0])).error == 0.0
    assert deviation(rows([1e-9]), rows([0.0])).error == 1.0
    assert deviation(torch.ones(1, 0, 3), torch.ones(1, 0, 3)).error == 0.0


def test_a_deviation_is_computed_in_float64() -> None:
    """In bfloat16 the difference of 1.0078 and 1 has a size of 1/128; in float32 its square root would round."""
    found = torch.tensor([[[1 + 2**-7]]], dtype=torch.bfloat16)
    assert deviation(found, torch.ones(1, 1, 1, dtype=torch.bfloat16)).error == 2**-7


def vectors(width: int = 3, time: int = 20) -> Tensor:
    return torch.randn(2, time, width, generator=torch.Generator().manual_seed(0))


def test_the_floor_of_a_model_without_parameters_is_the_assumed_one() -> None:
    floor = noise_floor(sc.wrap(Counting(), width=1), vectors(1))
    assert floor.value == ASSUMED * 2.0**-23
    assert dict(floor.ways) == {"spacing": 2.0**-23, "assumed": ASSUMED * 2.0**-23}
    assert str(floor) == "1.9e-06 relative (spacing 1.2e-07, assumed 1.9e-06)"


def test_the_floor_is_the_larger_of_its_ways_and_never_under_the_spacing() -> None:
    floor = noise_floor(sc.wrap(Remembering(), width=3), vectors())
    ways = dict(floor.ways)
    assert set(ways) == {"spacing", "float64", "ulp"}
    assert floor.value == max(ways.values())
    assert 2.0**-23 <= floor.value < 1e-5


def test_the_floor_follows_the_dtype() -> None:
    """float64 and bfloat16 are 2^29 and 2^-16 times as fine as float32."""
    single = noise_floor(sc.wrap(Remembering(), width=3), vectors()).value
    double = noise_floor(sc.wrap(Remembering().double(), width=3), vectors().double()).value
    half = noise_floor(sc.wrap(Remembering().bfloat16(), width=3), vectors().bfloat16()).value
    assert 1e-10 < double / single < 1e-7
    assert 1e3 < half / single < 1e7


def test_the_floor_is_the_same_under_a_seed() -> None:
    model = sc.wrap(Remembering(), width=3)
    assert noise_floor(model, vectors(), seed=1) == noise_floor(model, vectors(), seed=1)
    assert noise_floor(model, vectors(), seed=1) != noise_floor(model, vectors(), seed=2)


class RestartsWarm(Remembering):
    """A fault of the state, and a large one: a warm call starts again."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.memory = None
        return super().forward(x, mask)


def test_a_fault_of_the_state_does_not_raise_the_floor() -> None:
    healthy, faulty = (noise_floor(sc.wrap(kind(), width=3), vectors()) for kind in (Remembering, RestartsWarm))
    assert healthy == faulty


class SingleDtype(Remembering):
    """A kernel of float32 alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask)

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if x.dtype is not torch.float32:
            raise TypeError("float32 alone")
        return super().uncached(x, mask)


def test_a_model_that_does_not_run_in_float64_has_a_floor_from_its_parameters() -> None:
    assert {name for name, _ in noise_floor(sc.wrap(SingleDtype(), width=3), vectors()).ways} == {"spacing", "ulp"}


class FloatsOfTheDefault(nn.Module):
    """Its first state is made in torch's default dtype, as many are."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.h = torch.zeros(len(x), 4) if self.h is None else self.h
        outputs = []
        for x_t in x.unbind(1):
            self.h = self.cell(x_t, self.h)
            outputs.append(self.h)
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


def test_a_state_in_the_default_dtype_is_no_hindrance_and_the_default_is_put_back() -> None:
    model = sc.wrap(FloatsOfTheDefault())
    assert "float64" in dict(noise_floor(model, vectors()).ways)
    assert torch.get_default_dtype() is torch.float32
    report = sc.check_model(model, suite="conformance", only=["GRAD", "NUM"])
    assert report.failures == []
    assert next(m.value for m in report["GRAD"].measurements if m.name == "GRAD.native") < 30


def test_a_copy_shares_nothing_and_a_nudge_is_one_unit_in_the_last_place() -> None:
    model = sc.wrap(Remembering(), width=3)
    twin = copied(model)
    assert twin is not None
    moved = nudged(model, torch.Generator().manual_seed(0))
    for name, own in model.module.named_parameters():
        other = dict(twin.module.named_parameters())[name]  # type: ignore[attr-defined]
        assert torch.equal(own, other)
        assert own.data_ptr() != other.data_ptr()
        nudge = (dict(moved.module.named_parameters())[name] / own - 1).abs()  # type: ignore[attr-defined]
        assert bool((nudge[own != 0] <= 2.0**-22).all())
        assert bool(nudge[own != 0].any())


def test_a_model_that_holds_a_lock_is_not_copied() -> None:
    import threading

    module = Remembering()
    module.lock = threading.Lock()  # type: ignore[assignment]
    model = sc.wrap(module, width=3)
    assert copied(model) is None
    assert dict(noise_floor(model, vectors()).ways).keys() == {"spacing", "assumed"}
    assert noise.ASSUMED == 16.0
