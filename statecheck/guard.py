"""What a check must leave as it found it: the global random generators, and the model it checks.

Inside :func:`borrowed` the model is in evaluation mode, gradients are off, and the global generators start from the
given seed, so that a model which draws from them brings the same numbers in every run. Afterwards generators, modes and
buffers are put back; what can't be put back (parameters, hooks, dtypes) is named.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

#: Above this number of elements a parameter is compared by its address and version, not by its content.
LARGE = 64_000_000


@dataclass
class Loan:
    """Filled in when the check is over: what it left changed."""

    changed: list[str] = field(default_factory=list)


@contextmanager
def borrowed(module: nn.Module | None, *, seed: int) -> Iterator[Loan]:
    """Lend `module` (None: only the generators) to a check.

    >>> layer = nn.Linear(2, 2)
    >>> with borrowed(layer, seed=0) as loan:
    ...     _ = layer.weight.data.add_(1.0)
    >>> loan.changed
    ['parameter weight']
    """
    loan = Loan()
    generators = _generators()
    before = _fingerprint(module) if module is not None else {}
    modes = {child: child.training for child in module.modules()} if module is not None else {}
    buffers = _buffers(module)
    _seed_generators(seed)
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            yield loan
    finally:
        _restore_generators(generators)
        for child, mode in modes.items():
            child.training = mode
        if module is not None:
            _restore_buffers(buffers)
            loan.changed += _changes(before, _fingerprint(module))


def _generators() -> dict[str, Any]:
    """States of the global generators that are in use; numpy's only if something has loaded numpy."""
    states: dict[str, Any] = {"random": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return states


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["random"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])


def _buffers(module: nn.Module | None) -> dict[tuple[nn.Module, str], Tensor | None]:
    """Copies of the buffers: a model may keep its state in them, so that writing there is no fault."""
    if module is None:
        return {}
    return {
        (child, name): None if buffer is None else buffer.detach().clone()
        for child in module.modules()
        for name, buffer in child._buffers.items()
    }


def _restore_buffers(buffers: dict[tuple[nn.Module, str], Tensor | None]) -> None:
    for (child, name), kept in buffers.items():
        buffer = child._buffers.get(name)
        if buffer is None or kept is None or buffer.requires_grad or _layout(buffer) != _layout(kept):
            child._buffers[name] = kept
        else:
            with torch.no_grad():
                buffer.copy_(kept)


def _fingerprint(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """A value for every parameter, and the number of hooks of every submodule."""
    found: dict[str, tuple[Any, ...]] = {}
    small = sum(parameter.numel() for parameter in module.parameters()) <= LARGE
    for name, parameter in module.named_parameters():
        content = (_checksum(parameter),) if small else (parameter.data_ptr(), parameter._version)
        found[f"parameter {name}"] = (*_layout(parameter), content, parameter.grad is None)
    for name, child in module.named_modules():
        found[f"hooks of {name or 'the model'}"] = (_hooks(child),)
    return found


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes: exact where a sum would round, and quick next to a forward pass."""
    data = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(data.view(torch.uint8).numpy().data)


def _hooks(module: nn.Module) -> int:
    tables = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    return sum(len(table) for table in tables if isinstance(table, dict))


def _changes(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    names = dict.fromkeys(chain(before, after))
    return [name for name in names if before.get(name) != after.get(name)]
