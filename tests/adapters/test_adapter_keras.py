"""Stateful layers of keras on the torch backend: by a stand-in of the same interface, and by keras itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conforming import broken, skipped
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError

WIDTH, HIDDEN = 3, 4


class Variable:
    """As keras.Variable on torch: a value that is assigned in place."""

    def __init__(self, value: Tensor, trainable: bool = True, name: str = "variable") -> None:
        self.value, self.path = value.detach().clone(), name

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def assign(self, value: Tensor) -> None:
        self.value.copy_(value.detach())


class Layer(nn.Module):
    """What stands for keras.Layer."""

    built, name = True, "recurrent"


class Recurrent(Layer):
    """A stateful GRU: its number of rows stays with its states, as in keras."""

    def __init__(self, *, stateful: bool = True, resets: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, HIDDEN)
        self.stateful, self.resets, self.in_place = stateful, resets, in_place
        self.input_shape = (None, None, WIDTH)
        self.states: list[Variable] | None = None
        self._expected_batch_size = 0

    @property
    def trainable_weights(self) -> list[Any]:
        return [SimpleNamespace(path=f"gru/{name}", value=value) for name, value in self.cell.named_parameters()]

    def get_initial_state(self, batch_size: int) -> list[Tensor]:
        return [self.cell.weight_hh.new_zeros(batch_size, HIDDEN)]

    def reset_state(self) -> None:
        for variable in self.states or ():
            variable.assign(torch.zeros_like(variable.value) if self.resets else variable.value / 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert self.states is not None
        assert len(x) == self._expected_batch_size
        h, ys = (self.states[0].value if self.in_place else self.states[0].value.clone()), []
        for t in range(x.shape[1]):
            after = self.cell(x[:, t], h)
            h = after if mask is None else torch.where(mask[:, t, None], after, h)
            ys.append(h)
        self.states[0].assign(h)
        return torch.stack(ys, 1)


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    config = SimpleNamespace(backend=lambda: "torch")
    module = SimpleNamespace(Layer=Layer, Variable=Variable, config=config)
    monkeypatch.setitem(sys.modules, "keras", module)
    torch.manual_seed(0)
    return module


@pytest.mark.usefixtures("keras")
class TestStandIn:
    def test_states_are_the_variables_and_calls_go_on(self) -> None:
        layer = Recurrent()
        model = sc.wrap(layer)
        x = torch.randn(3, 5, WIDTH)
        outputs = torch.cat([model(x[:, :2]), model(x[:, 2:])], 1)
        h = torch.zeros(3, HIDDEN)
        for t in range(5):
            h = layer.cell(x[:, t], h)
            torch.testing.assert_close(outputs[:, t], h)
        assert (model.facts.title, model.facts.width) == ("recurrent", WIDTH)
        torch.testing.assert_close(model.get_states()["layers.0.0"], h)

    def test_another_number_of_rows_starts_with_variables_of_its_own(self) -> None:
        model = sc.wrap(Recurrent())
        model(torch.randn(3, 2, WIDTH))
        model.set_states(None)
        assert model(torch.randn(2, 1, WIDTH)).shape == (2, 1, HIDDEN)

    def test_a_healthy_one_conforms(self) -> None:
        assert broken(sc.wrap(Recurrent()), "STEP", "CHUNK", "BATCH", "PADL", "PADR", "RESET", "GRAD") == []

    def test_a_reset_that_leaves_half_is_caught(self) -> None:
        assert broken(sc.wrap(Recurrent(resets=False)), "RESET") == ["RESET"]

    def test_a_state_that_is_assigned_in_place_breaks_gradients_and_is_caught(self) -> None:
        assert broken(sc.wrap(Recurrent(in_place=True)), "GRAD") == ["GRAD"]

    def test_no_gradient_reaches_states_that_are_assigned(self) -> None:
        assert "no gradient reaches" in sc.wrap(Recurrent()).facts.missing[sc.Capability.GRADIENT_STEP]

    def test_packing_is_left_out_with_the_reason(self) -> None:
        assert "its calls take no segments" in skipped(sc.wrap(Recurrent()), "PACK")

    def test_layers_without_states_are_refused(self) -> None:
        with pytest.raises(ContractError, match="recurrent has no layer with stateful=True"):
            sc.wrap(Recurrent(stateful=False))

    def test_a_layer_that_is_not_built_is_refused(self) -> None:
        layer = Recurrent()
        layer.built = False
        with pytest.raises(ContractError, match="recurrent is not built, so it has no weights yet"):
            sc.wrap(layer)


def test_another_backend_is_refused(keras: SimpleNamespace) -> None:
    keras.config.backend = lambda: "jax"
    with pytest.raises(ContractError, match="keras runs on jax: set KERAS_BACKEND=torch"):
        sc.wrap(Recurrent())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layers_of_keras_conform_but_for_what_their_release_breaks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    real = pytest.importorskip("keras")
    model = real.Sequential(
        [
            real.Input(batch_shape=(2, None, WIDTH)),
            getattr(real.layers, kind)(HIDDEN, return_sequences=True, stateful=True),
        ]
    )
    assert broken(sc.wrap(model), "STEP", "CHUNK", "BATCH", "RESET", "PADR", "LOAD") == []
