"""The bug of keras in calls of keras alone, on its torch backend; and the layers that show it."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"

import torch
from torch import Tensor, nn

from museum.calling import relative

WIDTH, UNITS = 8, 16


def build(family: str) -> nn.Module:
    """A stateful layer, (batch, time, 8) to (batch, time, 16), every number drawn."""
    import keras

    made = {"keras-lstm": keras.layers.LSTM, "keras-gru": keras.layers.GRU}[family]
    layer = made(UNITS, stateful=True, return_sequences=True)
    layer(torch.zeros(2, 3, WIDTH))
    layer.reset_state()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.trainable_weights:
            weight.value.copy_(0.3 * torch.randn(weight.value.shape, generator=generator))
    return layer


def grad(layer: nn.Module) -> tuple[float, str]:
    """Gradients of the second of two calls against those of a call that is given the same state by hand."""
    inputs = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    layer(inputs[:, :4])
    states = [state.value.detach().clone() for state in layer.states]  # type: ignore[union-attr]
    expected = _gradients(layer, layer(inputs[:, 4:], initial_state=states))
    layer.reset_state()  # type: ignore[operator]
    layer(inputs[:, :4])
    found = _gradients(layer, layer(inputs[:, 4:]))
    return relative(found, expected), "gradients of a call on the carried state, against one on the same state given"


def _gradients(layer: nn.Module, outputs: Tensor) -> Tensor:
    weights = [weight.value for weight in layer.trainable_weights]  # type: ignore[union-attr]
    return torch.cat([part.flatten() for part in torch.autograd.grad(outputs.square().sum(), weights)])


CONFIRMATIONS = {"grad": grad}
