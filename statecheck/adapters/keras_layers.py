"""Keras models on the torch backend with recurrent layers that are `stateful=True`: the layers hold the states.

The contract that is tested:

    a call          model(inputs), which goes on from layer.states and assigns the next to them; with mask= as keras
                    takes it, True where an element is real
    no history      reset_state() of every such layer; for another number of rows its variables are made anew from
                    get_initial_state, since keras keeps the number of rows with them
    native          reset: reset_state()
    a copy          copy.deepcopy, which in keras saves the model and loads it: weights are copied, states are not

States that are set are assigned to keras' variables. Those are copies without a graph, so that no gradient reaches the
tensors that were given (GRADIENT_STEP and GRADIENT_SEQUENCE are missing); gradients of the weights can be had, and
whether the assignment breaks them is for the laws to say. Models on other backends can't be read: their tensors are
not torch's. Layers that are not stateful start from nothing at each call and have no state to look at.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from statecheck.adapters.contract import Declared
from statecheck.errors import ContractError
from statecheck.protocol import Native


def is_keras(model: object) -> bool:
    """True for a layer or model of keras, if the program has loaded that.

    >>> is_keras(nn.GRU(2, 2))
    False
    """
    keras: Any = sys.modules.get("keras")
    return keras is not None and isinstance(model, getattr(keras, "Layer", ()))


class StatefulLayers(nn.Module):
    """A keras model as a module with the states `layers.N.0`, `layers.N.1` ... of its stateful layers.

    Its weights are registered by number and name. The model is not: keras names weights anew in each copy.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._of = [model]
        weights = model.trainable_weights
        self.weights = nn.ParameterDict({f"{i}_{w.path.split('/')[-1]}": w.value for i, w in enumerate(weights)})
        self._rows: int | None = None

    @property
    def model(self) -> Any:
        return self._of[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> StatefulLayers:
        return StatefulLayers(copy.deepcopy(self.model))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if self._rows is None:
            self._start(len(inputs))
        return self.model(inputs) if mask is None else self.model(inputs, mask=mask)

    def get_states(self) -> dict[str, Tensor]:
        return {name: variable.value for name, variable in self._variables()} if self._rows is not None else {}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        if states is None:
            self._restart()
            return
        self._start(len(next(iter(states.values()))))
        for name, variable in self._variables():
            if name not in states:
                raise ContractError(f"expected a state named {name!r}, found {', '.join(states) or 'none'}")
            variable.assign(states[name])

    @property
    def native(self) -> Native:
        """What keras offers itself: layers are reset in place."""
        return Native(reset=self._restart)

    def _restart(self) -> None:
        for layer in stateful(self.model):
            layer.reset_state()
        self._rows = None

    def _start(self, rows: int) -> None:
        """Zero states of so many rows; where the number is as before they are what the last reset left."""
        keras: Any = sys.modules["keras"]
        self._rows = rows
        for layer in stateful(self.model):
            if layer.states is not None and layer.states[0].shape[0] == rows:
                continue
            first = layer.get_initial_state(rows)
            made = [keras.Variable(value, trainable=False, name="rnn_state") for value in first]
            # Past keras' own tracking, which takes no variables once a layer is built; it makes these untracked, too.
            vars(layer).update(states=made, _expected_batch_size=rows)

    def _variables(self) -> Iterator[tuple[str, Any]]:
        for i, layer in enumerate(stateful(self.model)):
            yield from ((f"layers.{i}.{j}", variable) for j, variable in enumerate(layer.states or ()))


def stateful(model: Any) -> list[Any]:
    """The layers that keep their states from call to call, in the order of the model."""
    if getattr(model, "stateful", False) is True and hasattr(model, "states"):
        return [model]
    return [found for layer in getattr(model, "layers", ()) for found in stateful(layer)]


def states_of_layers(model: Any, declared: Declared) -> tuple[StatefulLayers, Declared]:
    """The model as a module for `wrap_module`, and what it reads.

    Raises :class:`ContractError` for another backend, a model that is not built and one without stateful layers.
    """
    keras: Any = sys.modules["keras"]
    if keras.config.backend() != "torch":
        raise ContractError(
            f"keras runs on {keras.config.backend()}: set KERAS_BACKEND=torch before it is imported, so that states are"
            " tensors of torch"
        )
    if not model.built:
        raise ContractError(f"{model.name} is not built, so it has no weights yet: call it once, or give it an Input")
    if not stateful(model):
        raise ContractError(
            f"{model.name} has no layer with stateful=True: its calls remember nothing; say stateful=True and"
            " return_sequences=True"
        )
    return StatefulLayers(model), replace(_inputs(model, declared), title=declared.title or model.name)


def _inputs(model: Any, declared: Declared) -> Declared:
    """What the model reads: as it was said, else by the width or the embedding that it was built with."""
    if declared.width or declared.vocabulary:
        return declared
    vocabulary = getattr(next(iter(getattr(model, "layers", ())), None), "input_dim", None)
    if isinstance(vocabulary, int):
        return replace(declared, vocabulary=vocabulary)
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) == 3 and isinstance(shape[-1], int):
        return replace(declared, width=shape[-1])
    raise ContractError(f"can't tell what {model.name} reads: say wrap(..., vocabulary=N) or wrap(..., width=N)")
