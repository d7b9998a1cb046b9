"""The triton form in triton's interpreter, on CPU tensors, held against the reference in float64.

pytest does not collect this file: `test_triton_interpreter` runs it in a process of its own, with TRITON_INTERPRET=1,
because the variable must be there before triton is imported and turns the kernels of the whole process into Python.
A step costs some milliseconds, so sizes are the smallest that still have blocks, chunks and masks.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from collections import Counter
from typing import Any

import pytest
import torch
from battery_hard import assert_statistics
from drawing import (
    OPERATIONS,
    TOLERANCE,
    Operation,
    assert_close,
    drawn,
    expected_gradients,
    gradients,
    off,
    oracle,
    results,
    run,
)
from statecheck_kernels import Observe
from statecheck_kernels.triton_form import launching

SMALL = {
    "wkv6": {"H": 2, "K": 3, "V": 5},
    "selective_scan": {"D": 5, "N": 3},
    "ssd": {"H": 4, "P": 3, "G": 2, "N": 3},
    "causal_conv1d": {"D": 5, "W": 4, "window": 3},
}
FORWARD = ["forward_kernel"]
BACKWARD = {"causal_conv1d": ["backward_inputs_kernel", "backward_weights_kernel"]}
PACKED = (3, 0, 7, 1)

each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was launched, by its name."""
    count: Counter[str] = Counter()
    launch = launching.launch

    def counting(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        assert type(kernel).__name__ == "InterpretedFunction", "the kernel is not what triton's interpreter runs"
        count[kernel.fn.__name__] += 1
        launch(kernel, grid, arguments, constants)

    monkeypatch.setattr(launching, "launch", counting)
    return count


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program holds so few units that heads and channels are divided among several."""
    for job in launching.TILES:
        monkeypatch.setitem(launching.TILES, job, 8)


def small(operation: Operation, steps: int, rows: int = 2, batch: int = 2, **more: Any) -> dict[str, torch.Tensor]:
    return drawn(operation, steps, SMALL[operation.name], batch, rows, **more)


def tiny(operation: Operation, steps: int, rows: int, batch: int) -> dict[str, torch.Tensor]:
    """One unit of each, but a window of more, where the number of steps is what matters."""
    sizes = SMALL["causal_conv1d"] if operation.name == "causal_conv1d" else dict.fromkeys(operation.usual, 1)
    return drawn(operation, steps, sizes, batch, rows)


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The axes in reverse order in memory, and only every second number there is one of x."""
    wide = x.new_full((*reversed(x.shape), 2), torch.nan)[..., 1]
    return wide.permute(*reversed(range(x.dim()))).copy_(x)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_results_and_gradients(operation: Operation, dtype: torch.dtype, launched: Counter[str]) -> None:
    arguments = small(operation, 6, dtype=dtype)
    scan = run(operation, arguments, "triton")
    assert scan.form == "triton"
    assert dict(launched) == {"forward_kernel": 1}
    assert_close(results(scan), results(oracle(operation, arguments)), TOLERANCE[dtype])
    found = gradients(operation, arguments, "triton")
    backward = BACKWARD.get(operation.name, ["backward_kernel"])
    assert dict(launched) == {"forward_kernel": 2, **dict.fromkeys(backward, 1)}
    assert_close(found, expected_gradients(operation, arguments), 5 * TOLERANCE[dtype])


@each
def test_lengths_around_a_chunk(operation: Operation, launched: Counter[str]) -> None:
    """None, one, and chunks of saved states that are full, just begun, and more than one."""
    for steps in (0, 1, launching.CHUNK, launching.CHUNK + 1):
        arguments = tiny(operation, steps, 1, 1)
        found = results(run(operation, arguments, "triton"))
        assert_close(found, results(oracle(operation, arguments)), 1e-12, f"{steps} steps")
        grads = gradients(operation, arguments, "triton")
        assert_close(grads, expected_gradients(operation, arguments), 1e-11, f"{steps} steps")
    assert launched["forward_kernel"] == 8


@each
def test_divided_among_programs(operation: Operation, small_tiles: None, launched: Counter[str]) -> None:
    """Parts of gradients add up, and a second pass counts what is near the largest of the whole head."""
    arguments = small(operation, 5)
    observe = Observe(entropy=True)
    scan = run(operation, arguments, "triton", observe=observe)
    kernel = "statistics_kernel" if operation.name == "causal_conv1d" else "forward_kernel"
    assert launched[kernel] == 2
    expected = oracle(operation, arguments, observe=observe)
    assert_close(results(scan), results(expected), 1e-12)
    assert_statistics(scan.statistics, expected.statistics, 1e-11)
    assert_close(gradients(operation, arguments, "triton"), expected_gradients(operation, arguments), 1e-11)


@each
def test_packed(operation: Operation, launched: Counter[str]) -> None:
    """All sequences in one launch, one without a step among them; statistics count along the row."""
    arguments = small(operation, sum(PACKED), len(PACKED), 1)
    heads = arguments["state"].shape[1] if operation.name in ("wkv6", "ssd") else 1
    running = torch.linspace(0, 3, len(PACKED) * heads, dtype=torch.float64).view(len(PACKED), heads)
    observe = Observe(every=2, entropy=True, running=running)
    scan = run(operation, arguments, "triton", packed=PACKED, observe=observe)
    assert launched["forward_kernel"] == 1 if operation.name != "selective_scan" else 2
    expected = oracle(operation, arguments, packed=PACKED, observe=observe)
    assert_close(results(scan), results(expected), 1e-12)
    assert_statistics(scan.statistics, expected.statistics, 1e-11)
    found = gradients(operation, arguments, "triton", packed=PACKED)
    assert_close(found, expected_gradients(operation, arguments, PACKED), 1e-11)


@each
def test_packed_chunks_do_not_meet(operation: Operation) -> None:
    """Saved states of sequences whose ends lie unluckily around chunks."""
    packed = (1, launching.CHUNK, launching.CHUNK + 1)
    arguments = tiny(operation, sum(packed), len(packed), 1)
    found = gradients(operation, arguments, "triton", packed=packed)
    assert_close(found, expected_gradients(operation, arguments, packed), 1e-11)


@each
def test_statistics(operation: Operation) -> None:
    """Every step in float32, every third carried on in float64, and of a state that is not finite."""
    arguments = small(operation, 7, dtype=torch.float32)
    found, expected = (
        run(operation, arguments, "triton", observe=Observe()),
        oracle(operation, arguments, observe=Observe()),
    )
    assert_statistics(found.statistics, expected.statistics, 4 * TOLERANCE[torch.float32])
    arguments = small(operation, 7)
    arguments["state"][0].view(-1)[-1], arguments["state"][1].view(-1)[-1] = torch.nan, -torch.inf
    for every in (1, 3):
        observe = Observe(every=every, entropy=True)
        found, expected = (run(operation, arguments, form, observe=observe) for form in ("triton", "reference"))
        assert_statistics(found.statistics, expected.statistics, 1e-11)


@each
def test_bfloat16(operation: Operation) -> None:
    """Inputs of bfloat16: all is computed in float32, and only the outputs and gradients are rounded, each once."""
    arguments = {
        name: x.to(torch.bfloat16) if name != "state" else x.float() for name, x in small(operation, 6).items()
    }
    scan = run(operation, arguments, "triton")
    expected = oracle(operation, arguments)
    step = torch.finfo(torch.bfloat16).eps
    assert scan.outputs.dtype == torch.bfloat16
    assert scan.state.dtype == torch.float32
    assert off(scan.state, expected.state) <= TOLERANCE[torch.float32]
    assert off(scan.outputs, expected.outputs) <= step  # the interpreter cuts off where a GPU rounds
    found = gradients(operation, arguments, "triton")
    assert all(found[name].dtype == arguments[name].dtype for name in found)
    assert_close(found, expected_gradients(operation, arguments), 3 * step)


@each
def test_strides(operation: Operation) -> None:
    """No stride is taken for granted: transposed, every second of a larger tensor, one step or row for all."""
    arguments = small(operation, 4)
    strided = {name: _strided(x) for name, x in arguments.items()}
    assert not any(x.is_contiguous() for x in strided.values())
    assert_close(results(run(operation, strided, "triton")), results(oracle(operation, arguments)), 1e-12)
    assert_close(gradients(operation, strided, "triton"), expected_gradients(operation, arguments), 1e-11)
    base = drawn(operation, 1, SMALL[operation.name], 1, 1)
    grads = []
    for form in ("triton", "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in base.items()}
        wide = {n: x.expand(2, 3, *x.shape[2:]) if n in operation.along else x for n, x in leaves.items()}
        wide["state"] = leaves["state"].expand(2, *base["state"].shape[1:])
        scan = run(operation, wide, form)
        total = scan.outputs.sum() + scan.state.sum()  # the gradients that arrive have strides of 0 too
        grads.append(dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True)))
    assert_close(*grads, 1e-11)


@each
def test_masks_hold_where_a_factor_is_infinite(operation: Operation) -> None:
    """Sizes are no powers of two: 0 times infinity in the lanes beyond would make NaN of what is infinite.

    All factors are above 0, or else infinities of both signs would meet in a sum and be NaN anyway.
    """
    for name in operation.along:
        arguments = {n: x if n in ("log_w", "A") else x.abs() for n, x in small(operation, 4).items()}
        arguments[name][0, 1].view(-1)[0] = torch.inf
        found, expected = (results(run(operation, arguments, form)) for form in ("triton", "reference"))
        for kind, x in found.items():
            assert torch.equal(x.isnan(), expected[kind].isnan()), f"infinity in {name}: NaN of the {kind}"
            assert torch.equal(x.isinf(), expected[kind].isinf()), f"infinity in {name}: infinities of the {kind}"


@each
def test_the_same_twice(operation: Operation, small_tiles: None) -> None:
    """Gradients added up from parts are equal to the last bit in two runs, and nothing that was given has changed."""
    arguments = small(operation, 4, dtype=torch.float32)
    before = {name: x.clone() for name, x in arguments.items()}
    first, second = (gradients(operation, arguments, "triton") for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert all(torch.equal(x, before[name]) for name, x in arguments.items())


@each
def test_states_are_saved_only_for_gradients(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient to come, no memory is taken for states along the way."""
    saved = []
    launch = launching.launch

    def looking(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        names = kernel.arg_names
        saved.append(arguments[names.index("z" if operation.name == "causal_conv1d" else "saved")] is not None)
        launch(kernel, grid, arguments, constants)

    monkeypatch.setattr(launching, "launch", looking)
    arguments = small(operation, 2)
    run(operation, arguments, "triton")
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    with torch.no_grad():
        run(operation, leaves, "triton")
    run(operation, leaves, "triton")
    assert saved == [False, False, True]
