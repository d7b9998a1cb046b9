"""What the kernels of all four recurrences share: launches, tile sizes, sequences, and where states are saved.

A kernel's first program axis is the row: one of the batch, or one packed sequence. The states at the start of every
`CHUNK` steps of a row are saved where a gradient is wanted; the backward pass runs each chunk forward again from there.
"""

# ruff: noqa: SIM108  an `if` by itself is decided when the kernel is compiled, not when it runs
from typing import Any

import torch
import triton
import triton.language as tl

from statecheck_kernels.contract import Observe

CHUNK = 32  # steps between two saved states
TILES = {  # units of a state that one program holds in registers
    "forward": 512,  # few, so that there are many programs
    "watched": 8192,  # statistics of a head that one program holds whole need no second pass
    "backward": 4096,  # more than forward: the parts of gradients that are added up take memory for each block
    "channels": 512,  # selective scan, all passes: its parts are small and its state is rarely held by one program
}


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run a kernel on the device of the first argument; nothing where the grid is empty."""
    if 0 in grid:
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def passes(observe: Observe | None, counting: bool) -> dict[str, Any]:
    """The constants of a kernel that takes statistics: whether it is the second pass, and with entropy or not."""
    return {"COUNT": counting, "ENTROPY": observe is not None and observe.entropy}


def triton_type(dtype: torch.dtype) -> Any:
    """The triton dtype of arithmetic, given that of the state: float32 or float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def block_of(size: int, other: int, job: str) -> int:
    """How many of `size` channels a program takes when each holds `other` units: a power of two, at least 1."""
    return max(1, min(power(size), TILES[job] // power(other)))


def power(size: int) -> int:
    """The smallest power of two that holds `size`, at least 1."""
    return triton.next_power_of_2(max(1, size))


def warps(units: int) -> int:
    """Warps of a program that holds so many units of state."""
    return 8 if units >= 4096 else 4 if units > 1024 else 2 if units > 512 else 1


def slots(steps: int, rows: int, packed: bool) -> int:
    """How many chunk starts there can be: see :func:`first_slot`."""
    return steps // CHUNK + rows if packed else rows * triton.cdiv(steps, CHUNK)


@triton.jit
def place() -> tl.tuple:
    """Row, head and block of the program; int64, since what they are multiplied with may not fit 32 bits."""
    return tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)


@triton.jit
def bounds(cu_seqlens: tl.tensor, row: tl.tensor, T: tl.tensor) -> tl.tuple:
    """Of a row: its place in the batch, its first step, and the step after its last; int64, since steps are long."""
    if cu_seqlens is not None:
        batch = row * 0
        start = tl.load(cu_seqlens + row).to(tl.int64)
        stop = tl.load(cu_seqlens + row + 1).to(tl.int64)
    else:
        batch = row
        start = row * 0
        stop = start + T
    return batch, start, stop


@triton.jit
def first_slot(cu_seqlens: tl.tensor, row: tl.tensor, start: tl.tensor, T: tl.tensor, CHUNK: tl.constexpr) -> tl.tensor:
    """Where the states of a row's chunks are saved from. Packed: no two sequences meet, whatever their lengths are.

    A sequence of steps a to b has ceil((b - a) / CHUNK) chunks, at most b // CHUNK - a // CHUNK + 1.
    """
    if cu_seqlens is not None:
        slot = start // CHUNK + row
    else:
        slot = row * tl.cdiv(T, CHUNK)
    return slot


@triton.jit
def take(
    x: tl.tensor,
    at: tl.tuple,
    batch: tl.tensor,
    t: tl.tensor,
    head: tl.tensor,
    lanes: tl.tensor,
    inside: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """One step of a head of a (B, T, H, channels) tensor of any strides: its lanes, 0 outside, widened at once."""
    return tl.load(x + batch * at[0] + t * at[1] + head * at[2] + lanes * at[3], mask=inside, other=0.0).to(WIDE)


@triton.jit
def lanes_of(block: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The channels of a block; int64 as the block is."""
    return block * BLOCK + tl.arange(0, BLOCK)
