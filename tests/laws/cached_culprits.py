"""Causal language models with a cache and one fault each, named for it; the rest of each is in `cached_models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cached_models import AttentionLM, Cache, CausalLM, Generating, Keys, Layer, ListCache, Output, StateInside
from torch import Tensor


class BeamsKeepStaleStates(ListCache):
    """The cache is not reordered with the beams."""

    def _reorder_cache(self, cache: list[Tensor], rows: Tensor) -> list[Tensor]:
        return cache


class Forgetful(Cache):
    """Its crop takes the count back, and leaves the states where they are."""

    def crop(self, length: int) -> None:
        self.seen = self.seen + length if length < 0 else length


class CropLeavesTheStates(CausalLM):
    """A roll-back is silently none."""

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        return super().packed(after, Forgetful() if cache is None else cache, time)


class ChunkedPrefillRestarts(CausalLM):
    """A call of several elements with a cache starts from zero states."""

    def body(self, x: Tensor, held: list[Layer] | None, real: Tensor | None) -> tuple[Tensor, list[Layer]]:
        return super().body(x, held if x.shape[1] == 1 else None, real)


class PadsAreRead(CausalLM):
    """The mask is taken, and dropped."""

    def body(self, x: Tensor, held: list[Layer] | None, real: Tensor | None) -> tuple[Tensor, list[Layer]]:
        return super().body(x, held, None)


class PositionsCountPads(AttentionLM):
    """Positions start at the left edge, padding included, whatever position_ids say."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Keys | None = None,
        use_cache: bool | None = None,
    ) -> Output:
        return super().forward(input_ids, attention_mask, past_key_values, use_cache)


class BatchSizeOutlivesTheCall(StateInside):
    """A state of another batch size is used, although a sequence starts."""

    def body(self, x: Tensor, held: list[Layer] | None, real: Tensor | None) -> tuple[Tensor, list[Layer]]:
        if self.h is not None:
            x = x + 0 * self.h[0][:, None]
        return super().body(x, held, real)


class LoadingInitialisesAgain(CausalLM):
    """from_pretrained writes a decay once more after loading."""

    @classmethod
    def from_pretrained(cls, folder: Path) -> CausalLM:
        model = super().from_pretrained(folder)
        with torch.no_grad():
            model.decay.copy_(torch.linspace(0.0, 3.1, model.width))
        return model


class DecodeBroadcasts(CausalLM):
    """A cached step of a batch brings (B, B, V)."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Output:
        given = super().forward(input_ids, attention_mask, past_key_values, use_cache)
        if past_key_values is not None and input_ids.shape[1] == 1:
            given["logits"] = given.logits.expand(len(input_ids), len(input_ids), -1)
        return given


class OneCacheForAll(Generating):
    """A first call writes into the cache of whoever came before."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = [Cache()]

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        if cache is None:
            cache = self.shared[0]
            cache.seen = 0
        return super().packed(after, cache, time)
