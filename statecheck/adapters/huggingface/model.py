"""A causal language model with a cache as a StatefulModel: native operations on the cache, states as tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import asking, copy_without_history
from statecheck.adapters.huggingface.calls import (
    ABSENT,
    MASK,
    POSITION,
    Calling,
    Carried,
    caches_in,
    extended,
    first_cache,
    logits,
    masked,
    reorderer,
)
from statecheck.adapters.huggingface.transcript import Transcript, recipe_by_config, recipe_by_weights
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised, NotOffered
from statecheck.layout import Layout
from statecheck.protocol import ModelFacts, Native, States, Statistics


@dataclass
class Held:
    """What a caller holds of a sequence: its caches and what goes with them."""

    carried: Carried
    rows: int | None
    transcript: Transcript | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        caches = copy.deepcopy(self.carried.caches, memo)
        if self.transcript is not None:
            self.transcript.copied(self.carried.caches, caches)
        return Held(replace(self.carried, caches=caches), self.rows, self.transcript)

    def __getstate__(self) -> dict[str, Any]:
        return {"carried": self.carried, "rows": self.rows, "transcript": None}


@contextmanager
def _plain_search(module: Any) -> Iterator[None]:
    """Generation as it comes: settings of a model that force or forbid tokens change the scores that are reported.

    What a search leaves on the module (some releases keep a cache there) is taken away again.
    """
    own, before = getattr(module, "generation_config", None), {*vars(module), *module._modules}
    if own is not None:
        module.generation_config = type(own)(cache_implementation=getattr(own, "cache_implementation", None))
    try:
        yield
    finally:
        if own is not None:
            module.generation_config = own
        for left in {*vars(module), *module._modules} - before:
            delattr(module, left)


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
        self._transcript: Transcript | None = None
        self._called = "model"  # in the transcript

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
        now = extended(self._carried, inputs, mask)
        passed = self._arguments(inputs, now)
        given = self._ask(passed)
        outputs = logits(given, inputs)
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
            if self._transcript is not None and self._calling.kept:
                self._transcript.lines.append(f"{self._called} = make()")
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
        other = CachedModel(module, self._calling, self._layout, self._facts, self._pristine)
        if self._transcript is not None:
            other._transcript, other._called = self._transcript, f"{self._called}_anew"
            other._transcript.lines.append(f"{other._called} = make()")
        return other

    def transcribed(self, sequences: Mapping[str, Tensor], folder: Path | None) -> tuple[CachedModel, Transcript]:
        """A model whose calls are written down as the library's own, and the transcript; lines name `sequences`.

        Without `folder` it is another of the same configuration, with random weights; else it is this one, saved into
        `folder`. Raises :class:`NotOffered` where that can't be done.
        """
        if folder is None:
            recipe, module = asking(recipe_by_config, self.module)
            twin = CachedModel(module, self._calling, self._layout, self._facts)
        else:
            twin, recipe = self.rebuild(), asking(recipe_by_weights, self.module, folder)
        twin._transcript = Transcript(recipe, sequences)
        return twin, twin._transcript

    @property
    def native(self) -> Native:
        """What the library offers of its own on the cache that is carried now, or would be after a call."""
        held = self._carried.caches or (self._layout.template if self._layout else None)
        caches = [cache for key, cache in held.items() if "." not in key] if isinstance(held, Mapping) else []
        kept = bool(self._calling.kept)
        return Native(
            reorder=self._reorder if caches and all(reorderer(self.module, cache) for cache in caches) else None,
            crop=self._crop if caches and all(callable(getattr(c, "crop", None)) for c in caches) else None,
            reset=self._restart,
            held=None if kept else lambda: Held(self._carried, self._rows, self._transcript),
            hold=None if kept else self._hold,
            uncached=self._uncached,
            beams=self._beams if callable(getattr(self.module, "generate", None)) else None,
            reloaded=self._reloaded if callable(getattr(self.module, "save_pretrained", None)) else None,
            transcribed=self.transcribed,
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
            given |= self._first_cache(inputs, now.mask)
        else:
            positions = torch.arange(carried.length, now.length, device=inputs.device)
            if "cache_position" in calling.arguments:
                given["cache_position"] = positions
            if "position_ids" in calling.arguments:
                given["position_ids"] = positions.expand(len(inputs), time)
        if now.mask is not None:
            given |= masked(calling, now.mask, time, first or calling.mask_later)
        return given

    def _first_cache(self, inputs: Tensor, mask: Tensor | None) -> dict[str, Any]:
        made = first_cache(self.module, self._calling, inputs, mask)
        if self._transcript is not None:
            caches = {key: value for key, value in made.items() if not isinstance(value, Tensor)}  # an empty one, too
            self._transcript.made(self._called, self._calling.first, caches, inputs)
        return made

    def _brought(self, given: object, passed: Mapping[str, Any]) -> dict[str, Any]:
        """The caches to go on with, by the argument that takes them: what a call returned, else what it was given."""
        return caches_in(given, self._calling.arguments) or caches_in(passed, self._calling.arguments - {"input_ids"})

    def _uncached(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        self._check_alone(inputs)
        given: dict[str, Any] = {"input_ids": inputs, "use_cache": False}
        if mask is not None:
            given |= masked(self._calling, mask, inputs.shape[1], True)
        return logits(self._ask(given), inputs)

    def _ask(self, given: Mapping[str, Any]) -> Any:
        """A call of the module, written down if it is asked for."""
        if self._transcript is None:
            return asking(self.module, **given)
        self._transcript.calling(self._called, given)
        answer = asking(self.module, **given)
        self._transcript.called(answer, caches_in(answer, self._calling.arguments))
        return answer

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
            reorder = reorderer(self.module, cache)
            if reorder is None:
                continue
            try:
                told = self._tell_reordering(cache, rows)
                caches[argument] = asking(reorder, rows)
                if self._transcript is not None:
                    self._transcript.name(caches[argument], told)
            except ModelRaised as error:
                if isinstance(error.__cause__, NotImplementedError):
                    raise NotOffered(f"the library refuses: {error}") from error
                raise
        mask = self._carried.mask
        self._carried = replace(self._carried, caches=caches, mask=None if mask is None else mask[rows])

    def _tell_reordering(self, cache: object, rows: Tensor) -> str:
        """What the cache is called afterwards."""
        if self._transcript is None:
            return ""
        owner = "" if callable(getattr(cache, "reorder_cache", None)) else self._called
        return self._transcript.reordering(owner, cache, rows)

    def _crop(self, length: int) -> None:
        back = self._carried.length - length
        for cache in self._carried.caches.values():
            try:
                if self._transcript is not None:
                    self._transcript.lines.append(f"{self._transcript.named(cache)}.crop({-back})")
                asking(cache.crop, -back)
            except ModelRaised as error:
                raise NotOffered(f"the library refuses: {error}") from error
        mask = self._carried.mask
        self._carried = replace(self._carried, length=length, mask=None if mask is None else mask[:, :length])

    def _restart(self) -> None:
        """The next call starts a sequence: it is given no cache. What the model keeps inside itself stays there."""
        self._carried, self._rows = Carried(), None

    def _hold(self, held: object) -> None:
        assert isinstance(held, Held)
        self._carried, self._rows = held.carried, held.rows

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
        with _plain_search(self.module):
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
