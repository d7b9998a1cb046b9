"""A small decoder with a cache of keys and values that does what libraries offer: masks, reorder, crop, reset.

B rows, T elements of a call, P elements read before, W width, H heads of D = W / H channels. The position of an element
is the number of real elements before it in its row (pads do not count); its sine and cosine are added to the embedding
(Vaswani et al. 2017, arXiv 1706.03762, section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from statecheck.protocol import Native


class Layer(nn.Module):
    """Attention over the cache and the call, then a feed-forward part, each added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_in, self.feed_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, stream: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W), the cache (B, H, P, D) twice, what is seen (B, 1, T, P + T) to the stream and the next cache."""
        query, key, value = self.qkv(self.norm(stream)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        keys = torch.cat([keys, key], 2)  # (B, H, P + T, D)
        values = torch.cat([values, value], 2)
        answer = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)  # (B, H, T, D)
        stream = stream + self.output(answer.transpose(1, 2).flatten(2))
        return stream + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(stream)))), keys, values


class CachedTransformer(nn.Module):
    """Reads ids (B, T) on from its cache, `mask` (B, T) True where an element is real; logits (B, T, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.heads = vocabulary, width, heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.keys: list[Tensor] = []  # of each layer, (B, H, P, D)
        self.values: list[Tensor] = []
        self.real: Tensor | None = None  # (B, P)
        self.position: Tensor | None = None  # (B): of the next element

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        before, position = self._begun(len(inputs))
        place = position[:, None] + real.cumsum(1) - 1  # (B, T)
        total = torch.cat([before, real], 1)  # (B, P + T)
        seen = causal(before.shape[1], inputs.shape[1], total)
        stream = self.embedding(inputs) + sinusoids(place.clamp_min(0), self.width)
        for n, layer in enumerate(self.layers):
            stream, self.keys[n], self.values[n] = layer(stream, self.keys[n], self.values[n], seen)
        self.real = total
        self.position = position + real.sum(1)
        return functional.linear(self.norm(stream), self.embedding.weight)

    def _begun(self, rows: int) -> tuple[Tensor, Tensor]:
        """Which elements read so far are real (B, P), and the next position (B); an empty cache where there is none."""
        if self.real is None:
            empty = self.embedding.weight.new_zeros(rows, self.heads, 0, self.width // self.heads)
            self.keys, self.values = [empty] * len(self.layers), [empty] * len(self.layers)
            self.real = torch.ones(rows, 0, dtype=torch.bool)
        if self.position is None:
            self.position = torch.zeros(rows, dtype=torch.int64)
        if len(self.real) != rows:
            raise ValueError(f"the cache holds {len(self.real)} rows, the inputs {rows}: reset() between batches")
        return self.real, self.position

    @property
    def native(self) -> Native:
        """The operations below, for statecheck."""
        return Native(reorder=self.reorder, crop=self.crop, reset=self.reset)

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows."""
        if self.real is not None and self.position is not None:
            self.keys = [key[rows] for key in self.keys]
            self.values = [value[rows] for value in self.values]
            self.real = self.real[rows]
            self.position = self.position[rows]

    def crop(self, length: int) -> None:
        """Roll back to the first `length` elements."""
        if self.real is not None:
            kept = slice(length)
            self.keys, self.values = ([x[:, :, kept] for x in cache] for cache in (self.keys, self.values))
            self.real = self.real[:, kept]
            self.position = self.real.sum(1)

    def reset(self) -> None:
        """Forget everything."""
        self.keys, self.values, self.real = [], [], None
        self.position = None

    def get_states(self) -> dict[str, Tensor]:
        """Keys and values of each layer, which elements are real, the next position; {} before the first call."""
        if self.real is None or self.position is None:
            return {}
        keys = {f"layers.{n}.k": key.clone() for n, key in enumerate(self.keys)}
        values = {f"layers.{n}.v": value.clone() for n, value in enumerate(self.values)}
        return keys | values | {"real": self.real.clone(), "position": self.position.clone()}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        """Go on from `states`, the very tensors; None: forget everything."""
        if not states:
            self.reset()
            return
        self.keys = [states[f"layers.{n}.k"] for n in range(len(self.layers))]
        self.values = [states[f"layers.{n}.v"] for n in range(len(self.layers))]
        self.real = states["real"]
        self.position = states["position"]


def causal(past: int, time: int, real: Tensor) -> Tensor:
    """(B, 1, T, P + T), True where a query sees a key: a real one of its row, not later than itself; always itself.

    >>> causal(1, 2, torch.tensor([[False, True, True]])).int().tolist()
    [[[[0, 1, 0], [0, 1, 1]]]]
    """
    age = past + torch.arange(time)[:, None] - torch.arange(past + time)  # (T, P + T)
    return ((age >= 0) & real[:, None, None]) | (age == 0)


def sinusoids(place: Tensor, width: int) -> Tensor:
    """(B, T, W) of positions (B, T)."""
    rate = 100.0 ** (-torch.arange(0, width, 2) / width)
    angle = place[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)
