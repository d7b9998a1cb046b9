"""torch.nn.LSTM, GRU and RNN as modules with named, batch-first states.

Symbols of Hochreiter & Schmidhuber 1997 and Gers et al. 2000: c is the cell state, h = o * tanh(c) the hidden state,
f the forget gate: c(t) = f * c(t-1) + i * g. c is diagonal in itself given h; h is derived from c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.errors import ContractError


class NamedStates(nn.Module):
    """A torch RNN whose states are `layers.N.h` (and `layers.N.c` for an LSTM), each (batch, hidden)."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self._held: tuple[Tensor, ...] | None = None  # h, or h and c: (layers, B, H) each

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs if self.rnn.batch_first else inputs.transpose(0, 1)
        held = self._held if self._is_lstm or self._held is None else self._held[0]
        outputs, after = self.rnn(x, held)
        self._held = after if self._is_lstm else (after,)
        return outputs if self.rnn.batch_first else outputs.transpose(0, 1)

    def get_states(self) -> dict[str, Tensor]:
        if self._held is None:
            return {}
        names = zip("hc", self._held, strict=False)
        return {f"layers.{i}.{name}": value[i] for name, value in names for i in range(self.rnn.num_layers)}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        if states is None:
            self._held = None
            return
        expected = [f"layers.{i}.{name}" for name in self._names for i in range(self.rnn.num_layers)]
        if set(states) != set(expected):
            raise ContractError(f"expected states {', '.join(expected)}, found {', '.join(states) or 'none'}")
        stacks = [[states[f"layers.{i}.{name}"] for i in range(self.rnn.num_layers)] for name in self._names]
        self._held = tuple(torch.stack(stack) for stack in stacks)

    @property
    def _is_lstm(self) -> bool:
        return self.rnn.mode == "LSTM"

    @property
    def _names(self) -> str:
        return "hc" if self._is_lstm else "h"


def named_states(rnn: nn.RNNBase) -> NamedStates:
    """The module with named states. Raises :class:`ContractError` for a bidirectional one.

    >>> from torch import nn
    >>> module = named_states(nn.GRU(3, 4, num_layers=2))
    >>> _ = module(torch.zeros(5, 7, 3))
    >>> {name: tuple(value.shape) for name, value in module.get_states().items()}
    {'layers.0.h': (5, 4), 'layers.1.h': (5, 4)}
    """
    if rnn.bidirectional:
        raise ContractError(
            "a bidirectional RNN reads the future: it has no state that a call could continue from; wrap one direction"
        )
    return NamedStates(rnn)


def known_facts(rnn: nn.RNNBase) -> dict[str, dict[str, Any]]:
    """What is known of the states of this family: pattern -> fields of StateFacts."""
    if rnn.mode == "LSTM":
        return {
            "layers.*.h": {"recurrence": "derived", "bounds": (-1.0, 1.0)},
            "layers.*.c": {"recurrence": "diagonal"},
        }
    bounds = None if rnn.mode == "RNN_RELU" else (-1.0, 1.0)
    return {"layers.*.h": {"recurrence": "dense", "bounds": bounds}}


def selective(rnn: nn.RNNBase) -> bool:
    """Gated cells choose what to keep by what they read; a plain RNN keeps a fixed share."""
    return rnn.mode in ("LSTM", "GRU")
