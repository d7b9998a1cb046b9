"""Weights into a module: every name and shape must fit, and what was converted is said."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from statecheck.checkpoint.files import refusal
from statecheck.checkpoint.weights import Weights, nonfinite_tensors
from statecheck.errors import InputRefused
from statecheck.wording import listed, raised

_PREFIXES = {"module.": "DataParallel or DistributedDataParallel", "_orig_mod.": "torch.compile"}


def fit(module: nn.Module, weights: Weights) -> tuple[str, ...]:
    """Copy `weights` into `module`, whose device and dtypes stay; returns notes on what was converted.

    A tensor that `module` ties to another one need stand in the file only once. Floating-point tensors are converted
    to the module's dtype; a conversion that would overflow, and any other change of dtype, is refused.

    Raises :class:`statecheck.errors.CheckpointRefused` for missing, extra, misshapen or contradictory tensors, with the
    first five names; the module is then unchanged.

    >>> from pathlib import Path
    >>> gate = nn.Linear(2, 1, bias=False)
    >>> fit(gate, Weights({"weight": torch.ones(1, 2, dtype=torch.float64)}, {}, "zip", "", Path("a.pt")))
    ('1 tensors were converted from float64 to float32: weight',)
    """
    wanted = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    if any(value.is_meta for value in wanted.values()):
        raise InputRefused(f"{type(module).__name__} was built on the meta device: build it on the CPU")
    given = _with_ties(weights, wanted)
    _check_names(weights, given, wanted)
    _check_shapes(weights, given, wanted)
    converted = {name: _converted(weights, name, given[name], wanted[name]) for name in wanted}
    try:
        module.load_state_dict(converted, strict=True)
    except Exception as cause:  # hooks of the module may raise anything
        found = f"{type(module).__name__} does not take these weights ({raised(cause)})"
        raise refusal(weights.path, found, "was the checkpoint made by this model?") from cause
    return _notes(given, wanted)


def _address(value: Tensor) -> tuple[int, torch.Size, tuple[int, ...]] | None:
    return (value.data_ptr(), value.shape, value.stride()) if value.numel() else None


def _with_ties(weights: Weights, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors given, with those filled in that the module ties to one of them."""
    groups: dict[object, list[str]] = {}
    for name, value in wanted.items():
        groups.setdefault(_address(value) or name, []).append(name)
    given = dict(weights.tensors)
    for names in groups.values():
        present = [name for name in names if name in weights.tensors]
        for name in names if present else ():
            given.setdefault(name, weights.tensors[present[0]])
        for other in present[1:]:
            if not _same(weights.tensors[present[0]], weights.tensors[other]):
                found = f"{present[0]!r} and {other!r} differ, and the model ties them to one tensor"
                raise refusal(weights.path, found, "build the model untied, or save it again")
    return given


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def _check_names(weights: Weights, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if not missing and not extra:
        return
    sides = {"missing": missing, "extra": extra}
    parts = [f"{len(names)} {side} ({listed(names)})" for side, names in sides.items() if names]
    remedy = "give the configuration that it was trained with, or another --model"
    for prefix, maker in _PREFIXES.items():
        if all(name.startswith(prefix) for name in weights.tensors):
            remedy = f"its names begin with {prefix!r}, which {maker} adds: save the state_dict of the model inside"
    raise refusal(weights.path, f"its tensors are not those of the model: {', '.join(parts)}", remedy)


def _check_shapes(weights: Weights, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    misshapen = [
        f"{name} is {tuple(given[name].shape)} and should be {tuple(value.shape)}"
        for name, value in wanted.items()
        if given[name].shape != value.shape
    ]
    if misshapen:
        found = f"{len(misshapen)} tensors have another shape than the model's: {listed(misshapen)}"
        raise refusal(weights.path, found, "give the configuration that it was trained with")


def _converted(weights: Weights, name: str, value: Tensor, target: Tensor) -> Tensor:
    if value.dtype == target.dtype:
        return value
    if not (value.is_floating_point() and target.is_floating_point()):
        found = f"{name!r} is {_dtype(value)} and should be {_dtype(target)}"
        raise refusal(weights.path, found, "save it unquantised, in the model's own dtype")
    result = value.to(target.dtype)
    if nonfinite_tensors({name: result}) and not nonfinite_tensors({name: value.float()}):
        found = f"{name!r} overflows when it is converted from {_dtype(value)} to {_dtype(target)}"
        raise refusal(weights.path, found, "build the model in a wider dtype")
    return result


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _notes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """One sentence for each pair of dtypes."""
    changes: dict[tuple[str, str], list[str]] = {}
    for name, value in wanted.items():
        if given[name].dtype != value.dtype:
            changes.setdefault((_dtype(given[name]), _dtype(value)), []).append(name)
    return tuple(
        f"{len(names)} tensors were converted from {source} to {target}: {listed(names)}"
        for (source, target), names in changes.items()
    )
