"""A model of one's own under statecheck: what it must offer, what is worth declaring, and how it is checked.

python examples/wrap_your_model.py                                    # in Python
statecheck run examples.wrap_your_model:make --suite smoke            # the same from the command line
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import statecheck as sc

VOCABULARY, WIDTH, LAYERS = 64, 32, 2


class LeakyLayer(nn.Module):
    """h(t) = a(x) * h(t-1) + (1 - a(x)) * v(x): a selective recurrence, each unit by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        nn.init.constant_(self.gate.bias, 2.0)  # retention about 0.88: half-lives around 5 tokens
        self.h: Tensor | None = None  # (B, D), what the layer remembers

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        retention, value = torch.sigmoid(self.gate(x)), torch.tanh(self.value(x))
        h = x.new_zeros(x.shape[0], x.shape[2]) if self.h is None else self.h
        states = []
        for a_t, v_t in zip(retention.unbind(1), value.unbind(1), strict=True):
            h = a_t * h + (1 - a_t) * v_t
            states.append(h)
        self.h = h
        return x + self.out(torch.stack(states, 1))


class MyModel(nn.Module):
    """Token ids (B, T) -> logits (B, T, V). A call continues from where the last one ended."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LeakyLayer(WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def remembering(self) -> list[LeakyLayer]:
        return [layer for layer in self.layers if isinstance(layer, LeakyLayer)]

    # The two methods that statecheck asks for: flat names, batch first, {} before the first call.

    def get_states(self) -> dict[str, Tensor]:
        return {f"layers.{i}.h": layer.h for i, layer in enumerate(self.remembering()) if layer.h is not None}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        for i, layer in enumerate(self.remembering()):
            layer.h = None if states is None else states[f"layers.{i}.h"]


def make() -> sc.StatefulModel:
    """The model with what statecheck can't find out by itself. Untrained here: load your weights in this place."""
    torch.manual_seed(0)
    return sc.wrap(
        MyModel(),
        training_length=64,
        selective=True,  # how much is kept depends on what is read
        states={"layers.*.h": {"recurrence": "diagonal", "bounds": (-1.0, 1.0)}},
        title="leaky layers",
    )


if __name__ == "__main__":
    report = sc.check_model(make(), suite="smoke")
    print(report)
    raise SystemExit(report.exit_code)
