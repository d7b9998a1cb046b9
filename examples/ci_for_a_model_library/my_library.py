"""A stand-in for the library of a maintainer: a small recurrent language model with a bug that is known and open."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class TinyModel(nn.Module):
    """Token ids (batch, time) -> logits (batch, time, vocabulary). A call continues from where the last one ended."""

    def __init__(self, vocabulary: int = 32, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        self.h: Tensor | None = None  # (batch, width)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 1:
            self.h = None  # the bug: a second chunk of a prompt starts from zero
        outputs, h = self.rnn(self.embed(ids), None if self.h is None else self.h[None])
        self.h = h[0]
        return self.head(outputs)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


def tiny() -> nn.Module:
    """With the same random weights at every call: no training is needed to see a state that gets lost."""
    torch.manual_seed(0)
    return TinyModel()
