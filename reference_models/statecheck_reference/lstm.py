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

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

States = dict[str, Tensor]


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
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"LSTMConfig.{field.name}: expected a whole number of at least 1, found {value!r}")

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
        expected, found = {field.name for field in fields(cls)}, set(config)
        if expected != found:
            missing = ", ".join(sorted(expected - found)) or "none"
            unknown = ", ".join(sorted(map(str, found - expected))) or "none"
            raise ValueError(
                f"LSTM config: expected the keys {', '.join(sorted(expected))}; missing: {missing}; unknown: {unknown}"
            )
        return cls(**config)


class LSTMLanguageModel(nn.Module):
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
        self._states: States = {}
        self._initialise()

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
        self._check_inputs(inputs)
        batch, time = inputs.shape
        if time == 0:
            return self.output_bias.new_zeros(batch, 0, self.config.vocabulary)
        activations = self.embedding(inputs)  # (B, T, W)
        new_states: States = {}
        for index, layer in enumerate(self.layers):
            activations, (hidden, cell) = layer(activations, self._layer_states(index))  # (B, T, W), (1, B, W) twice
            new_states[f"layers.{index}.h"] = hidden[0]  # (B, W)
            new_states[f"layers.{index}.c"] = cell[0]  # (B, W)
        self._states = new_states
        return functional.linear(activations, self.embedding.weight, self.output_bias)  # (B, T, V)

    def get_states(self) -> States:
        """All that the model remembers, by name, each (batch, width); {} before the first call.

        The tensors are copies (gradients pass through them): neither a later call nor a write into them by the caller
        meets the other side.
        """
        return {name: state.clone() for name, state in self._states.items()}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        """Continue from `states`; None or {} forgets everything.

        The very tensors given are used, so that gradients of later outputs reach them. Raises ValueError that names
        what was expected and found when names, shapes, dtype or device don't fit, TypeError for a value that is no
        tensor.
        """
        self._states = {} if not states else self._checked_states(states)

    def _layer_states(self, index: int) -> tuple[Tensor, Tensor] | None:
        if not self._states:
            return None  # torch starts from zeros
        return (
            self._states[f"layers.{index}.h"].unsqueeze(0),  # (1, B, W)
            self._states[f"layers.{index}.c"].unsqueeze(0),  # (1, B, W)
        )

    def _check_inputs(self, inputs: Tensor) -> None:
        if inputs.dim() != 2 or inputs.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "inputs: expected token ids of shape (batch, time) in int64 or int32, "
                f"found shape {tuple(inputs.shape)} in {inputs.dtype}"
            )
        if inputs.shape[0] == 0:
            raise ValueError("inputs: expected at least one row, found a batch of 0")
        if inputs.numel() and (int(inputs.min()) < 0 or int(inputs.max()) >= self.config.vocabulary):
            wrong = inputs[(inputs < 0) | (inputs >= self.config.vocabulary)][0].item()
            raise ValueError(
                f"inputs: expected token ids from 0 to {self.config.vocabulary - 1}, found {wrong}; "
                "was the text encoded with this model's own tokenizer?"
            )
        if self._states and len(next(iter(self._states.values()))) != inputs.shape[0]:
            remembered = len(next(iter(self._states.values())))
            raise ValueError(
                f"inputs: expected a batch of {remembered}, the batch of the states carried from the last call, found "
                f"{inputs.shape[0]}; call set_states(None) to start afresh"
            )

    def _checked_states(self, states: Mapping[str, Tensor]) -> States:
        expected = [f"layers.{index}.{part}" for index in range(self.config.layers) for part in "hc"]
        if set(states) != set(expected):
            missing = ", ".join(name for name in expected if name not in states) or "none"
            unknown = ", ".join(sorted(map(str, set(states) - set(expected)))) or "none"
            raise ValueError(
                f"states: expected the names {', '.join(expected)}; missing: {missing}; unknown: {unknown}"
            )
        like, batch = self.output_bias, None
        for name in expected:
            state = states[name]
            if not isinstance(state, Tensor):
                raise TypeError(f"states[{name!r}]: expected a tensor, found {type(state).__name__}")
            batch = state.shape[0] if batch is None and state.dim() else batch
            if state.dim() != 2 or state.shape != (batch, self.config.width) or batch == 0:
                raise ValueError(
                    f"states[{name!r}]: expected shape (batch, {self.config.width}) with one batch of at least 1 for "
                    f"all states, found {tuple(state.shape)}"
                )
            if state.dtype != like.dtype or state.device != like.device:
                raise ValueError(
                    f"states[{name!r}]: expected {like.dtype} on {like.device} like the parameters, "
                    f"found {state.dtype} on {state.device}"
                )
        return {name: states[name] for name in expected}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LSTMLanguageModel":
        """`.to()`, `.double()`, `.cuda()`: what the model remembers moves with its parameters."""
        super()._apply(fn, recurse)
        self._states = {name: fn(state) for name, state in self._states.items()}
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the states go along by value, without the graph that made them."""
        members = self.__dict__.copy()
        members["_states"] = {name: state.detach() for name, state in self._states.items()}
        return members
