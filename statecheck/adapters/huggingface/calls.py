"""The arguments of a call: caches, masks, positions, and what a call brings. The contract is in the package."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import output_of
from statecheck.errors import ModelRaised
from statecheck.holding import leaves

MASK, POSITION = "calling.mask", "calling.position"


class Absent(Enum):
    """In place of the value of an attribute that is not there; an enumeration stays itself when it is copied."""

    ABSENT = 0


ABSENT = Absent.ABSENT


def takes_cache(module: nn.Module) -> bool:
    """True if the module is called as these models are: forward takes input_ids, and a cache or the wish for one.

    >>> takes_cache(nn.GRU(2, 2))
    False
    """
    names = set(inspect.signature(module.forward).parameters)
    return "input_ids" in names and bool(names & {"use_cache", "past_key_values", "cache_params"})


@dataclass
class Carried:
    """What a caller carries from call to call: the caches by argument, elements read, and the mask of all of them."""

    caches: dict[str, Any] = field(default_factory=dict)
    length: int = 0
    mask: Tensor | None = None  # (batch, length), True for real elements; None: all are


@dataclass(frozen=True)
class Calling:
    """How forward is called: its arguments, who makes the first cache, what is kept on modules."""

    arguments: frozenset[str]
    mask_later: bool = True  # a mask goes into later calls
    first: str = "none"  # the cache of a first call is made by: none (the model), prepared, dynamic
    kept: tuple[tuple[str, str], ...] = ()  # (module, attribute) that carry state from call to call
    before: tuple[Any, ...] = ()  # what these attributes hold before the first call


def takes_mask(module: nn.Module) -> bool:
    """True if a call takes attention_mask, by name or among other arguments: one that drops it says nothing."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.name == "attention_mask" or p.kind is p.VAR_KEYWORD for p in parameters)


def extended(carried: Carried, inputs: Tensor, mask: Tensor | None) -> Carried:
    """What is carried, with the length and mask of these inputs added."""
    rows, time = inputs.shape
    now, length = carried.mask, carried.length
    if mask is not None or now is not None:
        earlier = torch.ones(rows, length, dtype=torch.bool, device=inputs.device) if now is None else now
        new = torch.ones(rows, time, dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
        now = torch.cat([earlier, new], 1)
    return replace(carried, length=length + time, mask=now)


def masked(calling: Calling, mask: Tensor, time: int, passed: bool) -> dict[str, Tensor]:
    """attention_mask over all that was read, if it is passed on, and position_ids of the last `time` elements."""
    given = {"attention_mask": mask.long()} if passed else {}
    if "position_ids" in calling.arguments:
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -time:]
    return given


def logits(given: Any, inputs: Tensor) -> Tensor:
    """The outputs in what a call returned. Raises :class:`ModelRaised` for another shape than (batch, time, ...)."""
    outputs = output_of(getattr(given, "last_hidden_state", given) if not hasattr(given, "logits") else given)
    if outputs.dim() != 3 or outputs.shape[:2] != inputs.shape:
        raise ModelRaised(
            f"the model's output has shape {tuple(outputs.shape)} for inputs {tuple(inputs.shape)}:"
            " expected (batch, time, vocabulary)"
        )
    return outputs


def caches_in(given: object, arguments: frozenset[str]) -> dict[str, Any]:
    """What of an output forward takes as an argument, and holds tensors."""
    items = given.items() if isinstance(given, Mapping) else ()
    return {
        key: value
        for key, value in items
        if key in arguments and not isinstance(value, Tensor) and _holds_tensors(value)
    }


def _holds_tensors(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value).values())


def first_cache(module: nn.Module, calling: Calling, inputs: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """The cache that a first call is given: none, what the model's own preparation makes, or an empty one."""
    if calling.first == "dynamic":
        return {"past_key_values": _empty_cache(module)}
    if calling.first == "none":
        return {}
    prepared = as_generated(module, inputs, mask, {}, 0)
    plain = (Tensor, bool, int, float, str)
    made = {k: v for k, v in prepared.items() if k in calling.arguments and v is not None and not isinstance(v, plain)}
    positions = ("cache_position", "position_ids")  # a cache that was just made may tell another length
    told = {key: prepared[key] for key in positions if key in calling.arguments and prepared.get(key) is not None}
    return {**made, **told} if made else {}


def _empty_cache(module: nn.Module) -> object:
    """The library's own growing cache, as its generation makes one."""
    library = sys.modules.get("transformers")
    make = getattr(library, "DynamicCache", None)
    if make is None:
        return None
    takes = "config" in inspect.signature(make.__init__).parameters
    return make(config=getattr(module, "config", None)) if takes else make()


def as_generated(module: nn.Module, ids: Tensor, mask: Tensor | None, caches: Mapping[str, Any], past: int) -> dict:
    """What prepare_inputs_for_generation makes of a call after `past` elements; {} where it can't be asked."""
    prepare = getattr(module, "prepare_inputs_for_generation", None)
    if prepare is None:
        return {}
    asked: dict[str, Any] = {
        "attention_mask": (torch.ones_like(ids, dtype=torch.bool) if mask is None else mask).long(),
        "cache_position": torch.arange(past, ids.shape[1], device=ids.device),
        "use_cache": True,
        **caches,
    }
    parameters = inspect.signature(prepare).parameters
    if "is_first_iteration" in parameters:
        del asked["cache_position"]
        asked |= {"is_first_iteration": not past, "next_sequence_length": ids.shape[1] - past}
    with suppress(Exception):  # each release has its own; what it can't tell is left to the call itself
        return dict(prepare(ids, **asked))
    return {}


def reorderer(module: nn.Module, cache: object) -> Callable[[Tensor], Any] | None:
    """The library's own way to reorder the rows of a cache: it returns the cache to go on with."""
    own = getattr(cache, "reorder_cache", None)
    if callable(own):

        def in_place(rows: Tensor) -> object:
            own(rows)
            return cache

        return in_place
    by_model = getattr(module, "_reorder_cache", None)
    return (lambda rows: by_model(cache, rows)) if callable(by_model) else None
