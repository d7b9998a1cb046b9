"""What every form must do, held against the reference in float64: shapes, lengths, strides, dtypes, cuts, packing.

Each case is a function of the form's name that raises where the form fails. :data:`CASES` lists them all, with those of
`battery_hard`; a test file runs them on the form that it is about.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from battery_hard import HARD
from drawing import (
    OPERATIONS,
    TOLERANCE,
    Arguments,
    Operation,
    Sizes,
    assert_close,
    cut,
    drawn,
    expected_gradients,
    gradients,
    gradients_of,
    off,
    oracle,
    results,
    run,
)
from statecheck_kernels import Observe, Scan
from torch import Tensor

LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130, 200)
SMALL: dict[str, Sizes] = {  # for differences in every direction
    "wkv6": {"H": 2, "K": 2, "V": 3},
    "selective_scan": {"D": 3, "N": 2},
    "ssd": {"H": 4, "P": 1, "G": 2, "N": 2},
    "causal_conv1d": {"D": 2, "W": 3, "window": 2},
}
PACKED = (0, 3, 1, 17, 0, 33, 66, 2, 0)  # steps of sequences in one row


@dataclass(frozen=True)
class Case:
    """A named demand on a form."""

    name: str
    check: Callable[[str], None]


def sizes_agree(operation: Operation, sizes: Sizes, form: str) -> None:
    """Outputs, state and all gradients at one choice of sizes, in float64 and float32."""
    for dtype, slack in ((torch.float64, 10), (torch.float32, 5)):  # a gradient sums many terms
        arguments = drawn(operation, sizes=sizes, steps=19, dtype=dtype)
        scan = run(operation, arguments, form)
        assert scan.form == form
        assert scan.statistics is None
        assert scan.outputs.dtype == scan.state.dtype == dtype
        assert_close(results(scan), results(oracle(operation, arguments)), TOLERANCE[dtype])
        found, expected = gradients(operation, arguments, form), expected_gradients(operation, arguments)
        assert_close(found, expected, slack * TOLERANCE[dtype], "gradients")


def lengths_agree(operation: Operation, form: str) -> None:
    """Every length, gradients at some; with no step the state stays, and its gradient is that of what comes out."""
    for steps in LENGTHS:
        for dtype in (torch.float64, torch.float32):
            arguments = drawn(operation, steps, dtype=dtype)
            found = results(run(operation, arguments, form))
            assert_close(found, results(oracle(operation, arguments)), TOLERANCE[dtype], f"{steps} steps")
        if steps in (0, 1, 2, 33, 64, 130):
            found = gradients(operation, arguments, form)
            assert_close(found, expected_gradients(operation, arguments), 5 * TOLERANCE[dtype], f"{steps} steps")
    arguments = drawn(operation, 0, batch=1)
    assert torch.equal(run(operation, arguments, form).state, arguments["state"])


def many_rows_agree(operation: Operation, form: str) -> None:
    """No row, one, more than any vector or block is wide, and more than a byte can count."""
    for batch, steps in ((0, 9), (1, 9), (19, 9), (259, 2)):
        arguments = drawn(operation, steps, batch=batch, dtype=torch.float32)
        found = results(run(operation, arguments, form))
        assert_close(found, results(oracle(operation, arguments)), 2e-6)
        last = {name: x[-1:] if name in (*operation.along, "state") else x for name, x in arguments.items()}
        alone = results(run(operation, last, form))  # the reference may share a fault, a row by itself does not
        assert_close({name: x[-1:] for name, x in found.items()}, alone, 2e-6, f"the last of {batch} rows, alone,")


def defaults_agree(operation: Operation, form: str) -> None:
    """Without state, D, bias and SiLU: as with zeros; where no state is given, it comes in the arithmetic's dtype."""
    arguments = drawn(operation, 11, dtype=torch.float32)
    bare = {name: x for name, x in arguments.items() if name not in ("state", "D", "bias")}
    zeros = {name: x if name in bare else torch.zeros_like(x) for name, x in arguments.items()}
    plain = Operation(operation.name, operation.axes, operation.sizes)
    assert_close(results(run(plain, bare, form)), results(oracle(plain, zeros)), 2e-6)
    for dtype in (torch.bfloat16, torch.float64):
        state = run(plain, {name: x.to(dtype) for name, x in bare.items()}, form).state
        assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _sliced(x: Tensor) -> Tensor:
    """Every second of the last axis, every third of the first, from an odd place."""
    if x.dim() == 1:
        return torch.stack([x, x], 1)[:, 1]
    wide = x.new_full((3 * x.shape[0] + 1, *x.shape[1:-1], 2 * x.shape[-1] + 1), torch.nan)
    view = wide[1::3, ..., 1::2]
    return view.copy_(x)


def _moved(x: Tensor) -> Tensor:
    """Starts at an address that no vector load likes."""
    return torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape)


def strides_agree(operation: Operation, form: str) -> None:
    """Transposed, sliced and oddly placed tensors, gradients too, and gradients that arrive with such strides."""
    for dtype in (torch.float32, torch.float64):
        arguments = drawn(operation, 13, batch=3, dtype=dtype)
        expected = results(oracle(operation, arguments))
        for change in (_transposed, _sliced, _moved):
            changed = {name: change(x) for name, x in arguments.items()}
            assert_close(results(run(operation, changed, form)), expected, TOLERANCE[dtype], change.__name__)
    name = "x" if "x" in arguments else "v"
    leaf = arguments[name].clone().requires_grad_()
    grads: list[Tensor] = []
    for used in (form, "reference"):
        scan = run(operation, {**arguments, name: _transposed(leaf)}, used)
        grads += torch.autograd.grad(scan.outputs.transpose(0, 1).sum() + scan.state[..., :1].sum(), leaf)
    assert off(grads[0], grads[1]) <= 1e-11


def expanded_agree(operation: Operation, form: str) -> None:
    """Tensors of stride 0: one row for all, one step for all; the gradient arrives where they came from."""
    base = drawn(operation, 1, batch=1, rows=1)
    grads = []
    for used in (form, "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in base.items()}
        wide = {n: x.expand(3, 21, *x.shape[2:]) if n in operation.along else x for n, x in leaves.items()}
        scan = run(operation, {**wide, "state": leaves["state"].expand(3, *base["state"].shape[1:])}, used)
        grads.append(gradients_of(scan.outputs.sum() + scan.state.sum(), leaves))
    assert_close(grads[0], grads[1], 1e-11)


def _assert_rounded_once(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Each number is within half a unit in its last place, beside `tolerance` of the largest for the arithmetic."""
    allowed = 0.51 * torch.finfo(found.dtype).eps * expected.abs() + tolerance * expected.abs().max()
    over = (found.double() - expected).abs() - allowed
    assert bool((over <= 0).all()), f"{what} in {found.dtype} is off by {over.max()} more than rounding explains"


def narrow_dtypes_agree(operation: Operation, form: str) -> None:
    """Bfloat16 and float16: the reference on the rounded inputs, rounded once more; parameters may stay float32."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow = drawn(operation, 70, dtype=dtype)
        mixed = {n: x if n in operation.along else x.float() for n, x in narrow.items()}
        expected = oracle(operation, narrow)
        for arguments in (narrow, mixed):
            scan = run(operation, arguments, form)
            assert scan.outputs.dtype == dtype
            assert scan.state.dtype == arguments["state"].dtype
            _assert_rounded_once(scan.outputs, expected.outputs, 2e-6, "an output")
        assert off(scan.state, expected.state) <= 2e-6
        wanted = expected_gradients(operation, narrow)
        for arguments in (narrow, mixed):
            for name, found in gradients(operation, arguments, form).items():
                assert found.dtype == arguments[name].dtype
                _assert_rounded_once(found, wanted[name], 5 * TOLERANCE[torch.float32], f"the gradient of {name}")


def wide_gradients_agree(operation: Operation, form: str) -> None:
    """Beside packed bfloat16 inputs, a float32 state and parameters get gradients that were nowhere rounded to it."""
    packed = (3, 0, 6)
    narrow = drawn(operation, sum(packed), batch=1, rows=len(packed), dtype=torch.bfloat16)
    mixed = {name: x if name in operation.along else x.float() for name, x in narrow.items()}
    expected = expected_gradients(operation, mixed, packed)
    for name, found in gradients(operation, mixed, form, packed=packed).items():
        allowed = torch.finfo(found.dtype).eps if name in operation.along else 5 * TOLERANCE[torch.float32]
        assert (apart := off(found, expected[name])) <= allowed, f"the gradient of {name} is off by {apart}"


def cuts_agree(operation: Operation, form: str) -> None:
    """Calls on pieces, each from the state of the one before, are one call; the statistics' M is carried too."""
    for dtype in (torch.float64, torch.float32):
        arguments = drawn(operation, 130, dtype=dtype)
        whole = _observed(run(operation, arguments, form, observe=Observe()))
        for ends in ((0, 1, 130), (64, 65, 65, 100, 130), (13, 47, 96, 129, 130)):
            start, state, running, pieces = 0, arguments["state"], None, []
            for stop in ends:
                piece = {**cut(arguments, operation, start, stop), "state": state}
                found = _observed(run(operation, piece, form, observe=Observe(running=running)))
                start, state, running = stop, found["state"], found["running"]
                pieces.append(found)
            along = {name: torch.cat([piece[name] for piece in pieces], 1) for name in ("outputs", "near_largest")}
            assert_close({**pieces[-1], **along}, whole, 2 * TOLERANCE[dtype], f"cut at {ends}")


def _observed(scan: Scan) -> Arguments:
    """Outputs and state, and the two statistics that depend on the steps before."""
    assert scan.statistics is not None
    return {
        **results(scan),
        "near_largest": scan.statistics.near_largest,
        "running": scan.statistics.running,
    }


def packed_agree(operation: Operation, form: str) -> None:
    """Packed sequences are the sequences one by one: outputs, states, statistics, gradients; one of no step stays."""
    for dtype, slack in ((torch.float64, 10), (torch.float32, 5)):
        arguments = drawn(operation, sum(PACKED), batch=1, rows=len(PACKED), dtype=dtype)
        scan = run(operation, arguments, form, packed=PACKED, observe=Observe(entropy=True))
        start = 0
        for row, length in enumerate(PACKED):
            piece = cut(arguments, operation, start, start + length)
            alone = run(
                operation, {**piece, "state": arguments["state"][row : row + 1]}, form, observe=Observe(entropy=True)
            )
            here = {"outputs": scan.outputs[:, start : start + length], "state": scan.state[row : row + 1]}
            assert_close(here, results(alone), TOLERANCE[dtype], f"sequence {row}")
            assert scan.statistics is not None
            assert alone.statistics is not None
            for name, x in alone.statistics.items().items():
                packed = scan.statistics.items()[name]
                packed = packed[row : row + 1] if name == "running" else packed[:, start : start + length]
                assert off(packed, x) <= 2 * TOLERANCE[dtype], f"{name} of sequence {row}"
            start += length
        assert torch.equal(scan.state[0], arguments["state"][0])
        found = gradients(operation, arguments, form, packed=PACKED)
        expected = expected_gradients(operation, arguments, packed=PACKED)
        assert_close(found, expected, slack * TOLERANCE[dtype], "gradients")


def one_gradient_at_a_time(operation: Operation, form: str) -> None:
    """Each input alone asks for its gradient; outputs alone or the state alone are used."""
    arguments = drawn(operation, 18)
    expected = expected_gradients(operation, arguments)
    for name in arguments:
        found = gradients(operation, arguments, form, wanted=[name])
        assert_close(found, {name: expected[name]}, 1e-11)
    for part in ("outputs", "state"):
        grads = []
        for used in (form, "reference"):
            leaves = {name: x.clone().requires_grad_() for name, x in arguments.items()}
            total = results(run(operation, leaves, used))[part].square().sum()
            grads.append(gradients_of(total, leaves))
        assert_close(grads[0], grads[1], 1e-11, part)


def gradients_are_those_of_differences(operation: Operation, form: str) -> None:
    """Torch's gradcheck in float64, every input, plain and packed."""
    for packed, rows in ((None, 2), ((2, 0, 3), 3)):
        batch = 2 if packed is None else 1
        arguments = drawn(operation, 5, SMALL[operation.name], batch=batch, rows=rows)
        names = list(arguments)

        def function(
            *values: Tensor, packed: tuple[int, ...] | None = packed, names: list[str] = names
        ) -> tuple[Tensor, ...]:
            return run(operation, dict(zip(names, values, strict=True)), form, packed=packed)[:2]

        leaves = [x.requires_grad_() for x in arguments.values()]
        assert torch.autograd.gradcheck(function, leaves, fast_mode=False, atol=1e-7, rtol=1e-5)


def nothing_else_changes(operation: Operation, form: str) -> None:
    """Inputs, grad mode, the random numbers to come and the treatment of denormals are as before; the state is new."""
    for steps in (0, 1, 40):
        arguments = drawn(operation, steps, dtype=torch.float32)
        before = {name: x.clone() for name, x in arguments.items()}
        random, tiny = torch.get_rng_state(), torch.tensor(1e-39)
        scan = run(operation, arguments, form, observe=Observe(entropy=True))
        gradients(operation, arguments, form)
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.is_grad_enabled()
        assert (tiny * 1).item() > 0
        scan.outputs.fill_(7)
        scan.state.fill_(7)
        assert all(torch.equal(x, before[name]) for name, x in arguments.items())
    with torch.inference_mode():
        assert off(run(operation, arguments, form).outputs, oracle(operation, arguments).outputs) <= 2e-6


def the_same_twice(operation: Operation, form: str) -> None:
    """Two runs are equal to the last bit: results, statistics, gradients."""
    arguments = drawn(operation, 70, operation.sizes[-1], batch=3, dtype=torch.float32)
    first, second = (run(operation, arguments, form, observe=Observe(entropy=True)) for _ in range(2))
    assert first.statistics is not None
    assert second.statistics is not None
    for one, two in (
        (results(first), results(second)),
        (dict(first.statistics.items()), dict(second.statistics.items())),
        (gradients(operation, arguments, form), gradients(operation, arguments, form)),
    ):
        assert all(torch.equal(x, two[name]) for name, x in one.items())


EACH = (
    lengths_agree,
    many_rows_agree,
    defaults_agree,
    strides_agree,
    expanded_agree,
    narrow_dtypes_agree,
    wide_gradients_agree,
    cuts_agree,
    packed_agree,
    one_gradient_at_a_time,
    gradients_are_those_of_differences,
    nothing_else_changes,
    the_same_twice,
    *HARD,
)
CASES = [
    *(
        Case(
            f"{operation.name}-sizes_agree-{'-'.join(map(str, sizes.values()))}", partial(sizes_agree, operation, sizes)
        )
        for operation in OPERATIONS
        for sizes in operation.sizes
    ),
    *(Case(f"{op.name}-{check.__name__}", partial(check, op)) for op in OPERATIONS for check in EACH),
]
