"""A causal language model of transformers, called with a cache as that release's own generate calls it."""

from __future__ import annotations

import inspect
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn


class Conversation:
    """Calls that go on from each other; `cache` is the library's own object.

    first call    a cache and cache_position = 0 .. T - 1 where the release's prepare_inputs_for_generation makes a
                  cache, else neither
    later calls   the cache; cache_position = L .. L + T - 1 and position_ids where forward takes them
    a mask        (batch, L + T), in every call; models with cache_params get it in the first call alone, where generate
                  does no other
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.takes = set(inspect.signature(model.forward).parameters)
        self.name = "cache_params" if "cache_params" in self.takes else "past_key_values"
        self.cache: Any = None
        self.length = 0
        self.mask: Tensor | None = None

    def call(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, time, vocabulary) of `ids`, read after what was read."""
        given = self._arguments(ids, mask)
        output = self.model(**given)
        self.cache = output.get(self.name, given.get(self.name))
        self.length += ids.shape[1]
        return output.logits

    def _arguments(self, ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
        rows, time = ids.shape
        positions = torch.arange(self.length, self.length + time)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if mask is not None or self.mask is not None:
            earlier = self.mask if self.mask is not None else torch.ones(rows, self.length, dtype=torch.long)
            new = torch.ones_like(ids) if mask is None else mask.long()
            self.mask = torch.cat([earlier, new], 1)
        if self.length:
            given[self.name] = self.cache
            if "cache_position" in self.takes:
                given["cache_position"] = positions
        elif made := first_cache(self.model, rows):
            given[self.name] = made
            given["cache_position"] = positions
        if "position_ids" in self.takes:
            counted = None if self.mask is None else (self.mask.cumsum(1) - 1).clamp_min(0)[:, -time:]
            given["position_ids"] = positions.expand(rows, time) if counted is None else counted
        if self.mask is not None and (not self.length or self.name != "cache_params"):
            given["attention_mask"] = self.mask
        return given


def first_cache(model: nn.Module, rows: int) -> Any:
    """The cache of a family that forward does not make by itself; None where it does, or where there is none."""
    module, config = sys.modules[type(model).__module__], cast(Any, model.config)
    own = [value for name, value in vars(module).items() if name.endswith("HybridMambaAttentionDynamicCache")]
    if not own:
        return None
    if "devices" in inspect.signature(own[0].__init__).parameters:
        return own[0](config, rows, torch.float32, devices=["cpu"] * config.num_hidden_layers)
    return own[0](config, rows, torch.float32, device=torch.device("cpu"))


def uncached(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The oracle: logits of one call without a cache."""
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if mask is not None:
        given["attention_mask"] = mask.long()
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
    return model(**given).logits


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite for another shape or what is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.double() - expected.double()).norm() / expected.double().norm())
