"""A small cached model that is made from a configuration, as those of transformers are, and forgets when it may."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from cached_models import Cache, CausalLM
from torch import Tensor


class Config:
    """Sizes, and whether a call of more than one element on a warm cache starts from nothing."""

    def __init__(self, vocab_size: int = 11, width: int = 5, layers: int = 1, forgets: bool = False) -> None:
        self.vocab_size, self.width, self.layers, self.forgets = vocab_size, width, layers, forgets

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "model_type": "small"}


class RollingCache(Cache):
    """It rolls back by keeping what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.earlier: list[Any] = []

    def crop(self, length: int) -> None:
        """Negative: so many elements less."""
        for _ in range(-length):
            self.layers = self.earlier.pop()
        self.seen += length


class SmallLM(CausalLM):
    """Made from a :class:`Config`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.vocab_size, config.width, config.layers)
        self.config = config

    def unpacked(self, cache: Any) -> Any:
        return None if self.config.forgets and self.reading > 1 else super().unpacked(cache)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Any:
        self.reading = input_ids.shape[1]
        return super().forward(input_ids, attention_mask, past_key_values, use_cache)

    def packed(self, after: list[Any], cache: Any, time: int) -> Any:
        cache = RollingCache() if cache is None else cache
        cache.earlier += [copy.deepcopy(cache.layers)] * time
        return super().packed(after, cache, time)

    def save_pretrained(self, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        torch.save((vars(self.config), self.state_dict()), Path(folder) / "weights.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> SmallLM:
        fields, weights = torch.load(Path(folder) / "weights.pt", weights_only=True)
        model = cls(Config(**fields))
        model.load_state_dict(weights)
        return model


class Prepared(SmallLM):
    """A call makes no cache of its own: only prepare_inputs_for_generation does, an empty one."""

    def packed(self, after: list, cache: Any, time: int) -> Any:
        return None if cache is None else super().packed(after, cache, time)

    def unpacked(self, cache: Any) -> Any:
        return super().unpacked(cache) if cache.layers else None

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **rest: Any
    ) -> dict[str, Any]:
        past = RollingCache() if past_key_values is None else past_key_values
        return {"input_ids": input_ids[:, past.seen :], "past_key_values": past}
