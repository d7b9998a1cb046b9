"""What one run of the benchmark was asked for."""

import ctypes
from dataclasses import dataclass

import torch

from benchmarks.inputs import FULL, KERNELS, Sizes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt, malloc.h
KINDS = ("forward", "backward", "threads", "packed", "statistics", "memory", "hybrid", "training")


@dataclass(frozen=True)
class Settings:
    """The options of `kernels/bench.py`; `form` None means the one that a caller gets who names none."""

    sizes: Sizes = FULL
    kernels: tuple[str, ...] = KERNELS
    kinds: tuple[str, ...] = KINDS
    form: str | None = None
    repeats: int = 9
    threads: int = 1
    long: bool = False
    quick: bool = False
    keep_memory: bool = False

    @property
    def clock(self) -> str:
        """Which time the ratios are of: with one thread that of the process, which other processes disturb less."""
        return "cpu" if self.threads == 1 else "wall"

    def use_threads(self) -> None:
        """Sets torch's number of threads, for us and for every peer."""
        torch.set_num_threads(self.threads)

    def use_memory(self) -> None:
        """With `keep_memory`, tells glibc to keep what is freed for the next tensor; OSError where there is no glibc.

        As it is by default, glibc gives blocks above 32 MB back at once and the kernel clears them anew each time: for
        peers that build tensors of (B, L, D, N) that is half of their time.
        """
        if not self.keep_memory:
            return
        library = ctypes.CDLL(None)
        if not hasattr(library, "mallopt"):
            raise OSError("--keep-memory: expected glibc with mallopt, found a C library without; leave the option out")
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
