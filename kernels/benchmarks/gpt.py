"""A plain GPT, what a training step of the hybrid is set beside.

Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3: the norm before
each part and one after the last block, learned positions, GELU of four times the width, the table as output head.

Departures: no dropout, no biases in the matrices.
"""

from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """Causal attention, then the feed-forward part, each added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.feed_in, self.feed_out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        projected = self.qkv(self.norm(stream)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        answer = functional.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, T, D)
        stream = stream + self.output(answer.transpose(1, 2).flatten(2))
        return stream + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(stream)), approximate="tanh"))


class GPT(nn.Module):
    """Ids (B, T) to logits (B, T, vocabulary).

    >>> GPT(vocabulary=16, width=8, layers=1, heads=2, places=4)(Tensor([[3, 1, 4]]).long()).shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, places: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Embedding(places, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of what follows each token."""
        stream = self.embedding(inputs) + self.places.weight[: inputs.shape[1]]  # (B, T, W)
        for layer in self.layers:
            stream = layer(stream)
        return functional.linear(self.norm(stream), self.embedding.weight)  # (B, T, V)
