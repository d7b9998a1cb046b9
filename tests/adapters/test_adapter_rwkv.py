"""Models that are called with a list of tokens and a list of states, as those of the package rwkv."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conforming import broken, skipped
from torch import Tensor, nn

import statecheck as sc
from statecheck.surveys.recurrent import rwkv7_weights

VOCABULARY, WIDTH, LAYERS = 20, 6, 2


class Lists(nn.Module):
    """Two leaky layers and their last inputs, called as the package's models: it writes into the list it is given."""

    def __init__(self, *, restarts: bool = False, shift: int = 1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.args = SimpleNamespace(n_layer=LAYERS, vocab_size=VOCABULARY)
        self.w = {name: torch.randn(VOCABULARY, WIDTH, generator=draw) for name in ("emb.weight", "head.weight")}
        self.decay = torch.rand(LAYERS, WIDTH, generator=draw)
        self.restarts, self.shift = restarts, shift

    def forward(self, tokens: list[int], state: list[Tensor] | None, full_output: bool = False) -> tuple:
        with torch.no_grad():
            if state is None or (self.restarts and len(tokens) > 1):
                state = [torch.zeros(WIDTH) for _ in range(2 * LAYERS)]
            x = self.w["emb.weight"][tokens]
            for i in range(LAYERS):
                last, h = state[2 * i : 2 * i + 2]
                shifted = torch.cat([last[None], x])[: len(x)]
                ys = []
                for now in (x + 0.5 * shifted).unbind(0):
                    h = self.decay[i] * h + now.tanh()
                    ys.append(h)
                state[2 * i], state[2 * i + 1] = x[-self.shift if len(x) > 1 else -1], h
                x = torch.stack(ys)
            logits = x @ self.w["head.weight"].T
            return (logits if full_output and len(tokens) > 1 else logits[-1]), state


def test_states_are_named_by_layer_and_stacked_by_row() -> None:
    module = Lists()
    model = sc.wrap(module)
    outputs = model(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert {name: state.layer for name, state in model.facts.states.items()} == {
        "layers.0.0": 0,
        "layers.0.1": 0,
        "layers.1.0": 1,
        "layers.1.1": 1,
    }
    logits, state = module.forward([4, 5, 6], None, full_output=True)
    assert torch.equal(outputs[1], logits)
    assert all(torch.equal(value[1], own) for value, own in zip(model.get_states().values(), state, strict=True))
    assert model.facts.vocabulary == VOCABULARY


def test_a_healthy_one_conforms() -> None:
    assert broken(sc.wrap(Lists()), "STEP", "CHUNK", "BATCH", "RESET", "FORK", "HONEST") == []


@pytest.mark.parametrize("fault", [{"restarts": True}, {"shift": 2}], ids=["restarts from zero", "stale token shift"])
def test_a_prefill_that_loses_the_state_is_caught(fault: dict[str, Any]) -> None:
    assert broken(sc.wrap(Lists(**fault)), "STEP", "CHUNK") != []


def test_masks_are_left_out_with_the_reason() -> None:
    assert "its calls take no mask" in skipped(sc.wrap(Lists()), "PADL")


def test_a_model_that_can_not_be_copied_is_shared_by_its_copies() -> None:
    class Uncopied(Lists):
        def __deepcopy__(self, memo: dict) -> Lists:
            raise TypeError("held by TorchScript")

    model = sc.wrap(Uncopied())
    other = model.rebuild()  # type: ignore[attr-defined]
    model(torch.tensor([[1, 2]]))
    assert other.get_states() == {}
    assert torch.equal(other(torch.tensor([[3]])), sc.wrap(Lists())(torch.tensor([[3]])))


def test_rwkv_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_V7_ON", "1")
    rwkv = pytest.importorskip("rwkv.model")
    torch.save(rwkv7_weights(16, 2, 2, seed=0), tmp_path / "tiny.pth")
    model = sc.wrap(rwkv.RWKV(model=str(tmp_path / "tiny"), strategy="cpu fp32"))
    assert broken(model, "STEP", "CHUNK", "PREFIX", "BATCH", "RESET", "FORK") == []
