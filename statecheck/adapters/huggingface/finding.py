"""Finding out, on copies, how a causal language model is called and where its states are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import Declared, asking, copy_without_history, discover, example, infer_inputs, quiet
from statecheck.adapters.huggingface.calls import ABSENT, MASK, POSITION, Calling, as_generated, logits, takes_mask
from statecheck.adapters.huggingface.model import CachedModel
from statecheck.errors import ContractError, ModelRaised
from statecheck.histories.drawing import LONGEST, real
from statecheck.layout import Layout, learn
from statecheck.protocol import Capability

#: Of the states that the names tell of: pattern -> fields of StateFacts.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "*conv*": {"kind": "conv"},
    MASK: {"kind": "mask", "time_axis": 1},
    POSITION: {"kind": "position"},
}


def wrap_cached(module: nn.Module, declared: Declared) -> CachedModel:
    """The adapter of a causal language model with a cache, with facts found by trying it on copies.

    Raises :class:`ContractError` when no state is found; the message says where it was looked for.
    """
    pristine = copy_without_history(module)
    arguments = frozenset(inspect.signature(module.forward).parameters)
    said = infer_inputs(module, declared)
    if not said.vocabulary:
        raise ContractError(f"{type(module).__name__} takes input_ids: say wrap(..., vocabulary=N)")
    device = next(module.parameters()).device
    with quiet(module):
        calling = _calling(pristine, arguments, said)
        padding = _read_as_padding(pristine, calling, said)
        if padding is not None:
            calling = replace(calling, arguments=calling.arguments - {"position_ids"})
        layout = _layout(pristine, calling, said)
        calling = replace(calling, mask_later=_mask_goes_on(pristine, calling, said))

    def make() -> CachedModel:
        return CachedModel(copy_without_history(pristine).eval(), calling, layout, None, pristine)

    facts = discover(make, module, replace(said, states={**KINDS, **declared.states}), rebuilds=True)
    known = {Capability.RESET} | ({Capability.MASK} if takes_mask(module) else set())
    facts = replace(
        facts,
        capabilities=facts.capabilities | known,
        missing={key: reason for key, reason in facts.missing.items() if key not in known},
        boundaries=_boundaries(module),
        padding=padding,
        window=min([*_windows(module), *_kept(make, said, next(module.parameters()))], default=None),
        device=str(device),
    )
    return CachedModel(module, calling, layout, facts, pristine)


def _boundaries(module: nn.Module) -> tuple[int, ...]:
    """Sizes of chunks, windows and kernels in the configuration."""
    settings = vars(getattr(module, "config", None) or object)
    named = [value for key, value in settings.items() if re.search("chunk_size$|window|kernel|d_conv|conv_L", key)]
    found = {value for value in named if isinstance(value, int) and not isinstance(value, bool)}
    return tuple(sorted(value for value in found if 1 < value <= 1024))


def _windows(module: nn.Module) -> list[int]:
    """Windows of attention in the configuration: a cache may hold what is outside of them, behind a mask."""
    settings = vars(getattr(module, "config", None) or object)
    named = [value for key, value in settings.items() if re.search("window(_size)?$", key)]
    return [value for value in named if isinstance(value, int) and not isinstance(value, bool) and value > 1]


def _kept(make: Callable[[], CachedModel], said: Declared, like: Tensor) -> list[int]:
    """Elements that a cache of keys holds of a long call, where they are fewer than were read."""
    time = 2 * LONGEST
    model = make()
    with torch.no_grad(), suppress(ModelRaised):
        model(example(said, like, 1, 1))
        early = model.get_states()
        model = make()
        model(example(said, like, 1, time))
        pairs = [(early[key].shape, value.shape) for key, value in model.get_states().items() if key != MASK]
        sizes = [q for one, many in pairs for p, q in zip(one, many, strict=False) if p == 1 and 1 < q < time]
        return sizes
    return []


def _calling(pristine: nn.Module, arguments: frozenset[str], said: Declared) -> Calling:
    """How the model is called, and where its state is: in what a call brings, and on its modules."""
    reasons: list[str] = []
    without: Calling | None = None
    for first in ("none", "prepared", "dynamic"):
        if first == "dynamic" and "past_key_values" not in arguments:
            continue
        asked = getattr(getattr(pristine, "generation_config", None), "cache_implementation", None)
        if first == "dynamic" and asked:  # a growing cache is not what this model's generation would make
            reasons.append(f"generation asks for a cache of kind {asked}, and a call makes none")
            continue
        calling = Calling(arguments, first=first)
        try:
            kept, before, cached = _looked_at(pristine, calling, said)
        except ModelRaised as error:
            reasons.append(str(error))
            continue
        calling = replace(calling, kept=kept, before=before)
        if cached:
            return calling
        without = without or (calling if kept else None)
    if without is not None:
        return without
    told = f"{reasons[0]}; " if reasons else ""
    raise ContractError(
        f"no state found: {told}a call with use_cache=True brought no cache that forward takes, and changed no"
        f" attribute of a module; forward takes {', '.join(sorted(arguments))}"
    )


def _read_as_padding(pristine: nn.Module, calling: Calling, said: Declared) -> int | None:
    """The id that the model itself reads as padding: it counts positions from the ids, and otherwise than from 0.

    None for a model to which positions 0, 1, ... are what it counts itself, or that can't be asked.
    """
    padding = getattr(getattr(pristine, "config", None), "pad_token_id", None)
    if "position_ids" not in calling.arguments or not isinstance(padding, int) or not said.vocabulary:
        return None
    module = copy_without_history(pristine).eval()
    ids = real(example(said, next(module.parameters()), 2, 5), padding, said.vocabulary)
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    with suppress(ModelRaised):
        counted = logits(asking(module, **given), ids)
        told = logits(asking(module, **given, position_ids=torch.arange(5, device=ids.device).expand(2, 5)), ids)
        return None if torch.allclose(counted, told, rtol=1e-3, atol=1e-3) else padding
    return None


def _looked_at(pristine: nn.Module, calling: Calling, said: Declared) -> tuple[tuple, tuple, bool]:
    """Attributes of modules that carry state, what they held before, and whether there is a cache as well."""
    held = []
    for rows in (2, 3):
        module = copy_without_history(pristine).eval()
        before = _held_by_modules(module)
        model = CachedModel(module, calling, None)
        model(example(said, next(module.parameters()), rows, 3))
        held.append(_held_by_modules(module))
    kept = tuple(
        key
        for key, value in held[0].items()
        if isinstance(value, Tensor) and _is_state(before.get(key, ABSENT), value, held[1].get(key))
    )
    return kept, tuple(before.get(key, ABSENT) for key in kept), bool(model._carried.caches)


def _held_by_modules(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Attributes and buffers of submodules that are tensors, numbers or nothing, by (module, attribute)."""
    return {
        (owner, key): value
        for owner, child in module.named_modules()
        for key, value in [*vars(child).items(), *child._buffers.items()]
        if value is None or isinstance(value, (Tensor, bool, int, float))
    }


def _is_state(before: object, two: Tensor, three: object) -> bool:
    """True for what a call has written, with a row for each of the batch."""
    if isinstance(before, Tensor) and before.shape == two.shape and torch.equal(before, two):
        return False
    shapes = (two.shape, three.shape if isinstance(three, Tensor) else ())
    return [pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]] == [(2, 3)]


def _layout(pristine: nn.Module, calling: Calling, said: Declared) -> Layout:
    def after(rows: int, *calls: int) -> Any:
        module = copy_without_history(pristine).eval()
        model = CachedModel(module, calling, None)
        inputs = example(said, next(module.parameters()), rows, sum(calls))
        for part in inputs.split(list(calls), dim=1):
            model(part)
        return model._root()

    for first in (1, 2):  # a call that is wrong is for the laws to tell
        with suppress(ModelRaised):
            return learn(after(2, first), after(2, first, 1, 1), after(3, first))
    return learn(after(2, 2), after(2, 4), after(3, 2))


def _mask_goes_on(pristine: nn.Module, calling: Calling, said: Declared) -> bool:
    """Does the library's own generation pass a mask to calls after the first? True where it can't be asked."""
    if not takes_mask(pristine):
        return False
    module = copy_without_history(pristine).eval()
    model = CachedModel(module, calling, None)
    inputs = example(said, next(module.parameters()), 2, 5)
    model(inputs[:, :4])
    prepared = as_generated(module, inputs, None, model._carried.caches, 4)
    return not prepared or prepared.get("attention_mask") is not None
