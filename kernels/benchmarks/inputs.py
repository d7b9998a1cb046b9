"""The inputs that every variant of a recurrence is given, and how much work there is in them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]  # by the names of our own arguments

KERNELS = ("selective_scan", "wkv6", "ssd", "causal_conv1d")
SEED = 20404


@dataclass(frozen=True)
class Sizes:
    """Shapes of a run: B, T of all; D, N, W of Mamba and its convolution; H, and K = V = P = N of the other two."""

    batch: int = 4
    length: int = 1024
    channels: int = 512  # D
    state: int = 16  # N of selective_scan
    heads: int = 8  # H
    width: int = 64  # K, V, P and the N of ssd
    taps: int = 4  # W of the convolution

    def to_dict(self) -> dict[str, Any]:
        """The sizes as a dictionary that JSON can hold."""
        return dict(vars(self))


FULL = Sizes()  # those that the bars are set for
QUICK = Sizes(batch=2, length=32, channels=8, state=4, heads=2, width=8)


def make(kernel: str, sizes: Sizes, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    """The arguments of `kernel`, drawn with a fixed seed, as a trained model has them: slow decays and fast ones.

    Steps and decays start out as their papers say: dt log-uniform in 0.001..0.1, A = -1..-N (Mamba-1) or uniform in
    -16..-1 (Mamba-2), log w = -exp(d) with d in -6..-1 over the channels (RWKV-6), each with some noise a token.

    >>> {name: tuple(x.shape) for name, x in make("wkv6", QUICK).items()}["u"]
    (2, 8)
    """
    generator = torch.Generator().manual_seed(SEED)
    made = {
        "selective_scan": _selective_scan,
        "wkv6": _wkv6,
        "ssd": _ssd,
        "causal_conv1d": _causal_conv1d,
    }[kernel](sizes, generator)
    return {name: x.to(device=device, dtype=dtype).contiguous() for name, x in made.items()}


def flops(kernel: str, sizes: Sizes) -> float:
    """Floating-point operations of a forward `wkv6`: 5 for each element of the state and step."""
    if kernel != "wkv6":
        raise ValueError(f"flops are counted for wkv6 alone, found {kernel!r}")
    return 5.0 * sizes.batch * sizes.length * sizes.heads * sizes.width * sizes.width


def _selective_scan(s: Sizes, generator: torch.Generator) -> Inputs:
    inner = (s.batch, s.length, s.channels)
    return {
        "x": _normal(generator, *inner),
        "dt": _steps(generator, s.channels) * (0.5 * _normal(generator, *inner)).exp(),
        "A": -torch.arange(1.0, s.state + 1).expand(s.channels, s.state),
        "B": _normal(generator, s.batch, s.length, s.state),
        "C": _normal(generator, s.batch, s.length, s.state),
        "D": torch.ones(s.channels) + 0.1 * _normal(generator, s.channels),
    }


def _wkv6(s: Sizes, generator: torch.Generator) -> Inputs:
    shape = (s.batch, s.length, s.heads, s.width)
    decay = -6 + 5 * torch.linspace(0, 1, s.heads * s.width).view(s.heads, s.width)
    return {
        "r": _normal(generator, *shape),
        "k": _normal(generator, *shape),
        "v": _normal(generator, *shape),
        "log_w": -(decay + 0.5 * _normal(generator, *shape)).exp(),
        "u": 0.5 * _normal(generator, s.heads, s.width),
    }


def _ssd(s: Sizes, generator: torch.Generator) -> Inputs:
    steps = (s.batch, s.length, s.heads)
    return {
        "x": _normal(generator, *steps, s.width),
        "dt": _steps(generator, s.heads) * (0.5 * _normal(generator, *steps)).exp(),
        "A": -1 - 15 * torch.rand(s.heads, generator=generator),
        "B": _normal(generator, s.batch, s.length, 1, s.width),
        "C": _normal(generator, s.batch, s.length, 1, s.width),
        "D": torch.ones(s.heads) + 0.1 * _normal(generator, s.heads),
    }


def _causal_conv1d(s: Sizes, generator: torch.Generator) -> Inputs:
    return {
        "x": _normal(generator, s.batch, s.length, s.channels),
        "weight": _normal(generator, s.channels, s.taps) / s.taps**0.5,
        "bias": 0.1 * _normal(generator, s.channels),
    }


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _steps(generator: torch.Generator, count: int) -> Tensor:
    """Log-uniform in 0.001..0.1."""
    low, high = math.log(1e-3), math.log(0.1)
    return (low + (high - low) * torch.rand(count, generator=generator)).exp()
