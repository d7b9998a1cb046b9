"""Sizes and numbers from a seed: numbers that float16 holds exactly, so that fixtures are small and exact."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from peer_parity.comparison import Arrays, Case


def generator(seed: int, salt: str) -> np.random.Generator:
    """Numbers that depend on nothing but the seed and the peer."""
    return np.random.default_rng([seed, *salt.encode()])


def normal(draw: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that float16 holds exactly, in float64."""
    return torch.from_numpy(draw.standard_normal(shape) * scale).half().double()


def one_of(draw: np.random.Generator, values: Sequence[float], *shape: int) -> Tensor:
    """Each element one of `values`, as float16 holds it."""
    return torch.from_numpy(draw.choice(np.asarray(values), shape)).half().double()


def weights_of(draw: np.random.Generator, module: nn.Module) -> Arrays:
    """Numbers for every parameter: matrices as large as their inputs are wide, vectors around zero."""
    return {
        name: normal(draw, *p.shape, scale=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.5)
        for name, p in module.named_parameters()
    }


def kept(arrays: Arrays, exact: Iterable[str]) -> Arrays:
    """The arrays as they are stored: those named `exact` in float16, which holds them."""
    exact = set(exact)
    stored = {name: (x.half() if name in exact else x).detach().clone().contiguous() for name, x in arrays.items()}
    if wrong := [name for name in exact if not torch.equal(stored[name].double(), arrays[name].double())]:
        raise ValueError(f"expected numbers that float16 holds, found others in {', '.join(wrong)}")
    return stored


def lengths(draw: np.random.Generator, seed: int, unit: int) -> list[int]:
    """How long the calls are: one token, a prefix and single tokens, and past both chunk sizes (32 and 64)."""
    fixed = {0: [1], 1: [1, 1, 1], 2: [66], 3: [2, 1], 4: [33, 1, 7], 5: [70, 3]}
    drawn = fixed.get(seed) or [int(draw.choice([1, 1, 2, 3, 5, 9, 14])) for _ in range(int(draw.integers(1, 5)))]
    return [n if n == 1 else n * unit for n in drawn]


def batch(draw: np.random.Generator, seed: int) -> int:
    """Rows: one in the cases of fixed length."""
    return int(draw.integers(1, 4)) if seed > 5 else 1


def start(seed: int) -> Case:
    """Whether a case begins with states that are not zero, and whether its decays are extreme."""
    return {
        "started": seed % 2 == 1,
        "extreme": seed % 3 == 2,  # log decays near -100 in some places, near -1e-4 in others
    }
