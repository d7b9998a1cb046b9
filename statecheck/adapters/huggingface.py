"""Causal language models whose calls take and bring a cache, as transformers and libraries after its pattern have them.

The contract that is tested, where L elements were read before and T are read now:

    first call      model(input_ids, use_cache=True), without a cache; where that brings none, with the cache that the
                    model's own prepare_inputs_for_generation makes, or an empty DynamicCache as generate makes it
    later calls     the same with the cache that the last call brought, under the names that forward and the output
                    share (past_key_values, cache_params, state, mems ...), and, where forward takes them,
                    cache_position = L .. L + T - 1 and position_ids the same for each row
    with a mask     attention_mask (batch, L + T) in every call, and position_ids that count each row's own elements
                    where forward takes them; in later calls a mask only if prepare_inputs_for_generation passes it on
    no history      a call without a cache; `uncached` is one call over everything with use_cache=False
    native          reorder: reorder_cache of the cache or _reorder_cache of the model; crop: crop(-k) of the cache,
                    what that raises is a refusal; held: the cache itself, copied by copy.deepcopy and torch.save;
                    beams: generate(num_beams=...); reloaded: save_pretrained, then from_pretrained

The states are found by looking at the cache and at what it holds (:mod:`statecheck.layout`), or at the attributes of
modules that a call changes where the model keeps its state inside itself. No class or family is known by name.

It can't reach states that a cache keeps outside of tensors, numbers, lists, mappings and attributes (quantised or
offloaded caches), and it does not pack sequences: forward has no common argument for that.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import (
    Declared,
    asking,
    copy_without_history,
    discover,
    example,
    infer_inputs,
    output_of,
    quiet,
)
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised, NotOffered
from statecheck.histories.drawing import LONGEST
from statecheck.holding import leaves
from statecheck.layout import Layout, learn
from statecheck.protocol import Capability, ModelFacts, Native, States, Statistics

MASK, POSITION = "calling.mask", "calling.position"
#: Of the states that the names tell of: pattern -> fields of StateFacts.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "*conv*": {"kind": "conv"},
    MASK: {"kind": "mask", "time_axis": 1},
    POSITION: {"kind": "position"},
}


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


class CachedModel:
    """A causal language model with a cache as a StatefulModel. Make one with :func:`statecheck.wrap`."""

    def __init__(
        self,
        module: nn.Module,
        calling: Calling,
        layout: Layout | None,
        facts: ModelFacts | None = None,
        pristine: nn.Module | None = None,
    ) -> None:
        self.module = module
        self._calling = calling
        self._layout = layout
        self._facts = facts
        self._pristine = pristine
        self._carried = Carried()
        self._rows: int | None = None

    @property
    def facts(self) -> ModelFacts:
        """What the model declares; found by :func:`wrap_cached`."""
        assert self._facts is not None
        return self._facts

    def with_facts(self, facts: ModelFacts) -> CachedModel:
        """The same module under other facts (a training length, say)."""
        return CachedModel(self.module, self._calling, self._layout, facts, self._pristine)

    @property
    def backend(self) -> str:
        """The attention that the configuration names, if any."""
        told = getattr(getattr(self.module, "config", None), "_attn_implementation", None)
        return f"torch ({told})" if isinstance(told, str) else "torch"

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits for `inputs`, continuing from the cache; see the contract above.

        Raises :class:`ContractError` for inputs that do not fit, and :class:`ModelRaised` when the model raises.
        """
        if segments is not None:
            raise ContractError("these models take no segments")
        self._check(inputs)
        now = _extended(self._carried, inputs, mask)
        passed = self._arguments(inputs, now)
        given = asking(self.module, **passed)
        outputs = _logits(given, inputs)
        self._carried = replace(now, caches=self._brought(given, passed))
        self._rows = len(inputs)
        return outputs

    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Statistics]:
        """Raises :class:`CapabilityMissing`: these models tell no statistics, their states are read."""
        raise CapabilityMissing("the model has no forward_with_statistics: its states are read instead")

    def get_states(self) -> States:
        """All that the caller carries, as tensors; {} before the first call."""
        if self._rows is None or self._layout is None:
            return {}
        states = self._layout.read(self._root(), self._rows)
        carried = self._carried
        states[POSITION] = torch.full((self._rows,), carried.length)
        if self._calling.mask_later:
            every = torch.ones(self._rows, carried.length, dtype=torch.bool)
            states[MASK] = every if carried.mask is None else carried.mask.clone()
        return states

    def set_states(self, states: States | None) -> None:
        """Continue from a cache that holds copies of `states`; None: no cache, no length, no mask."""
        self._carried, self._rows = Carried(), None
        if states is None:
            self._write_kept(self._calling.before)
            return
        assert self._layout is not None
        root: Any = self._layout.write(states)
        self._write_kept(tuple(root.pop(f"{owner}.{key}") for owner, key in self._calling.kept))
        mask = states.get(MASK)
        whole = mask is None or bool(mask.all())
        length = int(states[POSITION].reshape(-1)[0])
        self._carried = Carried(root, length, None if whole or mask is None else mask.clone())
        self._rows = len(states[POSITION])

    def get_signals(self) -> dict[str, Tensor]:
        """None of these models tells its gates."""
        return {}

    def rebuild(self) -> CachedModel:
        """Another adapter on a copy of the module: same parameters, no history."""
        module = copy_without_history(self._pristine if self._pristine is not None else self.module)
        module.train(self.module.training)
        return CachedModel(module, self._calling, self._layout, self._facts, self._pristine)

    @property
    def native(self) -> Native:
        """What the library offers of its own on the cache that is carried now, or would be after a call."""
        held = self._carried.caches or (self._layout.template if self._layout else None)
        caches = [cache for key, cache in held.items() if "." not in key] if isinstance(held, Mapping) else []
        kept = bool(self._calling.kept)
        return Native(
            reorder=self._reorder if caches and all(_reorderer(self.module, cache) for cache in caches) else None,
            crop=self._crop if caches and all(callable(getattr(c, "crop", None)) for c in caches) else None,
            reset=self._restart,
            held=None if kept else lambda: (self._carried, self._rows),
            hold=None if kept else self._hold,
            uncached=self._uncached,
            beams=self._beams if callable(getattr(self.module, "generate", None)) else None,
            reloaded=self._reloaded if callable(getattr(self.module, "save_pretrained", None)) else None,
        )

    # Calls ----------------------------------------------------------------------------------------------------------

    def _check(self, inputs: Tensor) -> None:
        vocabulary = (self._facts.vocabulary if self._facts else None) or int(inputs.max()) + 1
        if inputs.dim() != 2 or inputs.is_floating_point():
            raise ContractError(f"expected token ids (batch, time), found {inputs.dtype} {tuple(inputs.shape)}")
        if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < vocabulary:
            raise ContractError(f"expected ids 0 .. {vocabulary - 1}, found {int(inputs.min())} .. {int(inputs.max())}")
        if self._rows is not None and len(inputs) != self._rows:
            raise ContractError(
                f"the states hold {self._rows} rows, the inputs {len(inputs)}: call set_states(None) between batches"
            )

    def _arguments(self, inputs: Tensor, now: Carried) -> dict[str, Any]:
        """The arguments of forward for `inputs`; `now` tells the length and mask with them."""
        calling, carried, time = self._calling, self._carried, inputs.shape[1]
        first = not carried.length
        given: dict[str, Any] = {"input_ids": inputs, "use_cache": True, **carried.caches}
        if first:
            given |= _first_cache(self.module, calling, inputs, now.mask)
        else:
            positions = torch.arange(carried.length, now.length, device=inputs.device)
            if "cache_position" in calling.arguments:
                given["cache_position"] = positions
            if "position_ids" in calling.arguments:
                given["position_ids"] = positions.expand(len(inputs), time)
        if now.mask is not None:
            given |= _masked(calling, now.mask, time, first or calling.mask_later)
        return given

    def _brought(self, given: object, passed: Mapping[str, Any]) -> dict[str, Any]:
        """The caches to go on with, by the argument that takes them: what a call returned, else what it was given."""
        return _caches(given, self._calling.arguments) or _caches(passed, self._calling.arguments - {"input_ids"})

    def _uncached(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        self._check_alone(inputs)
        given: dict[str, Any] = {"input_ids": inputs, "use_cache": False}
        if mask is not None:
            given |= _masked(self._calling, mask, inputs.shape[1], True)
        return _logits(asking(self.module, **given), inputs)

    def _check_alone(self, inputs: Tensor) -> None:
        rows, self._rows = self._rows, None
        try:
            self._check(inputs)
        finally:
            self._rows = rows

    # The library's own operations -----------------------------------------------------------------------------------

    def _reorder(self, rows: Tensor) -> None:
        if self._rows is None or len(rows) != self._rows:
            raise CapabilityMissing("the library reorders a batch; it does not select or repeat its rows")
        caches = dict(self._carried.caches)
        for argument, cache in caches.items():
            reorder = _reorderer(self.module, cache)
            if reorder is None:
                continue
            try:
                caches[argument] = asking(reorder, rows)
            except ModelRaised as error:
                if isinstance(error.__cause__, NotImplementedError):
                    raise NotOffered(f"the library refuses: {error}") from error
                raise
        mask = self._carried.mask
        self._carried = replace(self._carried, caches=caches, mask=None if mask is None else mask[rows])

    def _crop(self, length: int) -> None:
        back = self._carried.length - length
        for cache in self._carried.caches.values():
            try:
                asking(cache.crop, -back)
            except ModelRaised as error:
                raise NotOffered(f"the library refuses: {error}") from error
        mask = self._carried.mask
        self._carried = replace(self._carried, length=length, mask=None if mask is None else mask[:, :length])

    def _restart(self) -> None:
        """The next call starts a sequence: it is given no cache. What the model keeps inside itself stays there."""
        self._carried, self._rows = Carried(), None

    def _hold(self, held: object) -> None:
        self._carried, self._rows = held  # type: ignore[misc]

    def _beams(self, inputs: Tensor, beams: int, steps: int, cached: bool) -> tuple[Tensor, Tensor]:
        """(batch, prompt + steps) ids of the best beam, and the sum of the log-probabilities of what it generated."""
        named = "attention_mask" in self._calling.arguments
        try:
            found = self._generated(inputs, beams, steps, cached, named)
        except ModelRaised as error:
            if isinstance(error.__cause__, (NotImplementedError, ValueError)):
                raise NotOffered(f"the library refuses: {error}") from error
            raise
        return found.sequences, found.sequences_scores

    def _generated(self, inputs: Tensor, beams: int, steps: int, cached: bool, named: bool) -> Any:
        return asking(
            self.module.generate,  # type: ignore[arg-type]
            input_ids=inputs,
            **({"attention_mask": torch.ones_like(inputs)} if named else {}),
            num_beams=beams,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            use_cache=cached,
            length_penalty=0.0,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )

    def _reloaded(self, folder: Path) -> CachedModel:
        asking(self.module.save_pretrained, folder)  # type: ignore[arg-type]
        loaded = asking(type(self.module).from_pretrained, folder)  # type: ignore[attr-defined]
        loaded = loaded.to(next(self.module.parameters()).dtype).train(self.module.training)
        return CachedModel(loaded, self._calling, self._layout, self._facts)

    # States ---------------------------------------------------------------------------------------------------------

    def _root(self) -> object:
        """What the layout describes: the caches, or what the modules hold."""
        names = [f"{owner}.{key}" for owner, key in self._calling.kept]
        return {**self._carried.caches, **dict(zip(names, self._read_kept(), strict=True))}

    def _read_kept(self) -> tuple[Any, ...]:
        return tuple(getattr(self.module.get_submodule(owner), key, ABSENT) for owner, key in self._calling.kept)

    def _write_kept(self, values: tuple[Any, ...]) -> None:
        for (owner, key), value in zip(self._calling.kept, values, strict=True):
            module = self.module.get_submodule(owner)
            if value is not ABSENT:
                setattr(module, key, value)
            elif hasattr(module, key):
                delattr(module, key)


def _extended(carried: Carried, inputs: Tensor, mask: Tensor | None) -> Carried:
    """What is carried, with the length and mask of these inputs added."""
    rows, time = inputs.shape
    now, length = carried.mask, carried.length
    if mask is not None or now is not None:
        earlier = torch.ones(rows, length, dtype=torch.bool, device=inputs.device) if now is None else now
        new = torch.ones(rows, time, dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
        now = torch.cat([earlier, new], 1)
    return replace(carried, length=length + time, mask=now)


def _masked(calling: Calling, mask: Tensor, time: int, passed: bool) -> dict[str, Tensor]:
    """attention_mask over all that was read, if it is passed on, and position_ids of the last `time` elements."""
    given = {"attention_mask": mask.long()} if passed else {}
    if "position_ids" in calling.arguments:
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -time:]
    return given


def _logits(given: Any, inputs: Tensor) -> Tensor:
    """The outputs in what a call returned. Raises :class:`ModelRaised` for another shape than (batch, time, ...)."""
    outputs = output_of(getattr(given, "last_hidden_state", given) if not hasattr(given, "logits") else given)
    if outputs.dim() != 3 or outputs.shape[:2] != inputs.shape:
        raise ModelRaised(
            f"the model's output has shape {tuple(outputs.shape)} for inputs {tuple(inputs.shape)}:"
            " expected (batch, time, vocabulary)"
        )
    return outputs


def _caches(given: object, arguments: frozenset[str]) -> dict[str, Any]:
    """What of an output forward takes as an argument, and holds tensors."""
    items = given.items() if isinstance(given, Mapping) else ()
    return {
        key: value
        for key, value in items
        if key in arguments and not isinstance(value, Tensor) and _holds_tensors(value)
    }


def _holds_tensors(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value).values())


def _first_cache(module: nn.Module, calling: Calling, inputs: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """The cache that a first call is given: none, what the model's own preparation makes, or an empty one."""
    if calling.first == "dynamic":
        return {"past_key_values": _empty_cache(module)}
    if calling.first == "none":
        return {}
    prepared = _prepared(module, inputs, mask, {}, 0)
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


def _prepared(module: nn.Module, ids: Tensor, mask: Tensor | None, caches: Mapping[str, Any], past: int) -> dict:
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


def _reorderer(module: nn.Module, cache: object) -> Callable[[Tensor], Any] | None:
    """The library's own way to reorder the rows of a cache: it returns the cache to go on with."""
    own = getattr(cache, "reorder_cache", None)
    if callable(own):

        def in_place(rows: Tensor) -> object:
            own(rows)
            return cache

        return in_place
    by_model = getattr(module, "_reorder_cache", None)
    return (lambda rows: by_model(cache, rows)) if callable(by_model) else None


# Finding out --------------------------------------------------------------------------------------------------------


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
        layout = _layout(pristine, calling, said)
        calling = replace(calling, mask_later=_mask_goes_on(pristine, calling, said))

    def make() -> CachedModel:
        return CachedModel(copy_without_history(pristine).eval(), calling, layout, None, pristine)

    facts = discover(make, module, replace(said, states={**KINDS, **declared.states}), rebuilds=True)
    known = {Capability.RESET} | ({Capability.MASK} if _takes_mask(module) else set())
    facts = replace(
        facts,
        capabilities=facts.capabilities | known,
        missing={key: reason for key, reason in facts.missing.items() if key not in known},
        boundaries=_boundaries(module),
        window=_window(make, said, next(module.parameters())),
        device=str(device),
    )
    return CachedModel(module, calling, layout, facts, pristine)


def _takes_mask(module: nn.Module) -> bool:
    """True if a call takes attention_mask, by name or among other arguments: one that drops it says nothing."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.name == "attention_mask" or p.kind is p.VAR_KEYWORD for p in parameters)


def _boundaries(module: nn.Module) -> tuple[int, ...]:
    """Sizes of chunks, windows and kernels in the configuration."""
    settings = vars(getattr(module, "config", None) or object)
    named = [value for key, value in settings.items() if re.search("chunk_size$|window|kernel|d_conv|conv_L", key)]
    found = {value for value in named if isinstance(value, int) and not isinstance(value, bool)}
    return tuple(sorted(value for value in found if 1 < value <= 1024))


def _window(make: Callable[[], CachedModel], said: Declared, like: Tensor) -> int | None:
    """Elements from which on a cache of keys holds fewer than were read; None if it holds all of a long call."""
    time = 2 * LONGEST
    model = make()
    with torch.no_grad(), suppress(ModelRaised):
        model(example(said, like, 1, 1))
        early = model.get_states()
        model = make()
        model(example(said, like, 1, time))
        pairs = [(early[key].shape, value.shape) for key, value in model.get_states().items() if key != MASK]
        sizes = [q for one, many in pairs for p, q in zip(one, many, strict=False) if p == 1 and 1 < q < time]
        return min(sizes, default=None)
    return None


def _calling(pristine: nn.Module, arguments: frozenset[str], said: Declared) -> Calling:
    """How the model is called, and where its state is: in what a call brings, and on its modules."""
    reasons: list[str] = []
    without: Calling | None = None
    for first in ("none", "prepared", "dynamic"):
        if first == "dynamic" and "past_key_values" not in arguments:
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
    if not _takes_mask(pristine):
        return False
    module = copy_without_history(pristine).eval()
    model = CachedModel(module, calling, None)
    inputs = example(said, next(module.parameters()), 2, 5)
    model(inputs[:, :4])
    prepared = _prepared(module, inputs, None, model._carried.caches, 4)
    return not prepared or prepared.get("attention_mask") is not None
