"""What an object of a library holds: tensors, numbers and flags, wherever in its lists, mappings and attributes.

A cache object is a tree whose leaves are what a model remembers. :func:`leaves` names them, :func:`rebuilt_with` makes
the same tree with other values; neither knows any library.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

Leaf = Tensor | bool | int | float
#: Steps from the root: an attribute's name, a mapping's key or a sequence's index, with how to go there.
Path = tuple[tuple[str, Any], ...]
DEEPEST = 8

_CLOSED = (str, bytes, type, torch.dtype, torch.device, torch.Generator)
_EVERY_MODULE = frozenset(vars(nn.Module()))  # its own bookkeeping: hooks, flags, tables


def leaves(root: object) -> dict[Path, Leaf]:
    """Tensors and numbers that `root` holds, by path; a tensor that is held twice is named once, empty ones never.

    >>> {name(path): leaf for path, leaf in leaves({"h": [torch.zeros(2), None], "seen": 3}).items()}
    {'h.0': tensor([0., 0.]), 'seen': 3}
    """
    return dict(_walk(root, (), set()))


def _walk(value: object, path: Path, met: set[int]) -> Iterator[tuple[Path, Leaf]]:
    if isinstance(value, Tensor):
        if value.numel() and id(value) not in met:
            met.add(id(value))
            yield path, value
        return
    if isinstance(value, (bool, int, float)):
        yield path, value
        return
    if len(path) == DEEPEST or id(value) in met:
        return
    met.add(id(value))
    for step, inner in _inside(value):
        yield from _walk(inner, (*path, step), met)


def _inside(value: object) -> Iterator[tuple[tuple[str, Any], object]]:
    """What a container or a plain object holds directly. Configurations and callables are closed.

    A module is closed, too, unless it has no parameters: some libraries make their caches of modules.
    """
    if isinstance(value, Mapping):
        yield from ((("item", key), inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((("item", i), inner) for i, inner in enumerate(value))
    elif isinstance(value, nn.Module):
        if next(value.parameters(), None) is None:
            held = {**vars(value), **value._buffers, **value._modules}
            yield from ((("attribute", key), inner) for key, inner in held.items() if key not in _EVERY_MODULE)
    elif not isinstance(value, _CLOSED) and not callable(value) and not hasattr(value, "to_dict"):
        yield from ((("attribute", key), inner) for key, inner in getattr(value, "__dict__", {}).items())


def name(path: Path) -> str:
    """A path as a dotted name; a leading underscore of an attribute stays."""
    return ".".join(str(key) for _, key in path)


def rebuilt_with(root: Any, values: Mapping[Path, Leaf]) -> Any:
    """A copy of `root` that holds the very tensors of `values`, shares no other tensor with it, and has their numbers.

    >>> held = {"h": torch.zeros(2), "seen": 3}
    >>> other = rebuilt_with(held, {(("item", "h"),): torch.ones(2), (("item", "seen"),): 4})
    >>> other, held["seen"]
    ({'h': tensor([1., 1.]), 'seen': 4}, 3)
    """
    now = leaves(root)
    memo: dict[int, Any] = {id(leaf): leaf.detach().clone() for leaf in now.values() if isinstance(leaf, Tensor)}
    for path, value in values.items():
        if isinstance(value, Tensor):
            memo[id(now[path])] = value
    made = copy.deepcopy(root, memo)
    for path, value in values.items():
        if not isinstance(value, Tensor):
            made = put(made, path, value)
    return made


def put(root: Any, path: Path, value: object) -> Any:
    """`root` with `value` at `path`: changed in place, or a new one where it is a tuple."""
    if not path:
        return value
    (way, key), *rest = path
    inner = getattr(root, key) if way == "attribute" else root[key]
    changed = put(inner, tuple(rest), value)
    if changed is inner:
        return root
    if way == "attribute":
        setattr(root, key, changed)
    elif isinstance(root, tuple):
        parts = [changed if i == key else part for i, part in enumerate(root)]
        return type(root)(*parts) if hasattr(root, "_fields") else type(root)(parts)
    elif isinstance(root, (MutableMapping, list)):
        root[key] = changed
    return root
