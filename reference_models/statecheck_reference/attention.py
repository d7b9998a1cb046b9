"""The attention anchor: softmax attention over the last tokens, for one block of a model that is otherwise recurrent.

Papers
------
- Vaswani et al. 2017, arXiv 1706.03762, section 3.2: scaled dot-product attention with several heads.
- Child et al. 2019, arXiv 1904.10509; Beltagy, Peters & Cohan 2020, arXiv 2004.05150 (Longformer), section 3.1: a
  window that slides along, so that the work a token does not grow with the text.
- De et al. 2024, arXiv 2402.19427 (Griffin), section 2.3: local attention among recurrent layers; the window bounds the
  cache. There the recurrence carries what is further away.
- Lieber et al. 2024, arXiv 2403.19887 (Jamba), section 6.5, "Jamba does not Require Explicit Positional Information":
  with and without rotary positions the hybrid does about as well; the recurrent layers before may well give the order.

Glossary (our names -> the papers' symbols), one head, the token at place t; W = width, H heads of D = W / H channels
---------------------------------------------------------------------------------------------------------------------
    inputs        x_t   (W)     what enters the layer
    window        w             tokens that are seen, the present one included; P = w - 1 are kept
    query         q_t   (D)     W_q x_t         what is looked for
    key           k_t   (D)     W_k x_t         under which it is found   state `keys`   (P, H, D): k_t-P+1 ... k_t
    value         v_t   (D)     W_v x_t         what is found             state `values` (P, H, D): v_t-P+1 ... v_t
    filled        (P)           1 where a token was read, 0 where nothing was yet           state `filled` (P)
    weight        a_ts          softmax over the filled s, t - w < s <= t, of q_t . k_s / sqrt(D)
    answer        y_t   (D)     sum over the same s of a_ts v_s
    output        o_t   (W)     W_o concat over heads of y_t

The states have one size from the first token on: an empty place gets no weight, so zeros in all three are a memory that
has read nothing, in each row of a batch by itself. Places are in the order of reading, the oldest first.

Departures: no positions at all, so that the order of the earlier tokens in the window is seen only through what the
layers before have put into x (with none before, not at all); every head has keys of its own, where Griffin's share
theirs; no biases, no dropout.
"""

from collections.abc import Mapping

import torch
from statecheck_kernels import Observe, StateStatistics
from statecheck_kernels.layout import Layout
from statecheck_kernels.statistics import Observer
from torch import Tensor, nn
from torch.nn import functional

PIECE = 64  # tokens whose weights are in memory at once
STRETCH = 8  # observed windows that are in memory at once, for their statistics


class Attention(nn.Module):
    """The attention layer: (B, T, W) and a state to (B, T, W) and the next state; see the glossary above.

    Raises ValueError for a width that the heads can't share, and for a window that sees no earlier token.

    >>> layer = Attention(width=8, heads=2, window=4)
    >>> layer.state_shapes
    {'keys': (3, 2, 4), 'values': (3, 2, 4), 'filled': (3,)}
    >>> nothing = [torch.zeros(1, *shape) for shape in layer.state_shapes.values()]
    >>> outputs, keys, values, filled = layer(torch.ones(1, 2, 8), *nothing)
    >>> outputs.shape, keys.shape, filled.tolist()
    (torch.Size([1, 2, 8]), torch.Size([1, 3, 2, 4]), [[0.0, 1.0, 1.0]])
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"Attention: expected a width that is a multiple of heads = {heads}, found {width}")
        if window < 2:
            raise ValueError(
                f"Attention: expected a window of at least 2 tokens, the present and one more, found {window}"
            )
        self.width, self.heads, self.window = width, heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # rows: queries, keys, values
        self.output = nn.Linear(width, width, bias=False)
        self.statistics: dict[str, StateStatistics | None] = {}  # of the last call, by state
        for linear in (self.qkv, self.output):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        kept = (self.window - 1, self.heads, self.width // self.heads)
        return {"keys": kept, "values": kept, "filled": kept[:1]}

    def forward(
        self, inputs: Tensor, keys: Tensor, values: Tensor, filled: Tensor, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs (B, T, W), the next `keys` and `values` (B, P, H, D) and the next `filled` (B, P).

        A place counts as filled above one half. `observe` asks for :attr:`statistics` of "keys", "values" and "filled".
        """
        time = inputs.shape[1]
        query, key, value = self.qkv(inputs).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, T, H, D) each
        keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)  # (B, P + T, H, D)
        filled = torch.cat([filled, filled.new_ones(inputs.shape[:2])], 1)  # (B, P + T)
        answers = []
        for number, queries in enumerate(query.split(PIECE, 1)):
            seen = slice(number * PIECE, number * PIECE + self.window - 1 + queries.shape[1])
            answers.append(attend(queries, keys[:, seen], values[:, seen], filled[:, seen] > 0.5))
        asked, joined = observe or {}, {"keys": keys, "values": values, "filled": filled.unsqueeze(2)}
        self.statistics = {
            name: observe_windows(states, self.window - 1, asked[name]) if name in asked else None
            for name, states in joined.items()
        }
        # Copies: a view would keep all that was read in this call.
        keys, values, filled = (x[:, time:].clone() for x in (keys, values, filled))
        return self.output(torch.cat(answers, 1).flatten(2)), keys, values, filled


def attend(query: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """Answers (B, C, H, D) of C queries, each to its own place of P + C and the P before it.

    `query` (B, C, H, D), `keys` and `values` (B, P + C, H, D), `filled` (B, P + C) of bool.

    >>> query = keys = torch.zeros(1, 2, 1, 1)
    >>> values = torch.tensor([2.0, 4.0]).view(1, 2, 1, 1)
    >>> attend(query[:, :1], keys, values, torch.tensor([[True, True]])).item()
    3.0
    """
    count = query.shape[1]
    before = keys.shape[1] - count
    place = torch.arange(count, device=query.device)[:, None]
    age = before + place - torch.arange(before + count, device=query.device)  # (C, P + C); 0: the query's own place
    seen = (age >= 0) & (age <= before) & filled[:, None, None]  # (B, 1, C, P + C)
    answers = _softmax_attention(query, keys, values, seen)
    finite = answers.isfinite()
    # NaN times a weight of 0 is NaN: what isn't finite may come from a place that isn't seen.
    return answers if bool(finite.all()) else torch.where(finite, answers, _one_by_one(query, keys, values, filled))


def _one_by_one(query: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """As :func:`attend`, with nothing at hand but what each query sees, and zeros for what is not filled."""
    before, answers = keys.shape[1] - query.shape[1], []
    for place in range(query.shape[1]):
        seen = slice(place, place + before + 1)
        empty = ~filled[:, seen, None, None]
        key, value = (x[:, seen].masked_fill(empty, 0) for x in (keys, values))
        answers.append(_softmax_attention(query[:, place : place + 1], key, value, filled[:, None, None, seen]))
    return torch.cat(answers, 1)


def _softmax_attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    query, keys, values = (x.transpose(1, 2) for x in (query, keys, values))  # (B, H, ., D)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen).transpose(1, 2)


def observe_windows(states: Tensor, before: int, observe: Observe) -> StateStatistics:
    """Statistics of the last `before` places after every step, of `states` (B, before + T, H, ...).

    >>> found = observe_windows(torch.tensor([0.0, 0.0, 3.0, -4.0]).view(1, 4, 1), 2, Observe())
    >>> found.square_sum.flatten().tolist(), found.largest.flatten().tolist()
    ([9.0, 25.0], [3.0, 4.0])
    """
    windows = states.detach().unfold(1, before, 1)[:, 1:].movedim(-1, 3)  # (B, T, H, P, ...), a view
    observer = Observer(Layout.of(windows, None), observe, windows.shape[2], windows.device)
    for stretch in windows.split(STRETCH * observe.every, 1):
        observer.take(stretch)
    return observer.statistics()
