"""The reference LSTM language model: a plain stack of LSTM layers that keeps its own state between calls.

Papers
------
- Hochreiter & Schmidhuber 1997, "Long Short-Term Memory": the cell with input and output gates.
- Gers, Schmidhuber & Cummins 2000, "Learning to Forget": the forget gate f.
- Jozefowicz, Zaremba & Sutskever 2015, "An Empirical Exploration of Recurrent Network Architectures": forget bias 1.
- Press & Wolf 2017, "Using the Output Embedding to Improve Language Models": the tied output head.

Glossary (our names -> the papers' symbols), one layer, one token, W = width
---------------------------------------------------------------------------
    inputs         x_t  (W)   what enters the layer: the token's embedding, or the output of the layer below
    input gate     i_t  (W)   sigmoid(W_i x_t + U_i h_{t-1} + b_i)     what is written
    forget gate    f_t  (W)   sigmoid(W_f x_t + U_f h_{t-1} + b_f)     what is kept
    candidate      g_t  (W)   tanh   (W_g x_t + U_g h_{t-1} + b_g)     what there is to write
    output gate    o_t  (W)   sigmoid(W_o x_t + U_o h_{t-1} + b_o)     what is shown
    cell state     c_t  (W)   f_t * c_{t-1} + i_t * g_t                state `layers.N.c`
    hidden state   h_t  (W)   o_t * tanh(c_t)                          state `layers.N.h`, the layer's output
    logits         z_t  (V)   E h_t + b, with E (V, W) the embedding table itself

torch keeps the four gates in one matrix, rows in the order i, f, g, o, and two bias vectors whose sum is b.

Departures: no peephole connections (Gers & Schmidhuber 2000), no dropout, no projection between embedding and head,
and the head has a bias of its own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference.carrying import CarriesStates, States, check_tokens
from statecheck_reference.configuration import checked_mapping, require_whole_numbers


@dataclass(frozen=True)
class LSTMConfig:
    """The shape of the model.

    >>> LSTMConfig(vocabulary=256, width=32, layers=2).to_dict()
    {'vocabulary': 256, 'width': 32, 'layers': 2}
    """

    vocabulary: int = 4096
    width: int = 224
    layers: int = 2

    def __post_init__(self) -> None:
        require_whole_numbers(self, "LSTMConfig")

    def to_dict(self) -> dict[str, int]:
        """The config as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "LSTMConfig":
        """The config that a checkpoint names; every key is required and no other is known.

        Raises ValueError that names the missing and the unknown keys.

        >>> LSTMConfig.from_mapping({"vocabulary": 256, "width": 32})
        Traceback (most recent call last):
            ...
        ValueError: LSTM config: expected the keys layers, vocabulary, width; missing: layers; unknown: none
        """
        return checked_mapping(cls, config, "LSTM config")


class LSTMLanguageModel(CarriesStates):
    """A language model whose memory is `layers.N.h` and `layers.N.c`, both (batch, width), carried from call to call.

    >>> model = LSTMLanguageModel(LSTMConfig(vocabulary=16, width=8, layers=1))
    >>> model.get_states()
    {}
    >>> logits = model(torch.tensor([[3, 1, 4]]))
    >>> logits.shape, sorted(model.get_states()), model.get_states()["layers.0.h"].shape
    (torch.Size([1, 3, 16]), ['layers.0.c', 'layers.0.h'], torch.Size([1, 8]))
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(nn.LSTM(config.width, config.width, batch_first=True) for _ in range(config.layers))
        self.output_bias = nn.Parameter(torch.zeros(config.vocabulary))
        self._initialise()

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        return {f"layers.{index}.{part}": (self.config.width,) for index in range(self.config.layers) for part in "hc"}

    def _initialise(self) -> None:
        """Draw the weights from torch's global generator; forget-gate biases 1, all other biases 0."""
        # The table is also the output head: rows of unit expected length keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("weight"):
                    draw = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
                    for gate in parameter.data.chunk(4, dim=0):  # (W, W) each: i, f, g, o
                        draw(gate)
                else:
                    nn.init.zeros_(parameter)
            _, forget, _, _ = layer.get_parameter("bias_ih_l0").data.chunk(4)  # torch adds two biases; one stays 0
            forget.fill_(1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Read `inputs` (batch, time) of token ids on from the current states; return logits (batch, time, vocabulary).

        A call with no tokens returns (batch, 0, vocabulary) and changes nothing. Raises ValueError for inputs that are
        not (batch, time) ids of the vocabulary, and for another batch size than the states have.
        """
        check_tokens(inputs, self.config.vocabulary, self._states)
        batch, time = inputs.shape
        if time == 0:
            return self.output_bias.new_zeros(batch, 0, self.config.vocabulary)
        activations = self.embedding(inputs)  # (B, T, W)
        new_states: States = {}
        for index, layer in enumerate(self.layers):
            with torch.autocast(inputs.device.type, enabled=False):  # a cell in bfloat16 would lose what it is to keep
                found = layer(activations, self._layer_states(index))
            activations, (hidden, cell) = found  # (B, T, W), (1, B, W) twice
            new_states[f"layers.{index}.h"] = hidden[0]  # (B, W)
            new_states[f"layers.{index}.c"] = cell[0]  # (B, W)
        self._states = new_states
        return functional.linear(activations, self.embedding.weight, self.output_bias)  # (B, T, V)

    def _layer_states(self, index: int) -> tuple[Tensor, Tensor] | None:
        if not self._states:
            return None  # torch starts from zeros
        return (
            self._states[f"layers.{index}.h"].unsqueeze(0),  # (1, B, W)
            self._states[f"layers.{index}.c"].unsqueeze(0),  # (1, B, W)
        )
