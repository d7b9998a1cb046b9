"""The compiled form alone: any number of threads, every instruction set that this processor has, float32 statistics."""

from collections.abc import Iterator

import pytest
import torch
from battery import CASES, Case
from drawing import (
    CONVOLUTION,
    OPERATIONS,
    SCAN,
    SSD,
    WKV6,
    Arguments,
    Operation,
    drawn,
    gradients,
    oracle,
    results,
    run,
)
from statecheck_kernels import Observe, StateStatistics, causal_conv1d, wkv6
from statecheck_kernels.cpu import available, library, reason
from torch import Tensor

pytestmark = pytest.mark.skipif(not available(), reason=reason())

by_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
PACKED = (40, 0, 1, 77, 66)
#: Cases that only run float64, which has no vectors of its own, or that try every size.
SLOW = ("differences", "lengths")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(operation: Operation, packed: tuple[int, ...] | None) -> list[Tensor]:
    """Outputs, last state, statistics and gradients of one call in float32."""
    rows = len(packed) if packed else None
    steps, batch = (sum(packed), 1) if packed else (150, 3)
    arguments = drawn(operation, steps, batch=batch, rows=rows, dtype=torch.float32)
    scan = run(operation, arguments, "cpu", packed=packed, observe=Observe(entropy=True))
    assert scan.statistics is not None
    found = [*results(scan).values(), *scan.statistics.items().values()]
    return [*found, *gradients(operation, arguments, "cpu", packed=packed).values()]


@by_operation
@pytest.mark.parametrize("packed", [None, PACKED])
def test_threads_change_no_bit(threads: None, operation: Operation, packed: tuple[int, ...] | None) -> None:
    torch.set_num_threads(1)
    expected = everything(operation, packed)
    for number in (2, 3, 8):
        torch.set_num_threads(number)
        for one, other in zip(everything(operation, packed), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    "case", [case for case in CASES if not any(word in case.name for word in SLOW)], ids=lambda case: case.name
)
def test_lesser_instruction_sets_pass_the_battery(level: int, case: Case) -> None:
    """Those that other processors have; the best one here is what the battery of all forms runs on."""
    best = library.instruction_set()
    with library.at_most(level) as used:
        if used == best:
            pytest.skip(f"{used} is the best of this processor")
        case.check("cpu")
    assert library.instruction_set() == best


def test_boundaries_that_change_after_the_call_are_not_followed() -> None:
    arguments = {n: x.requires_grad_() for n, x in drawn(WKV6, 10, batch=1, rows=2, dtype=torch.float32).items()}
    starts = torch.tensor([0, 4, 10])

    def gradient(changed: int) -> Tensor:
        scan = wkv6(**arguments, cu_seqlens=starts, form="cpu")
        starts[1] = changed
        return torch.autograd.grad(scan.outputs.square().sum(), arguments["k"])[0]

    expected = gradient(4)
    assert torch.equal(gradient(6), expected)


def test_a_negated_view_is_read_as_what_it_says() -> None:
    x = torch.complex(torch.zeros(1, 6, 3), torch.randn(1, 6, 3)).conj().imag
    assert x.is_neg()
    weight = torch.randn(3, 2)
    assert torch.equal(
        causal_conv1d(x, weight, form="cpu").outputs, causal_conv1d(x.clone(), weight, form="cpu").outputs
    )


def test_an_infinite_weight_reaches_only_the_gradients_that_it_multiplies() -> None:
    weight = torch.tensor([[torch.inf, 1.0]])
    for form in ("reference", "cpu"):
        x = torch.ones(1, 3, 1, requires_grad=True)
        causal_conv1d(x, weight, form=form).outputs.sum().backward()
        assert x.grad is not None
        assert x.grad.flatten().tolist() == [torch.inf, torch.inf, 1.0]


# -------------------------------------------------------------------------------------------- statistics in float32


@by_operation
def test_the_entropy_of_one_unit_is_0(operation: Operation) -> None:
    ones = {
        "wkv6": {"H": 2, "K": 1, "V": 1},
        "selective_scan": {"D": 1, "N": 1},
        "ssd": {"H": 2, "P": 1, "G": 1, "N": 1},
    }
    sizes = ones.get(operation.name, {"D": 1, "W": 2, "window": 1})
    found, _ = observed(operation, drawn(operation, 9, sizes, dtype=torch.float32), 1)
    assert found is not None
    assert found.entropy is not None
    assert not found.entropy.any()


SIZES = {
    "wkv6": {"H": 2, "K": 33, "V": 40},
    "selective_scan": {"D": 150, "N": 21},
    "ssd": {"H": 4, "P": 24, "G": 2, "N": 16},
    "causal_conv1d": {"D": 70, "W": 4, "window": 3},
}


def assert_near(found: StateStatistics | None, expected: StateStatistics | None) -> None:
    """Sums to 2e-6, the mean to that of the root mean square, the entropy to 2e-6 of 1; counts but for ties exactly."""
    assert found is not None
    assert expected is not None
    assert expected.entropy is not None
    assert found.entropy is not None
    finite = expected.nonfinite == 0
    assert torch.equal(found.nonfinite, expected.nonfinite)
    assert torch.equal(found.largest.isnan(), expected.largest.isnan())
    assert torch.equal(found.largest.isinf(), expected.largest.isinf())
    for name in ("square_sum", "largest", "running"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        ours, theirs = (x if name == "running" else x[finite] for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)
    rms = expected.square_sum.sqrt()  # of all units together: more than any mean can be wrong by
    assert ((found.mean - expected.mean).abs() <= 2e-6 * rms)[finite].all()
    assert ((found.entropy - expected.entropy).abs() <= 2e-6)[finite].all()
    assert torch.equal(found.entropy.isnan(), expected.entropy.isnan())
    apart = (found.near_largest - expected.near_largest).abs()
    assert apart.max() <= 1
    assert (apart > 0).double().mean() < 0.01  # a unit at 0.99 M to the last digit


def observed(operation: Operation, arguments: Arguments, every: int) -> tuple[StateStatistics | None, ...]:
    observe = Observe(every=every, entropy=True)
    ours = run(operation, arguments, "cpu", observe=observe)
    return ours.statistics, oracle(operation, arguments, observe=observe).statistics


@by_operation
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_float32_statistics_are_those_of_float64(operation: Operation, every: int, level: int) -> None:
    arguments = drawn(operation, 150, SIZES[operation.name], dtype=torch.float32, seed=3)
    with library.at_most(level):
        assert_near(*observed(operation, arguments, every))


@by_operation
@pytest.mark.parametrize("size", [1e-22, 1e-16, 1e16, 1e25])
def test_states_whose_squares_float32_can_not_hold(operation: Operation, size: float) -> None:
    """They are counted once more, in float64; so is a step among others that fit."""
    arguments = drawn(operation, 40, SIZES[operation.name], dtype=torch.float32)
    written = {"wkv6": "v", "selective_scan": "x", "ssd": "x", "causal_conv1d": "x"}[operation.name]
    arguments[written] *= size
    arguments["state"] *= size
    assert_near(*observed(operation, arguments, 1))


@pytest.mark.parametrize("operation", [WKV6, SCAN, SSD, CONVOLUTION], ids=lambda operation: operation.name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_float32_states_that_are_not_finite(operation: Operation, value: float) -> None:
    arguments = drawn(operation, 40, SIZES[operation.name], dtype=torch.float32)
    arguments["state"].view(2, -1)[0, -1] = value
    assert_near(*observed(operation, arguments, 1))
