"""Pure functions on states: flat mappings of names to tensors with the batch in dimension 0.

>>> import torch
>>> h = {"layers.0.h": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
>>> rows(h, torch.tensor([1]))
{'layers.0.h': tensor([[3., 4.]])}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from statecheck.errors import ContractError
from statecheck.protocol import States


def clone(states: Mapping[str, Tensor]) -> States:
    """The same values in memory of their own; gradients still flow through."""
    return {name: value.clone() for name, value in states.items()}


def detach(states: Mapping[str, Tensor]) -> States:
    """The same values, cut from the graph of gradients."""
    return {name: value.detach() for name, value in states.items()}


def rows(states: Mapping[str, Tensor], index: Tensor) -> States:
    """The rows `index` (int64) of the batch, in that order; rows may repeat."""
    return {name: value.index_select(0, index.to(value.device)) for name, value in states.items()}


def concatenate(parts: Sequence[Mapping[str, Tensor]]) -> States:
    """Batches put below each other. All parts must have the same names."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def replace(states: Mapping[str, Tensor], other: Mapping[str, Tensor], names: Iterable[str]) -> States:
    """`states` with the tensors `names` taken from `other`: a transplant."""
    chosen = set(names)
    return {name: other[name] if name in chosen else value for name, value in states.items()}


def scramble(states: Mapping[str, Tensor], *, shift: int = 1) -> States:
    """Each row's state given to the row `shift` further on: every document gets another's memory."""
    return {name: value.roll(shift, dims=0) for name, value in states.items()}


def batch_size(states: Mapping[str, Tensor]) -> int | None:
    """Rows in the batch; None for {}."""
    return next((value.shape[0] for value in states.values()), None)


def size_in_bytes(states: Mapping[str, Tensor]) -> int:
    """Bytes that the state takes, all rows together."""
    return sum(value.numel() * value.element_size() for value in states.values())


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest relative difference of any tensor: ||a - b|| / max(||a||, ||b||), 0 for two zeros, inf for other shapes.

    >>> distance({"h": torch.ones(1, 4)}, {"h": torch.ones(1, 4) * 1.1})
    0.0909...
    """
    if a.keys() != b.keys():
        return float("inf")
    return max((relative(a[name], b[name]) for name in a), default=0.0)


@torch.no_grad()
def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / max(||a||, ||b||) in float64; NaN in the same places is no difference, elsewhere it is inf."""
    if a.shape != b.shape:
        return float("inf")
    a, b = wide(a), wide(b)
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return float("inf")
    difference = torch.nan_to_num(a - b).norm()
    scale = max(torch.nan_to_num(a).norm().item(), torch.nan_to_num(b).norm().item())
    return difference.item() / scale if scale else 0.0


def wide(value: Tensor) -> Tensor:
    """The same values as float64, or complex128 for complex ones."""
    return value.to(torch.complex128) if value.is_complex() else value.double()


def nonfinite(states: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, value in states.items() if not torch.isfinite(value).all()]


def _keys(sequence: Sequence[Any]) -> Iterable[Any]:
    """Names of the places: the fields of a named tuple, else 0, 1, ..."""
    return getattr(sequence, "_fields", range(len(sequence)))


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, lists and tuples as one flat mapping with dotted names; None leaves are dropped.

    >>> flatten({"lstm": (1, 2), "n": None})
    {'lstm.0': 1, 'lstm.1': 2}
    """
    if nested is None:
        return {}
    if isinstance(nested, Mapping):
        pairs: Iterable[tuple[Any, Any]] = nested.items()
    elif isinstance(nested, (list, tuple)):
        pairs = zip(_keys(nested), nested, strict=True)
    else:
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def unflatten(template: Any, flat: Mapping[str, Any], prefix: str = "") -> Any:
    """The inverse of :func:`flatten`: values of `flat` in the shape of `template`.

    Raises :class:`ContractError` for a name that the template asks for and `flat` lacks.
    """
    if template is None:
        return None
    if isinstance(template, Mapping):
        return {k: unflatten(v, flat, f"{prefix}.{k}" if prefix else str(k)) for k, v in template.items()}
    if isinstance(template, (list, tuple)):
        pairs = zip(_keys(template), template, strict=True)
        values = [unflatten(v, flat, f"{prefix}.{k}" if prefix else str(k)) for k, v in pairs]
        return type(template)(*values) if hasattr(template, "_fields") else type(template)(values)
    if prefix not in flat:
        raise ContractError(f"expected a state named {prefix!r}, found {', '.join(flat) or 'none'}")
    return flat[prefix]
