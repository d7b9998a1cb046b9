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

from statecheck.adapters.huggingface.calls import takes_cache
from statecheck.adapters.huggingface.finding import wrap_cached
from statecheck.adapters.huggingface.model import CachedModel

__all__ = ["CachedModel", "takes_cache", "wrap_cached"]
