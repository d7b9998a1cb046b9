"""The records that cross the C interface, field by field as in `src`, and how tensors get into them."""

from ctypes import POINTER, Structure, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from statecheck_kernels.contract import Observe, StateStatistics
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
        ("heads", c_int64),
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


class Packing:
    """The sequences of one call: how many, where their chunks begin, and the record that says so."""

    def __init__(self, steps: int, rows: int, cu_seqlens: Tensor | None, chunk: int) -> None:
        self.count, self.steps, self.packed = rows, steps, cu_seqlens is not None
        self._cu = self._first_chunk = None
        self.chunks = rows * -(-steps // chunk)
        if cu_seqlens is not None:
            self._cu = cu_seqlens.to(torch.int64).contiguous()
            chunks = -(-(self._cu[1:] - self._cu[:-1]) // chunk)
            self._first_chunk = chunks.cumsum(0) - chunks
            self.chunks = int(chunks.sum())

    def record(self) -> Sequences:
        """For the library; valid as long as this object lives."""
        cu, first = (None if x is None else x.data_ptr() for x in (self._cu, self._first_chunk))
        return Sequences(self.count, self.steps, cu, first)


class Observer:
    """The tensors that a call's statistics are written into."""

    def __init__(self, observe: Observe | None, packing: Packing, heads: int) -> None:
        self.observe, self.heads = observe, heads
        if observe is None:
            return
        rows, steps = 1 if packing.packed else packing.count, packing.steps // observe.every
        names = STATISTICS if observe.entropy else STATISTICS[:-1]
        self._found = {name: torch.zeros(rows, steps, heads, dtype=torch.float64) for name in names}
        running = observe.running
        zeros = torch.zeros(packing.count, heads, dtype=torch.float64)
        self._running = zeros if running is None else zeros + running.detach()

    def record(self) -> Statistics:
        """For the library; valid as long as this object lives."""
        if self.observe is None:
            return Statistics()
        places = {name: tensor.data_ptr() for name, tensor in self._found.items()}
        return Statistics(
            self.observe.every, int(self.observe.entropy), self.heads, running=self._running.data_ptr(), **places
        )

    def statistics(self) -> StateStatistics | None:
        """What the library wrote."""
        if self.observe is None:
            return None
        found = self._found
        return StateStatistics(
            square_sum=found["square_sum"],
            largest=found["largest"],
            mean=found["mean"],
            near_largest=found["near_largest"].to(torch.int64),
            nonfinite=found["nonfinite"].to(torch.int64),
            entropy=found.get("entropy"),
            running=self._running,
        )
