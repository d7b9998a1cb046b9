"""Small causal language models called as those of transformers are, without it: caches of many shapes.

Each layer is a decaying sum behind a token shift; what differs is what a cache is, who makes it, and where it is.

    B  rows of the batch    T  elements of a call    W  width    L  layers
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

torch.set_num_threads(1)
Layer = tuple[Tensor, Tensor]  # h (B, W), the last input (B, W)


class Output(dict[str, Any]):
    """What a call returns: a mapping whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Cache:
    """The usual one: layers in a list, how much was read, a flag."""

    layers: list[list[Tensor]] = field(default_factory=list)
    seen: int = 0
    warm: bool = False

    def reorder_cache(self, rows: Tensor) -> None:
        self.layers = [[value[rows] for value in layer] for layer in self.layers]

    def crop(self, length: int) -> None:
        raise NotImplementedError("a recurrent state can't be rolled back")


class CausalLM(nn.Module):
    """The base, with a :class:`Cache`. `unpacked` and `packed` say what a cache is."""

    def __init__(self, vocabulary: int = 11, width: int = 5, layers: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.config = type("Config", (), {"vocab_size": vocabulary})()
        self.width, self.layers = width, layers
        self.embedding = nn.Embedding(vocabulary, width)
        self.inward = nn.Parameter(0.7 * torch.randn(layers, 2 * width, width, generator=generator))
        self.decay = nn.Parameter(torch.linspace(0.0, 3.0, width).repeat(layers, 1))
        self.head = nn.Linear(width, vocabulary)
        with torch.no_grad():
            for value in (self.embedding.weight, self.head.weight, self.head.bias):
                value.copy_(torch.randn(value.shape, generator=generator))

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, all that was read, this call included)
        past_key_values: Any = None,
        use_cache: bool | None = None,
    ) -> Output:
        real = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        held = self.unpacked(past_key_values) if past_key_values is not None else None
        x, after = self.body(self.embedded(input_ids, past_key_values), held, real)
        cache = self.packed(after, past_key_values, input_ids.shape[1]) if use_cache else None
        return Output(logits=self.head(x), past_key_values=cache)

    def embedded(self, input_ids: Tensor, cache: Any) -> Tensor:
        return self.embedding(input_ids)

    def body(self, x: Tensor, held: list[Layer] | None, real: Tensor | None) -> tuple[Tensor, list[Layer]]:
        after = []
        for i in range(self.layers):
            zero = torch.zeros_like(x[:, 0])
            y, state = self.layer(i, x, held[i] if held else (zero, zero), real)
            x = x + y
            after.append(state)
        return x, after

    def layer(self, i: int, x: Tensor, state: Layer, real: Tensor | None) -> tuple[Tensor, Layer]:
        (h, last), outputs = state, []
        for t, x_t in enumerate(x.unbind(1)):
            new = torch.sigmoid(self.decay[i]) * h + torch.cat([x_t, last], 1) @ self.inward[i]
            if real is None:
                h, last = new, x_t
            else:
                h, last = torch.where(real[:, t, None], new, h), torch.where(real[:, t, None], x_t, last)
            outputs.append(torch.tanh(h))
        return torch.stack(outputs, 1), (h, last)

    def unpacked(self, cache: Any) -> list[Layer] | None:
        """The layers' states; None before the first call."""
        return [(h, last) for h, last in cache.layers] or None

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        """The cache to go on with: the one that was given, changed, or a new one."""
        cache = Cache() if cache is None else cache
        cache.layers, cache.seen, cache.warm = [list(layer) for layer in after], cache.seen + time, True
        return cache

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), Path(folder) / "weights.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> CausalLM:
        model = cls()
        model.load_state_dict(torch.load(Path(folder) / "weights.pt", weights_only=True))
        return model


class Generating(CausalLM):
    """It searches with beams as well."""

    def reordered(self, cache: Any, rows: Tensor) -> Any:
        """The cache of these rows."""
        cache.reorder_cache(rows)
        return cache

    def generate(
        self, input_ids: Tensor, *, num_beams: int, max_new_tokens: int, use_cache: bool, **unused: Any
    ) -> Output:
        """The best of so many beams, and its log-probability."""
        rows = len(input_ids)
        ids, cache = input_ids.repeat_interleave(num_beams, 0), None
        scores = torch.tensor([0.0] + [-torch.inf] * (num_beams - 1)).repeat(rows, 1)
        for _ in range(max_new_tokens):
            read = ids if cache is None else ids[:, -1:]
            given = self(read, past_key_values=cache, use_cache=use_cache)
            shares = given.logits[:, -1].log_softmax(-1)  # (B x beams, vocabulary)
            scores, best = (scores[:, :, None] + shares.view(rows, num_beams, -1)).flatten(1).topk(num_beams)
            beams = (best // shares.shape[1] + num_beams * torch.arange(rows)[:, None]).flatten()
            ids = torch.cat([ids[beams], (best % shares.shape[1]).view(-1, 1)], 1)
            cache = given.past_key_values
            if cache is not None:
                cache = self.reordered(cache, beams)
        return Output(sequences=ids[::num_beams], sequences_scores=scores[:, 0])


class ListCache(Generating):
    """The cache is a list of tensors, two a layer."""

    def unpacked(self, cache: Any) -> list[Layer] | None:
        return list(zip(cache[::2], cache[1::2], strict=True)) or None

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        return [value for layer in after for value in layer]

    def _reorder_cache(self, cache: list[Tensor], rows: Tensor) -> list[Tensor]:
        return [value[rows] for value in cache]

    def reordered(self, cache: Any, rows: Tensor) -> Any:
        return self._reorder_cache(cache, rows)


class DictCache(CausalLM):
    """The cache is a dict of tensors, a new one after each call."""

    def unpacked(self, cache: Any) -> list[Layer] | None:
        return [(cache[f"{i}.h"], cache[f"{i}.last"]) for i in range(self.layers)]

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        return {f"{i}.{name}": v for i, layer in enumerate(after) for name, v in zip(("h", "last"), layer, strict=True)}


@dataclass
class Stack:
    """One tensor for all layers."""

    states: Tensor  # (2 L, B, W)


class StackedCache(CausalLM):
    """The cache holds one tensor of all layers, the batch in dimension 1, and is written in place."""

    def unpacked(self, cache: Any) -> list[Layer] | None:
        values = list(cache.states.unbind(0))
        return list(zip(values[::2], values[1::2], strict=True))

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        states = torch.stack([value for layer in after for value in layer])
        if cache is None:
            return Stack(states)
        cache.states.copy_(states)
        return cache


class CountedCache(CausalLM):
    """What was read is counted in the cache, and enters the next call: a position that is forgotten shows.

    Positions are made in torch's default dtype, as many models do it. They count padding: the mask is no concern here.
    """

    def embedded(self, input_ids: Tensor, cache: Any) -> Tensor:
        first = 0 if cache is None else cache.seen
        at = torch.arange(first, first + input_ids.shape[1])
        return self.embedding(input_ids) + torch.sin(at[:, None] * torch.arange(1, self.width + 1))


@dataclass
class Rows(Cache):
    """It knows how many rows it is for."""

    rows: int = 0


class RowsCache(CausalLM):
    """The cache holds its number of rows, and raises if another batch comes."""

    def unpacked(self, cache: Any) -> list[Layer] | None:
        if cache.rows != len(cache.layers[0][0]):
            raise RuntimeError(f"a cache for {cache.rows} rows")
        return super().unpacked(cache)

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        cache = Rows() if cache is None else cache
        cache.rows = len(after[0][0])
        return super().packed(after, cache, time)


class StateInside(CausalLM):
    """The state is in attributes of the module, and a call without positions starts a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.h: Tensor | None = None  # (L, B, W)
        self.last: Tensor | None = None

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Output:
        goes_on = self.h is not None and position_ids is not None and bool((position_ids[:, 0] > 0).all())
        held = list(zip(self.h, self.last, strict=True)) if goes_on else None  # type: ignore[call-overload]
        real = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        x, after = self.body(self.embedding(input_ids), held, real)
        if use_cache:
            self.h, self.last = (torch.stack(part) for part in zip(*after, strict=True))
        return Output(logits=self.head(x))


class Prepared(CausalLM):
    """A call makes no cache of its own: only prepare_inputs_for_generation does."""

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        return None if cache is None else super().packed(after, cache, time)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **rest: Any
    ) -> dict[str, Any]:
        past = Cache() if past_key_values is None else past_key_values
        return {"input_ids": input_ids[:, past.seen :], "past_key_values": past, "attention_mask": attention_mask}


@dataclass
class Keys:
    """Keys and values of all elements, as an attention keeps them."""

    keys: Tensor  # (B, T, W)
    values: Tensor

    def reorder_cache(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def crop(self, length: int) -> None:
        """The first `length` elements; all but the last -length where that is negative."""
        self.keys, self.values = self.keys[:, :length], self.values[:, :length]


class AttentionLM(Generating):
    """One layer of attention with a cache that grows and can be rolled back; positions are an argument."""

    def __init__(self) -> None:
        super().__init__()
        del self.inward, self.decay
        self.qkv = nn.Linear(self.width, 3 * self.width, bias=False)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.randn(self.qkv.weight.shape, generator=torch.Generator().manual_seed(1)))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Keys | None = None,
        use_cache: bool | None = None,
        position_ids: Tensor | None = None,
    ) -> Output:
        (rows, time), past = input_ids.shape, 0 if past_key_values is None else past_key_values.keys.shape[1]
        at = torch.arange(past, past + time).expand(rows, time) if position_ids is None else position_ids
        x = self.embedding(input_ids) + torch.sin(at[..., None] * torch.arange(1, self.width + 1)).to(self.head.bias)
        q, k, v = self.qkv(x).chunk(3, 2)
        if past_key_values is not None:
            k, v = torch.cat([past_key_values.keys, k], 1), torch.cat([past_key_values.values, v], 1)
        seen = torch.arange(past + time) <= torch.arange(past, past + time)[:, None]  # (T, all)
        if attention_mask is not None:
            seen = seen & attention_mask[:, None].bool() | torch.eye(past + time, dtype=torch.bool)[past:]
        scores = (q @ k.transpose(1, 2) / self.width**0.5).masked_fill(~seen, -torch.inf)
        x = x + scores.softmax(-1) @ v
        cache = None
        if use_cache:
            cache = past_key_values or Keys(k, v)
            cache.keys, cache.values = k, v
        return Output(logits=self.head(x), past_key_values=cache)


class ModuleState(nn.Module):
    """A cache that is a module without parameters, as those of some releases of transformers are."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = [list(layer) for layer in layers]

    def reorder_cache(self, rows: Tensor) -> None:
        self.layers = [[value[rows] for value in layer] for layer in self.layers]


class ModuleCache(CausalLM):
    """The cache is a module."""

    def packed(self, after: list[Layer], cache: Any, time: int) -> Any:
        if cache is None:
            return ModuleState(after)
        cache.layers = [list(layer) for layer in after]
        return cache


class PositionsOfIds(CausalLM):
    """Positions are counted from the ids: those that are no padding, from one above its id on, as RoBERTa does it."""

    def __init__(self) -> None:
        super().__init__()
        self.config.pad_token_id = 1

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        position_ids: Tensor | None = None,
    ) -> Output:
        seen, real = 0 if past_key_values is None else past_key_values.seen, input_ids != 1
        self.at = [(real.cumsum(1) + seen) * real + 1 if position_ids is None else position_ids]
        return super().forward(input_ids, attention_mask, past_key_values, use_cache)

    def embedded(self, input_ids: Tensor, cache: Any) -> Tensor:
        return self.embedding(input_ids) + torch.sin(self.at[0][..., None] * torch.arange(1, self.width + 1))


HEALTHY = (
    *(CausalLM, ListCache, DictCache, StackedCache, CountedCache, RowsCache, StateInside, Prepared, AttentionLM),
    *(ModuleCache, PositionsOfIds),
)
