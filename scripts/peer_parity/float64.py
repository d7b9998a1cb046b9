"""Peers in float64, whose code casts to float32."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peer_parity.comparison import Arrays, Case, relative_error


class InFloat64(TorchFunctionMode):
    """Within it a cast to float32 is one to float64, and what is asked for in float32 is made in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Case | None = None
    ) -> Any:
        """Call `func` with every float32 in its arguments replaced."""
        if func is Tensor.float:
            func = Tensor.double
        widened = [torch.float64 if argument is torch.float32 else argument for argument in args]
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*widened, **named)


def in_float64(run: Callable[[Case], Arrays], case: Case) -> Arrays:
    """What the peer says in float64."""
    with InFloat64():
        return run(case)


def as_it_is(run: Callable[[Case], Arrays], case: Case) -> Arrays:
    """What the peer's untouched code says in float32."""
    return run({**case, "dtype": "float32"})


def checked(run: Callable[[Case], Arrays], case: Case) -> Arrays:
    """What the peer says in float64; raises if its untouched float32 code says something else."""
    arrays, untouched = in_float64(run, case), as_it_is(run, case)
    for name, wide in arrays.items():
        error = relative_error(untouched[name], wide)
        if not error < 1e-4:
            raise ValueError(f"{case}: {name}: expected the float32 answers of the peer, found them {error:.1e} away")
    return arrays


def dtype_of(case: Case) -> torch.dtype:
    """The dtype that a peer is to run in."""
    found: torch.dtype = getattr(torch, case.get("dtype", "float64"))
    return found
