"""The reference transformer: a decoder whose memory is a cache of keys and values that grows with every token.

Papers
------
- Vaswani et al. 2017, arXiv 1706.03762: scaled dot-product attention with several heads.
- Shazeer 2019, arXiv 1911.02150, section 2.4: decoding token by token with the keys and values kept.
- Press, Smith & Lewis 2022, arXiv 2108.12409 (ALiBi): a bias that grows with the distance, in place of positions; a
  model trained on short windows then reads longer texts.
- Xiong et al. 2020, arXiv 2002.04745: the norm before each part. Zhang & Sennrich 2019, arXiv 1910.07467: RMSNorm.
- So et al. 2021, arXiv 2109.08668 (Primer): the squared ReLU of the feed-forward part.
- Press & Wolf 2017, arXiv 1608.05859: the tied output head.

Glossary (our names -> the papers' symbols), one layer, one head, the token at place t; W = width, D = W / heads
----------------------------------------------------------------------------------------------------------------
    stream        x_t   (W)   what runs from layer to layer; at first the token's embedding
    normed        n_t   (W)   RMSNorm(x_t)
    query         q_t   (D)   W_q n_t         what is looked for
    key           k_t   (D)   W_k n_t         under which it is found        state `layers.N.k`: k_1 ... k_t
    value         v_t   (D)   W_v n_t         what is found                  state `layers.N.v`: v_1 ... v_t
    slope         m           2^(-8 h / heads) for the head h = 1, 2, ...    how fast a head loses sight of what is far
    weight        a_ts        softmax over s <= t of q_t . k_s / sqrt(D) - m (t - s)
    answer        y_t   (D)   sum over s <= t of a_ts v_s
    stream        x_t         x_t + W_o concat over heads of y_t, then + W_2 relu(W_1 RMSNorm(x_t))^2
    logits        (V)         E RMSNorm(x_t) with E (V, W) the embedding table itself

The cache holds everything that was read: it has no length at which it forgets, and takes memory for every token.

Departures: no dropout, no biases, no positions in embeddings or keys (ALiBi's bias alone tells near from far).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference.carrying import CarriesStates, Shape, States, check_tokens
from statecheck_reference.configuration import checked_mapping, require_whole_numbers


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of the model.

    >>> TransformerConfig(vocabulary=256, width=32, heads=3)
    Traceback (most recent call last):
        ...
    ValueError: TransformerConfig.width: expected a multiple of heads = 3, found 32
    """

    vocabulary: int = 4096
    width: int = 96
    layers: int = 2
    heads: int = 4
    feed_forward: int = 256

    def __post_init__(self) -> None:
        require_whole_numbers(self, "TransformerConfig")
        if self.width % self.heads:
            raise ValueError(
                f"TransformerConfig.width: expected a multiple of heads = {self.heads}, found {self.width}"
            )

    def to_dict(self) -> dict[str, int]:
        """The config as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "TransformerConfig":
        """The config that a checkpoint names; every key is required and no other is known.

        Raises ValueError that names the missing and the unknown keys.
        """
        return checked_mapping(cls, config, "transformer config")


def slopes(heads: int) -> Tensor:
    """ALiBi's slope of each head, (heads,).

    >>> slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def attention_bias(past: int, time: int, slope: Tensor) -> Tensor:
    """What is added to the scores of `time` queries that follow `past` cached keys, (H, time, past + time).

    -slope x distance for what was read, -inf for what comes later.

    >>> attention_bias(1, 2, torch.tensor([0.5]))
    tensor([[[-0.5000, -0.0000,    -inf],
             [-1.0000, -0.5000, -0.0000]]])
    """
    distance = torch.arange(past, past + time)[:, None] - torch.arange(past + time)  # (T, S)
    distance = distance.to(slope.device)
    return (-slope[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)


class Layer(nn.Module):
    """One layer of the glossary: attention over the cache and the new tokens, then the feed-forward part."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)  # rows: queries, keys, values
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.feed_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.feed_in = nn.Linear(config.width, config.feed_forward, bias=False)
        self.feed_out = nn.Linear(config.feed_forward, config.width, bias=False)
        for linear in (self.qkv, self.output, self.feed_in, self.feed_out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for last in (self.output, self.feed_out):  # what is added to the stream starts small in a deep stack
            last.weight.data.mul_((2 * config.layers) ** -0.5)

    def forward(
        self, stream: Tensor, past: tuple[Tensor, Tensor] | None, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W), the cached keys and values (B, H, P, D) and the bias (H, T, P + T) to the stream after the layer
        and the next keys and values (B, H, P + T, D)."""
        batch, time, width = stream.shape
        projected = self.qkv(self.norm(stream)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)  # (B, H, P + T, D)
        answer = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, H, T, D)
        stream = stream + self.output(answer.transpose(1, 2).flatten(2))  # (B, T, W)
        hidden = functional.relu(self.feed_in(self.feed_norm(stream))).square()  # (B, T, feed_forward)
        return stream + self.feed_out(hidden), key, value


class TransformerLanguageModel(CarriesStates):
    """A language model whose memory is `layers.N.k` and `layers.N.v`, (batch, heads, tokens read, width / heads).

    >>> model = TransformerLanguageModel(TransformerConfig(vocabulary=16, width=8, layers=1, heads=2, feed_forward=8))
    >>> logits = model(torch.tensor([[3, 1, 4]]))
    >>> logits = model(torch.tensor([[1, 5]]))
    >>> logits.shape, {name: tuple(state.shape) for name, state in model.get_states().items()}
    (torch.Size([1, 2, 16]), {'layers.0.k': (1, 2, 5, 4), 'layers.0.v': (1, 2, 5, 4)})
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        # The table is also the output head: rows of unit expected length keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Name of every state and its shape, without the batch; None is the number of tokens read."""
        shape = (self.config.heads, None, self.config.width // self.config.heads)
        return {f"layers.{index}.{part}": shape for index in range(self.config.layers) for part in "kv"}

    def forward(self, inputs: Tensor) -> Tensor:
        """Read `inputs` (batch, time) of token ids on from the cache; return logits (batch, time, vocabulary).

        A call with no tokens returns (batch, 0, vocabulary) and changes nothing. Raises ValueError for inputs that are
        not (batch, time) ids of the vocabulary, and for another batch size than the cache has.
        """
        check_tokens(inputs, self.config.vocabulary, self._states)
        batch, time = inputs.shape
        if time == 0:
            return self.embedding.weight.new_zeros(batch, 0, self.config.vocabulary)
        past = self._states["layers.0.k"].shape[2] if self._states else 0
        bias = attention_bias(past, time, slopes(self.config.heads).to(self.embedding.weight))  # (H, T, P + T)
        stream = self.embedding(inputs)  # (B, T, W)
        new_states: States = {}
        for index, layer in enumerate(self.layers):
            stream, key, value = layer(stream, self._cached(index), bias)  # (B, T, W), (B, H, P + T, D) twice
            dtype = self.embedding.weight.dtype  # autocast makes keys and values of another
            new_states |= {f"layers.{index}.k": key.to(dtype), f"layers.{index}.v": value.to(dtype)}
        self._states = new_states
        return functional.linear(self.norm(stream), self.embedding.weight)  # (B, T, V)

    def _cached(self, index: int) -> tuple[Tensor, Tensor] | None:
        return (self._states[f"layers.{index}.k"], self._states[f"layers.{index}.v"]) if self._states else None
