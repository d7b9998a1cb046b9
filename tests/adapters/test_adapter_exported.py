"""Modules with explicit states: TorchScript, scripted, traced and frozen, and eager ones like them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conforming import broken
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError

WIDTH, HIDDEN, LAYERS = 3, 4, 2


class Pair(nn.Module):
    """An LSTM with its two states as arguments; `drops` keeps the old cell state after calls of several elements."""

    def __init__(self, drops: bool = False) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, HIDDEN, LAYERS, batch_first=True)
        self.drops = drops

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h_next, c_next) = self.rnn(x, (h, c))
        if self.drops and x.shape[1] > 1:
            c_next = c
        return y, h_next, c_next


class Own(nn.Module):
    """A GRU whose state has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.rnn(x, state)


def zeros(rows: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(LAYERS, rows, HIDDEN), torch.zeros(LAYERS, rows, HIDDEN)


def scripted(module: nn.Module) -> nn.Module:
    return torch.jit.script(module)


def traced(module: nn.Module) -> nn.Module:
    return torch.jit.trace(module, (torch.zeros(2, 4, WIDTH), *zeros(2)))


def frozen(module: nn.Module) -> nn.Module:
    return torch.jit.freeze(torch.jit.script(module))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("export", [scripted, traced, frozen, lambda module: module])
def test_states_and_outputs_are_those_of_the_module(export: Callable[[nn.Module], nn.Module]) -> None:
    module = Pair().eval()
    model = sc.wrap(export(module), start=zeros, width=WIDTH)
    x = torch.randn(3, 5, WIDTH)
    expected, h, c = module(x, *zeros(3))
    torch.testing.assert_close(torch.cat([model(x[:, :2]), model(x[:, 2:])], 1), expected)
    states = model.get_states()
    assert sorted(states) == ["state.0.0", "state.0.1", "state.1.0", "state.1.1"]
    torch.testing.assert_close(states["state.0.1"], h[1])
    torch.testing.assert_close(states["state.1.0"], c[0])


def test_a_state_with_a_default_needs_no_start() -> None:
    model = sc.wrap(Own().eval())
    assert broken(model, "STEP", "CHUNK", "BATCH", "FORK", "HONEST") == []


@pytest.mark.parametrize("export", [scripted, frozen])
def test_a_state_that_is_dropped_is_caught(export: Callable[[nn.Module], nn.Module]) -> None:
    assert broken(sc.wrap(export(Pair().eval()), start=zeros, width=WIDTH), "STEP", "CHUNK") == []
    faulty = sc.wrap(export(Pair(drops=True).eval()), start=zeros, width=WIDTH)
    assert broken(faulty, "STEP", "CHUNK") == ["STEP", "CHUNK"]


def test_copies_of_a_script_take_gradients() -> None:
    model = sc.wrap(scripted(Pair().eval()), start=zeros, width=WIDTH)
    assert sc.Capability.GRADIENT_SEQUENCE in model.facts.capabilities
    with torch.no_grad():
        other = model.rebuild()  # type: ignore[attr-defined]
    assert all(parameter.requires_grad for parameter in other.module.parameters())


class TestRefusals:
    def test_a_first_state_that_is_needed_is_asked_for(self) -> None:
        with pytest.raises(ContractError, match="start=, a function of the number of rows that brings the first h, c"):
            sc.wrap(scripted(Pair()), width=WIDTH)

    def test_what_a_script_reads_is_asked_for(self) -> None:
        with pytest.raises(ContractError, match=r"say wrap\(..., vocabulary=N\)"):
            sc.wrap(frozen(Pair().eval()), start=zeros)

    def test_a_forward_that_brings_no_state(self) -> None:
        class Forgets(Own):
            def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:  # type: ignore[override]
                return self.rnn(x, state)[0]

        with pytest.raises(
            ContractError, match="forward returned a Tensor: expected a tuple of the outputs and the next"
        ):
            sc.wrap(Forgets())

    def test_pairs_are_for_sessions(self) -> None:
        with pytest.raises(ContractError, match="carries= pairs the inputs and outputs of an onnxruntime session"):
            sc.wrap(Own(), carries={"state": "state"})
