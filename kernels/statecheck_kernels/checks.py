"""What the public functions check before a form runs, so that no form meets a shape, dtype or device it can't take."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from statecheck_kernels.contract import Observe

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Given = tuple[str, Tensor | None, str]  # name, what was given for it, its axes with blanks between: "B T H K"


def inputs(given: Sequence[Given]) -> dict[str, int]:
    """Axis -> size, once all of `given` are floating tensors on one device whose axes of one name have one size.

    None is passed over. All sizes but those of B (rows) and T (steps) must be 1 or more. Raises TypeError for what is
    no floating tensor, ValueError for the rest.

    >>> inputs([("x", torch.zeros(2, 5, 4), "B T D"), ("dt", torch.zeros(2, 5, 3), "B T D")])
    Traceback (most recent call last):
    ValueError: dt has shape (2, 5, 3), expected (B, T, D) = (2, 5, 4) with D as in x
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}  # axis -> the tensor that settled its size
    there = [(name, x, axes.split()) for name, x, axes in given if x is not None]
    for name, x, axes in there:
        floating(name, x)
        _same_device(name, x, there[0][0], there[0][1])
        _axes(name, x, axes, sizes, origin)
    return sizes


def floating(name: str, x: Tensor) -> None:
    """TypeError unless `x` is a real floating tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a tensor")
    if x.dtype not in FLOATS:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise TypeError(f"{name} has dtype {str(x.dtype).removeprefix('torch.')}, expected one of {wanted}")


def _same_device(name: str, x: Tensor, first: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}, expected {other.device}, where {first} is: move one of them")


def _axes(name: str, x: Tensor, axes: list[str], sizes: dict[str, int], origin: dict[str, str]) -> None:
    """Check the axes of `x` against `sizes`; add those that are new."""
    shape, letters = tuple(x.shape), f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {shape}, expected {len(axes)} axes {letters}")
    wrong = [axis for axis, size in zip(axes, shape, strict=True) if sizes.get(axis, size) != size]
    if wrong:
        expected = tuple(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True))
        reasons = ", ".join(f"{axis} as in {origin[axis]}" for axis in wrong)
        raise ValueError(f"{name} has shape {shape}, expected {letters} = {expected} with {reasons}")
    for axis, size in zip(axes, shape, strict=True):
        if size == 0 and axis not in ("B", "T") and axis not in sizes:
            raise ValueError(f"{name} has shape {shape}: {axis} of {letters} must be 1 or more")
        if axis not in sizes:
            sizes[axis], origin[axis] = size, name


def sequences(cu_seqlens: Tensor | None, first: str, x: Tensor) -> Tensor | None:
    """`cu_seqlens` as int64 on the device of `x` (B, T, ...), checked; None stays None. Waits for the device.

    >>> sequences(torch.tensor([0, 3, 2, 5]), "x", torch.zeros(1, 5, 4))
    Traceback (most recent call last):
    ValueError: cu_seqlens falls from 3 to 2 at place 2: expected starts of sequences, none before the one ahead of it
    """
    if cu_seqlens is None:
        return None
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        kind = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens is {kind}, expected an int32 or int64 tensor (sequences + 1)")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (sequences + 1,): [0, ..., steps]")
    batch, time = x.shape[:2]
    if batch != 1:
        raise ValueError(f"{first} has {batch} rows, expected 1 with cu_seqlens: packed sequences lie in one row")
    places = cu_seqlens.tolist()
    if places[0] != 0 or places[-1] != time:
        raise ValueError(
            f"cu_seqlens goes from {places[0]} to {places[-1]}, expected 0 to {time}, the steps of {first}"
        )
    for index, (start, end) in enumerate(pairwise(places)):
        if end < start:
            raise ValueError(
                f"cu_seqlens falls from {start} to {end} at place {index + 1}: "
                "expected starts of sequences, none before the one ahead of it"
            )
    return cu_seqlens.to(x.device, torch.int64)


def initial(state: Tensor, shape: tuple[int, ...], rows: str, like: Tensor) -> None:
    """The initial state must be a floating tensor of `shape` on the device of `like`; `rows` says what its rows are."""
    floating("state", state)
    _same_device("state", state, "the first input", like)
    if tuple(state.shape) != shape:
        raise ValueError(f"state has shape {tuple(state.shape)}, expected {shape}: one row {rows}")


def observe(wanted: Observe | None, rows: int, heads: int) -> None:
    """`wanted` must be an :class:`Observe` that fits `rows` and `heads`."""
    if wanted is None:
        return
    if not isinstance(wanted, Observe):
        raise TypeError(f"statistics is a {type(wanted).__name__}, expected Observe(every=..., entropy=...) or None")
    if not isinstance(wanted.every, int) or wanted.every < 1:
        raise ValueError(f"statistics.every is {wanted.every!r}, expected a whole number of steps, 1 or more")
    if wanted.running is not None:
        floating("statistics.running", wanted.running)
        if tuple(wanted.running.shape) != (rows, heads):
            found = tuple(wanted.running.shape)
            raise ValueError(f"statistics.running has shape {found}, expected (rows, heads) = {(rows, heads)}")


def whole_groups(heads: int, groups: int) -> None:
    """Heads must be a multiple of groups."""
    if heads % groups:
        raise ValueError(f"B and C have {groups} groups and x {heads} heads, expected heads to be a multiple of groups")
