"""The reference is right: numbers derived by hand, and the sums that the recurrences unroll to."""

import math

import numpy as np
import pytest
import torch
from drawing import OPERATIONS, Operation, cut, drawn, off, run
from numpy.typing import NDArray
from statecheck_kernels import Observe, causal_conv1d, selective_scan, ssd, wkv6
from statecheck_kernels.statistics import of_states
from torch import Tensor
from unrolled import UNROLLED

Array = NDArray[np.float64]


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def test_a_lone_write_decays_as_a_power() -> None:
    """Write 1 at the first step, keep a = 1/2 of it a step: 1, a, a^2, ..."""
    first = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    first[0, 0] = 1
    powers = [0.5**t for t in range(6)]
    half = torch.full((1, 6, 1, 1), 0.5, dtype=torch.float64).log()
    read = ones(1, 6, 1, 1)
    heads = ssd(first, read[..., 0], half[0, 0, 0], read, read, form="reference")
    assert heads.outputs.flatten().tolist() == pytest.approx(powers, rel=1e-15)
    scan = selective_scan(first[..., 0], read[..., 0], half[0, 0], read[..., 0], read[..., 0], form="reference")
    assert scan.outputs.flatten().tolist() == pytest.approx(powers, rel=1e-15)
    matrix = wkv6(read, first, read, half, 7 * ones(1, 1), form="reference")  # the first counts u = 7 when it is new
    assert matrix.outputs.flatten().tolist() == pytest.approx([7, *powers[:-1]], rel=1e-15)
    assert matrix.state.item() == heads.state.item() == scan.state.item() == pytest.approx(0.5**5, rel=1e-15)


def test_nothing_forgotten_is_a_counter() -> None:
    """With log-decay 0 and writes of 1 the state counts steps, from where it starts."""
    read, start = ones(1, 4, 1, 1), 10 * ones(1, 1, 1, 1)
    none = 0 * read
    scan = wkv6(read, read, read, none, ones(1, 1), start, form="reference")
    assert scan.outputs.flatten().tolist() == [11, 12, 13, 14]
    assert ssd(read, read[..., 0], none[0, 0, 0], read, read, state=start, form="reference").state.item() == 14


def test_two_by_two_by_hand() -> None:
    """K = V = 2: the memory is addressed by key, and the bonus counts for the current step alone."""
    numbers = ([1, 0, 2, 1], [1, 2, 3, 0], [5, 7, 1, 1], [0.5, 0.25, 1, 1])
    r, k, v, w = (torch.tensor(x, dtype=torch.float64).view(1, 2, 1, 2) for x in numbers)
    scan = wkv6(r, k, v, w.log(), torch.tensor([[2.0, 3.0]], dtype=torch.float64), form="reference")
    # y_1 = 2 * 1 * v_1; S_1 = [[5, 7], [10, 14]]; y_2 = (2, 1) S_1 + 2 * 2 * 3 v_2; S_2 = S_1 + [[3, 3], [0, 0]]
    assert scan.outputs.flatten().tolist() == [10, 14, 32, 40]
    assert scan.state.flatten().tolist() == [8, 10, 10, 14]


def test_convolution_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    weight, bias, before = torch.tensor([[100.0, 10.0, 1.0]]), torch.tensor([0.5]), torch.tensor([[[8.0, 9.0]]])
    scan = causal_conv1d(x, weight, bias, before, form="reference")
    assert scan.outputs.flatten().tolist() == [891.5, 912.5, 123.5]
    assert scan.state.flatten().tolist() == [2, 3]
    curved = causal_conv1d(x, torch.ones(1, 1), silu=True, form="reference").outputs.flatten()
    assert curved.tolist() == pytest.approx([t / (1 + math.exp(-t)) for t in (1, 2, 3)], rel=1e-6)


def test_groups_are_shared_by_neighbouring_heads() -> None:
    """Four heads, two groups: heads 0 and 1 read group 0, heads 2 and 3 group 1."""
    read = torch.tensor([1.0, 10.0]).view(1, 1, 2, 1)
    x, dt, write = torch.ones(1, 1, 4, 1), torch.ones(1, 1, 4), torch.ones(1, 1, 2, 1)
    scan = ssd(x, dt, -torch.ones(4), write, read, form="reference")
    assert scan.outputs.flatten().tolist() == [1, 1, 10, 10]


@pytest.mark.parametrize("number", [0, 2, -1])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_reference_is_the_sum_over_all_earlier_steps(operation: Operation, number: int) -> None:
    arguments = drawn(operation, 23, operation.sizes[number], seed=4)
    outputs, state = UNROLLED[operation.name]({name: x.numpy() for name, x in arguments.items()})
    scan = run(operation, arguments, "reference")
    assert off(scan.outputs, torch.from_numpy(outputs)) < 1e-13
    assert off(scan.state, torch.from_numpy(np.ascontiguousarray(state))) < 1e-13


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_references_gradients_are_those_of_differences(operation: Operation) -> None:
    """Along one random direction of all inputs at once, by a central difference."""
    arguments = drawn(operation, 9, seed=6)
    directions = drawn(operation, 9, seed=7)

    def total(step: float) -> float:
        moved = {name: x + step * directions[name] for name, x in arguments.items()}
        scan = run(operation, moved, "reference")
        return float(scan.outputs.sin().sum() + scan.state.cos().sum())

    leaves = {name: x.clone().requires_grad_() for name, x in arguments.items()}
    scan = run(operation, leaves, "reference")
    grads = torch.autograd.grad(scan.outputs.sin().sum() + scan.state.cos().sum(), list(leaves.values()))
    slope = sum(float((g * directions[name]).sum()) for name, g in zip(leaves, grads, strict=True))
    assert (total(1e-6) - total(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_packed_sequences_are_the_sequences(operation: Operation) -> None:
    lengths = (0, 4, 1, 6)
    arguments = drawn(operation, sum(lengths), batch=1, rows=len(lengths))
    packed = run(operation, arguments, "reference", packed=lengths)
    start = 0
    for row, length in enumerate(lengths):
        piece = {**cut(arguments, operation, start, start + length), "state": arguments["state"][row : row + 1]}
        alone = run(operation, piece, "reference")
        assert torch.equal(packed.outputs[:, start : start + length], alone.outputs)
        assert torch.equal(packed.state[row : row + 1], alone.state)
        start += length


def test_statistics_by_hand() -> None:
    """Two steps of one head of four units."""
    states = torch.tensor([[3.0, -4.0, 0.0, 3.97], [1.0, 1.0, -1.0, 1.0]], dtype=torch.float64).view(1, 2, 1, 4)
    found = of_states(states, Observe(entropy=True))
    assert found.square_sum.flatten().tolist() == pytest.approx([9 + 16 + 3.97**2, 4])
    assert found.largest.flatten().tolist() == [4, 1]
    assert found.mean.flatten().tolist() == pytest.approx([2.97 / 4, 0.5])
    assert found.near_largest.flatten().tolist() == [2, 0]  # 3.97 >= 0.99 * 4; then M is still 4
    assert found.nonfinite.flatten().tolist() == [0, 0]
    assert found.running.tolist() == [[4]]
    assert found.entropy is not None
    shares = [x / (25 + 3.97**2) for x in (9, 16, 3.97**2)]
    assert found.entropy[0, 0, 0].item() == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(4))
    assert found.entropy[0, 1, 0].item() == pytest.approx(1)  # signs do not matter: spread evenly


@pytest.mark.parametrize(
    ("units", "entropy"),
    [([2.0, 0.0], 0.0), ([0.0, 0.0], 0.0), ([5.0], 0.0), ([1.0, -1.0], 1.0), ([1.0, math.sqrt(3)], 0.8112781244591328)],
)
def test_entropy_by_hand(units: list[float], entropy: float) -> None:
    """The last: shares 1/4 and 3/4, so 2 - 3/4 log2 3 bits."""
    states = torch.tensor(units, dtype=torch.float64).view(1, 1, 1, -1)
    found = of_states(states, Observe(entropy=True)).entropy
    assert found is not None
    assert found.item() == pytest.approx(entropy, abs=1e-15)
    assert of_states(states, Observe()).entropy is None


def test_statistics_of_a_state_that_is_not_finite() -> None:
    """M is the largest finite one; the sums are what the sums are."""
    states = torch.tensor([[2.0, torch.inf, 1.0], [torch.nan, 1.0, 1.99]]).view(1, 2, 1, 3)
    found = of_states(states, Observe(entropy=True))
    assert found.nonfinite.flatten().tolist() == [1, 1]
    assert found.near_largest.flatten().tolist() == [1, 1]
    assert found.running.item() == 2
    assert found.largest[0, 0, 0] == found.square_sum[0, 0, 0] == found.mean[0, 0, 0] == torch.inf
    assert all(bool(x[0, 1, 0].isnan()) for x in (found.largest, found.square_sum, found.mean))
    assert found.entropy is not None
    assert bool(found.entropy.isnan().all())


def test_steps_that_are_not_observed_leave_no_trace() -> None:
    """Every second step: the 9 of the first is not seen, and M starts from what the call before left."""
    states = torch.tensor([9.0, 1.0, 9.0, 2.0, 9.0]).view(1, 5, 1, 1)
    found = of_states(states, Observe(every=2))
    assert found.largest.flatten().tolist() == [1, 2]
    assert found.running.item() == 2
    carried = of_states(states, Observe(every=2, running=torch.tensor([[2.01]], dtype=torch.float64)))
    assert carried.near_largest.flatten().tolist() == [0, 1]


def test_statistics_of_packed_sequences_by_hand() -> None:
    """Sequences of 2, 0 and 3 steps: M is each one's own; every second step is counted along the packed row."""
    states = torch.tensor([5.0, 1.0, 1.0, 2.0, 1.0]).view(1, 5, 1, 1)
    starts = torch.tensor([0, 2, 2, 5])
    found = of_states(states, Observe(), starts)
    assert found.near_largest.flatten().tolist() == [1, 0, 1, 1, 0]
    assert found.running.flatten().tolist() == [5, 0, 2]
    found = of_states(states, Observe(every=2), starts)
    assert found.largest.flatten().tolist() == [1, 2]
    assert found.near_largest.flatten().tolist() == [1, 1]
    assert found.running.flatten().tolist() == [1, 0, 2]


def test_a_window_of_no_unit_has_zeros() -> None:
    scan = causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 1), statistics=Observe(entropy=True), form="reference")
    assert scan.state.shape == (1, 2, 0)
    assert scan.statistics is not None
    assert all(not bool(x.any()) for x in scan.statistics.items().values())


def test_scan_is_exact_for_one_channel() -> None:
    """h_T = sum over t of dt x exp(-(T - t)) with A = -1, dt = x = 1: the geometric series (1 - e^-T) / (1 - e^-1)."""
    steps = 12
    along = ones(1, steps, 1)
    scan = selective_scan(along, along, -ones(1, 1), along, along, ones(1), form="reference")
    assert scan.state.item() == pytest.approx((1 - math.exp(-steps)) / (1 - math.exp(-1)), rel=1e-14)
    assert scan.outputs[0, -1, 0].item() == pytest.approx(scan.state.item() + 1, rel=1e-14)
