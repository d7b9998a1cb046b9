"""The reference GRU of vectors: vectors in, the next vector out, and a state that it keeps between calls.

Papers
------
- Cho et al. 2014, arXiv 1406.1078: the gated recurrent unit.
- Chung et al. 2014, arXiv 1412.3555: the unit in stacks, on sequences of vectors.

Glossary (our names -> the papers' symbols), one layer, one vector, N = hidden
------------------------------------------------------------------------------
    inputs         x_t  (F)   what enters the layer: a vector of F features, or the output of the layer below (N)
    reset gate     r_t  (N)   sigmoid(W_r x_t + U_r h_{t-1} + b_r)            what of the past the candidate sees
    update gate    z_t  (N)   sigmoid(W_z x_t + U_z h_{t-1} + b_z)            what is kept
    candidate      c_t  (N)   tanh(W_c x_t + b_c + r_t * (U_c h_{t-1} + d_c))   what there is to write
    hidden state   h_t  (N)   z_t * h_{t-1} + (1 - z_t) * c_t                 state `layers.N.h`, the layer's output
    prediction     y_t  (F)   W_y h_t + b_y of the last layer: the next input x_{t+1}, under the mean squared error

torch keeps the three parts in one matrix, rows in the order r, z, c, and two bias vectors.

Departures: the reset gate is applied after the product with U_c and has a bias d_c inside, as torch and cuDNN do; Cho
et al. apply it before the product. No dropout.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from statecheck_reference.carrying import CarriesStates, States, check_vectors
from statecheck_reference.configuration import checked_mapping, require_whole_numbers


@dataclass(frozen=True)
class VectorGRUConfig:
    """The shape of the model: `width` features of a vector, `hidden` units in each layer.

    >>> VectorGRUConfig(width=3, hidden=16, layers=1).to_dict()
    {'width': 3, 'hidden': 16, 'layers': 1}
    """

    width: int = 8
    hidden: int = 48
    layers: int = 2

    def __post_init__(self) -> None:
        require_whole_numbers(self, "VectorGRUConfig")

    def to_dict(self) -> dict[str, int]:
        """The config as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "VectorGRUConfig":
        """The config that a checkpoint names; every key is required and no other is known.

        Raises ValueError that names the missing and the unknown keys.
        """
        return checked_mapping(cls, config, "vector GRU config")


class VectorGRU(CarriesStates):
    """A predictor of the next vector, whose memory is `layers.N.h`, (batch, hidden), carried from call to call.

    >>> import torch
    >>> model = VectorGRU(VectorGRUConfig(width=3, hidden=4, layers=1))
    >>> model(torch.zeros(2, 5, 3)).shape, {name: tuple(state.shape) for name, state in model.get_states().items()}
    (torch.Size([2, 5, 3]), {'layers.0.h': (2, 4)})
    """

    def __init__(self, config: VectorGRUConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width] + [config.hidden] * (config.layers - 1)
        self.layers = nn.ModuleList(nn.GRU(width, config.hidden, batch_first=True) for width in widths)
        self.output = nn.Linear(config.hidden, config.width)
        self._initialise()

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        return {f"layers.{index}.h": (self.config.hidden,) for index in range(self.config.layers)}

    def _initialise(self) -> None:
        """Draw the weights from torch's global generator; biases 0, but 1 for the update gate, so that it keeps."""
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("weight"):
                    draw = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
                    for part in parameter.data.chunk(3, dim=0):  # r, z, c
                        draw(part)
                else:
                    nn.init.zeros_(parameter)
            _, update, _ = layer.get_parameter("bias_ih_l0").data.chunk(3)  # torch adds two biases; one stays 0
            update.fill_(1.0)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Read `inputs` (batch, time, width) on from the current states; return predictions of the same shape.

        A call with no vectors returns (batch, 0, width) and changes nothing. Raises ValueError for inputs that are not
        (batch, time, width) in the dtype of the weights, and for another batch size than the states have.
        """
        check_vectors(inputs, self.config.width, self._states, self.output.bias)
        if inputs.shape[1] == 0:
            return inputs.clone()
        activations, new_states = inputs, States()
        for index, layer in enumerate(self.layers):
            held = self._states[f"layers.{index}.h"].unsqueeze(0) if self._states else None  # (1, B, N)
            activations, hidden = layer(activations, held)  # (B, T, N), (1, B, N)
            new_states[f"layers.{index}.h"] = hidden[0]  # (B, N)
        self._states = new_states
        return self.output(activations)  # (B, T, F)
