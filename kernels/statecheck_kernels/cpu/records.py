"""The records that cross the C interface, field by field as in `src`, and how tensors get into them."""

from ctypes import POINTER, Structure, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from statecheck_kernels.cpu.library import load


class View(Structure):
    """A tensor: where it begins, and its strides in elements."""

    _fields_ = (("data", c_void_p), ("stride", c_int64 * 4))


class Sequences(Structure):
    """Which steps belong together: `count` rows of `steps`, or, packed, boundaries and the first chunk of each."""

    _fields_ = (
        ("count", c_int64),
        ("steps", c_int64),
        ("cu", c_void_p),
        ("first_chunk", c_void_p),
    )


class Shape(Structure):
    """Of a memory that is a matrix a head."""

    _fields_ = (("heads", c_int64), ("K", c_int64), ("V", c_int64), ("chunk", c_int64))


STATISTICS = ("square_sum", "largest", "mean", "near_largest", "nonfinite", "entropy")


class Statistics(Structure):
    """Where the statistics go; nothing is wanted if `square_sum` is null."""

    _fields_ = (
        ("every", c_int64),
        ("with_entropy", c_int64),
        *((name, c_void_p) for name in STATISTICS),
        ("running", c_void_p),
    )


def _views(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, View) for name in names)


_OUTER = (
    ("sequences", Sequences),
    ("shape", Shape),
    ("statistics", Statistics),
    *_views("initial", "final", "d_final", "d_initial"),
    ("checkpoints", c_void_p),
    *_views("y", "dy"),
)


class Wkv6(Structure):
    """A call of wkv6."""

    _fields_ = (*_OUTER, *_views("r", "k", "v", "log_w", "u", "d_r", "d_k", "d_v", "d_log_w", "d_u"))


class Ssd(Structure):
    """A call of ssd; its memory is (N, P) here."""

    _fields_ = (
        *_OUTER,
        ("groups", c_int64),
        ("parts", c_int64),
        *_views("x", "dt", "A", "B", "C", "D", "d_x", "d_dt", "d_A", "d_B", "d_C", "d_D"),
    )


class SelectiveScan(Structure):
    """A call of selective_scan."""

    _fields_ = (
        ("sequences", Sequences),
        ("channels", c_int64),
        ("N", c_int64),
        ("statistics", Statistics),
        *_views("x", "dt", "A", "B", "C", "D", "initial", "final", "y"),
        ("checkpoints", c_void_p),
        ("moments", c_void_p),
        ("counts", c_void_p),
        ("thresholds", c_void_p),
        *_views("dy", "d_final", "d_initial", "d_x", "d_dt", "d_A", "d_B", "d_C", "d_D"),
    )


class Convolution(Structure):
    """A call of causal_conv1d."""

    _fields_ = (
        ("sequences", Sequences),
        ("channels", c_int64),
        ("taps", c_int64),
        ("silu", c_int64),
        ("statistics", Statistics),
        *_views("x", "weight", "bias", "initial", "final", "y"),
        *_views("dy", "d_final", "d_initial", "d_x", "d_weight", "d_bias"),
    )


MOMENTS = 7  # numbers in the C++ record of that name


def put(record: Structure, **tensors: Tensor | None) -> None:
    """Put tensors into the views of a record; None leaves the view empty. The record does not keep them alive."""
    for name, tensor in tensors.items():
        if tensor is not None:
            strides = (*tensor.stride(), *(0,) * (4 - tensor.dim()))
            setattr(record, name, View(tensor.data_ptr(), (c_int64 * 4)(*strides)))


def room(like: Tensor) -> Tensor:
    """A contiguous tensor of that shape and dtype, to be written into."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def run(name: str, record: Structure, dtype: torch.dtype) -> None:
    """Call one function of the library, on as many threads as torch uses. MemoryError if the machine has no more."""
    function = getattr(load(), name)
    function.argtypes, function.restype = (POINTER(type(record)), c_int, c_int64), c_int
    if function(record, int(dtype == torch.float64), torch.get_num_threads()):
        raise MemoryError(f"{name}: the machine has no memory left for the work space of the compiled library")


def constant(name: str, *sizes: int) -> int:
    """A size that the library chooses, as `sk_outer_chunk` of K and V."""
    function = getattr(load(), name)
    function.argtypes, function.restype = (c_int64,) * len(sizes), c_int64
    return int(function(*sizes))
