"""The four recurrences as the tests of their forms see them: shapes to go through, seeded arguments, how far off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import statecheck_kernels
import torch
from statecheck_kernels import Observe, Scan
from torch import Tensor

Arguments = dict[str, Tensor]
Sizes = dict[str, int]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}  # of the largest expected magnitude


@dataclass(frozen=True)
class Operation:
    """A public function: its tensors with their axes, and sizes worth trying, the everyday ones first."""

    name: str
    axes: Mapping[str, str]
    sizes: tuple[Sizes, ...]
    options: Mapping[str, bool] = field(default_factory=dict)

    @property
    def along(self) -> list[str]:
        """The arguments that have a time axis; it is their second."""
        return [name for name, axes in self.axes.items() if " T" in axes]

    @property
    def usual(self) -> Sizes:
        return self.sizes[0]


def _every(letters: str, *sizes: tuple[int, ...]) -> tuple[Sizes, ...]:
    return tuple(dict(zip(letters.split(), size, strict=True)) for size in sizes)


WKV6 = Operation(
    "wkv6",
    {"r": "B T H K", "k": "B T H K", "v": "B T H V", "log_w": "B T H K", "u": "H K", "state": "rows H K V"},
    _every("H K V", (2, 5, 3), (1, 1, 1), (3, 8, 16), (1, 33, 7), (2, 1, 20), (1, 16, 64), (2, 32, 32), (1, 20, 1)),
)
SCAN = Operation(
    "selective_scan",
    {"x": "B T D", "dt": "B T D", "A": "D N", "B": "B T N", "C": "B T N", "D": "D", "state": "rows D N"},
    _every("D N", (5, 3), (1, 1), (8, 16), (17, 16), (33, 1), (1, 19), (24, 8), (70, 2), (3, 64)),
)
SSD = Operation(
    "ssd",
    {"x": "B T H P", "dt": "B T H", "A": "H", "B": "B T G N", "C": "B T G N", "D": "H", "state": "rows H P N"},
    _every(
        "H P G N", (4, 3, 2, 5), (1, 1, 1, 1), (6, 8, 3, 16), (2, 17, 1, 7), (3, 2, 3, 33), (2, 64, 1, 16), (6, 5, 2, 1)
    ),
)
CONVOLUTION = Operation(
    "causal_conv1d",
    {"x": "B T D", "weight": "D W", "bias": "D", "state": "rows D window"},
    _every("D W window", (5, 4, 3), (1, 1, 0), (7, 2, 1), (16, 3, 2), (33, 4, 3), (8, 5, 4), (17, 1, 0)),
    {"silu": True},
)
OPERATIONS = (WKV6, SCAN, SSD, CONVOLUTION)


def drawn(
    operation: Operation,
    steps: int = 20,
    sizes: Sizes | None = None,
    batch: int = 2,
    rows: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Arguments:
    """Arguments of normal numbers, log-decays and rates below 0, steps above it, rounded to `dtype`."""
    draw = torch.Generator().manual_seed(seed)
    size = {"B": batch, "T": steps, "rows": batch if rows is None else rows, **(sizes or operation.usual)}
    found = {}
    for name, axes in operation.axes.items():
        x = torch.randn([size[axis] for axis in axes.split()], generator=draw, dtype=torch.float64)
        if name in ("log_w", "A"):
            x = -x.exp()
        elif name == "dt":
            x = 0.3 * x.exp()
        found[name] = x.to(dtype)
    return found


def run(
    operation: Operation,
    arguments: Arguments,
    form: str,
    *,
    packed: Sequence[int] | None = None,
    observe: Observe | None = None,
    options: Mapping[str, bool] | None = None,
) -> Scan:
    """Call the public function; `packed` are lengths of sequences, `options` take the place of the operation's."""
    starts = None if packed is None else torch.tensor([0, *packed]).cumsum(0)
    function = getattr(statecheck_kernels, operation.name)
    chosen = operation.options if options is None else options
    return function(**arguments, **chosen, cu_seqlens=starts, statistics=observe, form=form)


def oracle(
    operation: Operation,
    arguments: Arguments,
    *,
    packed: Sequence[int] | None = None,
    observe: Observe | None = None,
) -> Scan:
    """The same by the reference, in float64."""
    return run(
        operation, {name: x.double() for name, x in arguments.items()}, "reference", packed=packed, observe=observe
    )


def gradients(
    operation: Operation,
    arguments: Arguments,
    form: str,
    *,
    packed: Sequence[int] | None = None,
    wanted: Sequence[str] | None = None,
) -> Arguments:
    """Of one seeded weighting of all outputs and the last state, with respect to the arguments `wanted` (all).

    The weights are numbers that every dtype can hold: no gradient is rounded on its way in.
    """
    names = list(arguments) if wanted is None else list(wanted)
    leaves = {name: x.detach().clone().requires_grad_(name in names) for name, x in arguments.items()}
    scan = run(operation, leaves, form, packed=packed)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=draw).bfloat16().double() for x in (scan.outputs, scan.state)]
    loss = (weights[0] * scan.outputs.double()).sum() + (weights[1] * scan.state.double()).sum()
    return gradients_of(loss, {name: leaves[name] for name in names})


def gradients_of(loss: Tensor, leaves: Arguments) -> Arguments:
    """The gradient of each leaf, zeros for one that has no part in `loss`."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in zip(leaves.items(), found, strict=True)}


def expected_gradients(operation: Operation, arguments: Arguments, packed: Sequence[int] | None = None) -> Arguments:
    """The same by the reference, in float64."""
    return gradients(operation, {name: x.double() for name, x in arguments.items()}, "reference", packed=packed)


def off(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """The largest difference in units of the largest expected magnitude, `floor` at least; NaN in one is infinite."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    found, expected = found.detach().double(), expected.detach().double()
    if found.numel() == 0 or torch.equal(found, expected):
        return 0.0
    return float(
        torch.nan_to_num((found - expected).abs().max() / expected.abs().max().clamp_min(floor), nan=torch.inf)
    )


def assert_close(found: Arguments, expected: Arguments, tolerance: float, what: str = "", floor: float = 0.0) -> None:
    """All tensors of `found` are within `tolerance` of those expected, see :func:`off`."""
    assert found.keys() == expected.keys()
    apart = {name: off(x, expected[name], floor) for name, x in found.items()}
    assert all(x <= tolerance for x in apart.values()), f"{what} differ by {apart}, allowed {tolerance}"


def results(scan: Scan) -> Arguments:
    """Outputs and last state by name."""
    return {"outputs": scan.outputs, "state": scan.state}


def cut(arguments: Arguments, operation: Operation, start: int, stop: int) -> Arguments:
    """The arguments of steps `start` to `stop`."""
    return {name: x[:, start:stop] if name in operation.along else x for name, x in arguments.items()}
